"""The verbs of the command line, one file per group of verbs. What is heavy is imported inside the commands."""
