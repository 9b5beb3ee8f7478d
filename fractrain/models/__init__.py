"""The models, each with its list of gateable blocks."""
