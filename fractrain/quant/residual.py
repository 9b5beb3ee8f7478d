"""The end of a residual block, ``relu(f(x) + shortcut(x))``, as a layer, which quantized models do in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fractrain.quant import blocks
from fractrain.quant.kernels import flat, fused_for
from fractrain.quant.relu import rectify_gradient


class SumReLU(nn.Module):
    """``relu(y + shortcut)`` of two tensors of one shape, as PyTorch does it."""

    def forward(self, y: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Add and rectify."""
        return torch.relu_(y + shortcut)


class CompactSumReLU(SumReLU):
    """:class:`SumReLU`, same values and gradients bit by bit; keeps a byte per element for backward, not four."""

    def forward(self, y: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Add and rectify."""
        if not _alike(y, shortcut):
            return super().forward(y, shortcut)
        out: torch.Tensor = _SumReLU.apply(y, shortcut)
        return out


def _alike(y: torch.Tensor, shortcut: torch.Tensor) -> bool:
    """Whether the compiled kernel reads the two side by side."""
    same = y.dtype == shortcut.dtype == torch.float32 and y.shape == shortcut.shape and y.stride() == shortcut.stride()
    return same and fused_for(y, "auto") is not None


class _SumReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        fused = fused_for(y, "auto")
        assert fused is not None
        module, parallel = fused
        out = blocks.empty_like(y)
        positive = blocks.empty_like(y, dtype=torch.bool)
        module.sum_relu[parallel](flat(y.detach()), flat(shortcut.detach()), flat(out), flat(positive))
        ctx.save_for_backward(positive)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (positive,) = ctx.saved_tensors
        da = rectify_gradient(positive, grads[0])
        return da, da
