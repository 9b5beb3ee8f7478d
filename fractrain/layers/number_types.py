"""Types that products of quantized operands are computed in, whatever the model and autocast say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

WIDE = (torch.float32, torch.float64)
Function = TypeVar("Function", bound=Callable[..., Any])


def widened(x: torch.Tensor) -> torch.Tensor:
    """A float tensor in float32, or in float64 if that is its type."""
    return x if x.dtype in WIDE else x.float()


def without_autocast(function: Function) -> Function:
    """Run a function with autocast off; its last positional argument is a tensor, which says for which device."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        device = args[-1].device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):  # meta has none
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*args)

    return cast(Function, run)


def in_wide_types(forward: Function) -> Function:
    """Compute ``forward(self, x)`` of a module in a wide type; its output has the type of ``x``."""

    @functools.wraps(forward)
    @without_autocast
    def run(self: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = forward(self, x) if x.dtype in WIDE else forward(self, x.float()).to(x.dtype)
        return y

    return cast(Function, run)
