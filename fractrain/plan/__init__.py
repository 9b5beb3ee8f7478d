"""Time and disk of runs, before anything starts."""
