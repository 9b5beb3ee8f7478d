"""A ReLU that keeps one bit per element for backward instead of its float32 output.

In plain FP32 training the ReLU's output is the very tensor the next convolution keeps, so it costs nothing. Once that
convolution keeps integer codes, the float32 copy would be kept for the ReLU alone: memory would rise instead of fall.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.tensors import flat
from fractrain.kernels.cpu.uniform import fused_for
from fractrain.layers import tensor_hints as known_range
from fractrain.layers.eager import eager
from fractrain.layers.take_over import take_over


class CompactReLU(nn.ReLU):
    """``max(x, 0)``, same values and gradients as :class:`torch.nn.ReLU`.

    It keeps a bit per element of dense float32 tensors on the CPU with a multiple of eight elements per sample, of all
    others a boolean mask of the input's shape.

    Args:
        inplace: overwrite the input.
    """

    @classmethod
    def of(cls, relu: nn.ReLU) -> CompactReLU:
        """The same layer."""
        new = cls()
        take_over(new, relu)
        return new

    @eager
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to a tensor of any shape."""
        return rectify(x, self.inplace)


def rectify(x: torch.Tensor, inplace: bool) -> torch.Tensor:
    """What :class:`CompactReLU` does."""
    y: torch.Tensor = _ReLU.apply(x, inplace)
    return y


def kernels_for(x: torch.Tensor) -> tuple[ModuleType, bool] | None:
    """The compiled kernels that pack signs, and whether to run them on several threads; None where torch must do."""
    if x.dtype != torch.float32 or x.dim() == 0 or x.numel() % (8 * max(x.shape[0], 1)):
        return None
    return fused_for(x, "auto")


def room_for_signs(x: torch.Tensor) -> torch.Tensor:
    """A bit per element of ``x``, in rows: uint8 ``[N, elements / 8]``."""
    return blocks.empty((x.shape[0], x.numel() // x.shape[0] // 8), torch.uint8)


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, inplace: bool) -> torch.Tensor:
        fused = kernels_for(x)
        ctx.fused = fused
        if fused is None:
            y = torch.relu_(x) if inplace else torch.relu(x)
            signs = ~(y <= 0)
        else:
            module, parallel = fused
            y, out = (x, flat(x.detach())) if inplace else blocks.rows_like(x)
            signs = room_for_signs(x)
            module.relu[parallel](flat(x.detach()), out, signs.numpy())
            if inplace and not x.is_inference():
                increment_version(x)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(signs)
        ctx.layout = layout_of(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (signs,) = ctx.saved_tensors
        if ctx.fused is not None:
            return rectify_gradient(signs, grads[0], ctx.layout, ctx.fused), None
        return torch.where(signs, grads[0], grads[0].new_zeros(())), None  # not a product: 0 * inf would be nan


def layout_of(x: torch.Tensor) -> torch.memory_format:
    """The order of a dense tensor's elements in memory, and so of its signs."""
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


def rectify_gradient(
    signs: torch.Tensor, g: torch.Tensor, layout: torch.memory_format, fused: tuple[ModuleType, bool]
) -> torch.Tensor:
    """``g`` where the bit is set, else zero.

    Args:
        signs: as packed by the kernels.
        g: gradient.
        layout: of the tensor whose signs they are.
        fused: what has packed them, see :func:`kernels_for`.
    """
    samples = known_range.samples_of(g)
    g = g.contiguous(memory_format=layout)
    module, parallel = fused
    da, out = blocks.rows_like(g)
    live = known_range.all_samples(g) if samples is None else samples
    module.where[parallel](signs.numpy(), flat(g), live, out)
    if samples is not None:
        known_range.note_samples(da, samples)
    return da
