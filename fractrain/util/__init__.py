"""Errors, seeds, files, progress, signals and devices: what every other room may use."""
