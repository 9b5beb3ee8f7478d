"""Clipping that keeps a byte per element for backward, where ``torch.clamp`` keeps its float32 input.

At the limits themselves the gradient passes, as in TensorFlow's ``clip_by_value`` and earlier releases of PyTorch.
Later ones (seen in 2.15) give zero there, or half where the limits are tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def clip(x: torch.Tensor, low: torch.Tensor | float, high: torch.Tensor | float) -> torch.Tensor:
    """``x.clamp(low, high)``; the gradient of ``x`` passes from ``low`` to ``high``, and the limits have none.

    Args:
        x: float tensor of any shape.
        low, high: limits, numbers or 0-dim tensors.
    """
    y: torch.Tensor = _Clip.apply(x, low, high)
    return y


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
        ctx.save_for_backward((x >= low) & (x <= high))
        return x.clamp(low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grads[0], grads[0].new_zeros(())), None, None  # not a product: 0 * inf is nan
