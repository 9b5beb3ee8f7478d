"""Data sets on the training device, in an order that is a function of (seed, epoch)."""
