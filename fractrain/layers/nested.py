"""Inputs and outputs that are tuples, lists or dicts of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_iter


def first_tensor(values: Any) -> torch.Tensor | None:
    """The first tensor in nested tuples, lists and dicts; None where there is none."""
    return next((v for v in tree_iter(values) if isinstance(v, torch.Tensor)), None)


def call_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by place and by name from example inputs: a tensor, a tuple of arguments, or a dict of them by name."""
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    return args, inputs if isinstance(inputs, dict) else {}
