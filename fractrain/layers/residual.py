"""The end of a residual block, ``relu(f(x) + shortcut(x))``, as a layer, which quantized models do in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.tensors import flat
from fractrain.layers.eager import eager
from fractrain.layers.relu import CompactReLU, kernels_for, layout_of, rectify_gradient, room_for_signs
from fractrain.layers.state import QuantState
from fractrain.layers.take_over import take_over


class SumReLU(nn.Module):
    """``relu(y + shortcut)`` of two tensors of one shape, as PyTorch does it."""

    def forward(self, y: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Add and rectify."""
        return torch.relu_(y + shortcut)


class CompactSumReLU(SumReLU):
    """:class:`SumReLU`, same values and gradients bit by bit; keeps for backward what :class:`CompactReLU` keeps."""

    def __init__(self, state: QuantState | None = None, plain: SumReLU | None = None) -> None:
        super().__init__()
        if plain is not None:
            take_over(self, plain)
        self._state = state or QuantState()
        self._relu = CompactReLU(inplace=True)

    @eager
    def forward(self, y: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Add and rectify."""
        if not _alike(y, shortcut):
            return self._relu(y + shortcut)  # type: ignore[no-any-return]
        out: torch.Tensor = _SumReLU.apply(y, shortcut)
        return out


def _alike(y: torch.Tensor, shortcut: torch.Tensor) -> bool:
    """Whether the compiled kernel reads the two side by side."""
    same = y.dtype == shortcut.dtype == torch.float32 and y.shape == shortcut.shape and y.stride() == shortcut.stride()
    return same and kernels_for(y) is not None


class _SumReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        fused = kernels_for(y)
        assert fused is not None
        module, parallel = fused
        out, rows = blocks.rows_like(y)
        signs = room_for_signs(y)
        module.sum_relu[parallel](flat(y.detach()), flat(shortcut.detach()), rows, signs.numpy())
        ctx.save_for_backward(signs)
        ctx.layout, ctx.fused = layout_of(y), fused
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (signs,) = ctx.saved_tensors
        da = rectify_gradient(signs, grads[0], ctx.layout, ctx.fused)
        return da, da
