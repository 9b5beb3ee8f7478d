"""Max pooling that keeps a byte per output for backward.

``torch.nn.MaxPool2d`` keeps its input and an int64 index per output: in quantized training of a ResNet for ImageNet
that is the largest single part of what a step keeps, because nothing else needs that input in floating point.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.tensors import nhwc
from fractrain.kernels.cpu.uniform import fused_for
from fractrain.layers.eager import eager
from fractrain.layers.take_over import take_over

Pair = tuple[int, int]


class CompactMaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d`, same values and gradients, bit by bit.

    It keeps less on the CPU for float32 images in channels-last memory; everything else takes torch's own way.
    """

    @classmethod
    def of(cls, pool: nn.MaxPool2d) -> CompactMaxPool2d:
        """The same pooling."""
        new = cls(pool.kernel_size)
        take_over(new, pool)
        return new

    @eager
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool ``[N, C, H, W]``."""
        kernel, stride, padding = (_pair(v) for v in (self.kernel_size, self.stride, self.padding))
        plain = self.return_indices or self.ceil_mode or _pair(self.dilation) != (1, 1) or kernel[0] * kernel[1] > 256
        plain = plain or any(2 * p > k for p, k in zip(padding, kernel, strict=True))  # torch refuses it
        if plain or x.dim() != 4 or x.dtype != torch.float32 or fused_for(x, "auto") is None:
            y: torch.Tensor = super().forward(x)
        else:
            y = _MaxPool.apply(x, kernel, stride, padding)
        return y


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kernel: Pair, stride: Pair, padding: Pair) -> torch.Tensor:
        from fractrain.kernels.cpu import max_pool as fused_pool

        sizes = [(x.shape[2 + d] + 2 * padding[d] - kernel[d]) // stride[d] + 1 for d in (0, 1)]
        if min(sizes) < 1:
            return F.max_pool2d(x, kernel, stride, padding)  # says what is wrong
        y = blocks.empty((*x.shape[:2], *sizes), channels_last=True)
        places = blocks.empty(y.shape, torch.uint8, channels_last=True)
        found = fused_for(x, "auto")
        assert found is not None
        fused_pool.max_pool[found[1]](nhwc(x.detach()), kernel, stride, padding, nhwc(y), nhwc(places))
        ctx.save_for_backward(places)
        ctx.geometry = x.shape, kernel, stride, padding
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        from fractrain.kernels.cpu import max_pool as fused_pool

        (places,) = ctx.saved_tensors
        shape, kernel, stride, padding = ctx.geometry
        g = grads[0].contiguous(memory_format=torch.channels_last)
        dx = blocks.empty(shape, channels_last=True).zero_()
        found = fused_for(g, "auto")
        fused_pool.max_unpool[found is not None and found[1]](nhwc(g), nhwc(places), kernel, stride, padding, nhwc(dx))
        return dx, None, None, None


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
