"""A ReLU that keeps one byte per element for backward instead of its float32 output.

In plain FP32 training the ReLU's output is the very tensor the next convolution keeps, so it costs nothing. Once that
convolution keeps integer codes, the float32 copy would be kept for the ReLU alone: memory would rise instead of fall.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.graph import increment_version

from fractrain.quant import blocks, known_range
from fractrain.quant.kernels import flat, fused_for


class CompactReLU(nn.Module):
    """``max(x, 0)``, same values and gradients as :class:`torch.nn.ReLU`; keeps a boolean mask of the input's shape.

    Args:
        inplace: overwrite the input.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to a tensor of any shape."""
        if known_range.rectified(x):  # by the BatchNorm before it
            return x
        y: torch.Tensor = _ReLU.apply(x, self.inplace)
        return y


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, inplace: bool) -> torch.Tensor:
        fused = fused_for(x, "auto") if x.dtype == torch.float32 else None
        if fused is None:
            y = torch.relu_(x) if inplace else torch.relu(x)
            positive = ~(y <= 0)
        else:
            module, parallel = fused
            y = x if inplace else blocks.empty_like(x)
            positive = blocks.empty_like(x, dtype=torch.bool)
            module.relu[parallel](flat(x.detach()), flat(y.detach()), flat(positive))
            if inplace:
                increment_version(x)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(positive)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (positive,) = ctx.saved_tensors
        return rectify_gradient(positive, grads[0]), None


def rectify_gradient(positive: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """``g`` where the mask is true, else zero."""
    fused = fused_for(g, "auto") if g.dtype == torch.float32 and g.stride() == positive.stride() else None
    if fused is None:
        return torch.where(positive, g, g.new_zeros(()))  # not a product: 0 * inf would be nan
    module, parallel = fused
    da = blocks.empty_like(g)
    module.where[parallel](flat(positive), flat(g), flat(da))
    return da
