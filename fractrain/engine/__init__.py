"""Run configurations, the training loop, checkpoints, the run store, executors."""
