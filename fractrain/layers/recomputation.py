"""Activation checkpointing: forward passes that PyTorch runs again, during backward, for what they did not keep."""

from __future__ import annotations

import torch


def recomputing() -> bool:
    """Whether a backward pass is under way, so that this forward pass is one that has been before."""
    return torch._C._current_graph_task_id() != -1
