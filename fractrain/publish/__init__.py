"""Finished runs and tables to trackers (wandb)."""
