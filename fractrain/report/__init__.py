"""Tables, figures and publishing: views over stored runs and published numbers."""
