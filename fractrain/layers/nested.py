"""Inputs and outputs that are tuples, lists or dicts of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_iter


def first_tensor(values: Any) -> torch.Tensor | None:
    """The first tensor in nested tuples, lists and dicts; None where there is none."""
    return next((v for v in tree_iter(values) if isinstance(v, torch.Tensor)), None)
