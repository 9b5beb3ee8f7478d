"""fractrain: benchmark and reproducibility suite for low-precision DNN training."""

__version__ = "0.1.0"
