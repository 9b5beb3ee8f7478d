"""The checks behind :mod:`fractrain.testing`: what every method must do, one group of checks per file."""
