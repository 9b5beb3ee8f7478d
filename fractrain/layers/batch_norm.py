"""BatchNorm between quantized layers, as one pass for its statistics and one for its output; with a ReLU if wanted.

PyTorch's own passes over memory several times for either, and keeps a ReLU's output or mask as well as BatchNorm's
input. Here backward makes the ReLU's mask anew from that input, and the range of what comes out is known to the next
quantizer (:mod:`fractrain.layers.tensor_hints`). A ReLU is done here only for who asks for both
(:func:`fractrain.layers.norm_relu.norm_relu`).

Same function and same gradients up to the rounding of float32: sums are taken in float64 above a few rows, and do not
depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.tensors import flat
from fractrain.kernels.cpu.uniform import fused_for
from fractrain.layers import tensor_hints as known_range
from fractrain.layers.eager import eager
from fractrain.layers.recomputation import recomputing
from fractrain.layers.relu import rectify
from fractrain.layers.state import QuantState
from fractrain.layers.take_over import take_over

LINE = 512  # elements of a line, at most, where it holds more than one pixel
PARTS = 32
MIN_ROWS = 64  # of a part
ONE = np.ones(1, np.uint8)  # all lines are of one live sample


class CompactBatchNorm2d(nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` with compiled kernels for training on float32 images on the CPU.

    Everything else (evaluation, other types and layouts, ``kernels=reference``) is PyTorch's own.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, state: QuantState) -> CompactBatchNorm2d:
        """The same layer: parameters, buffers and hooks are taken over."""
        new = cls(norm.num_features, affine=False, track_running_stats=False)
        take_over(new, norm)
        new._state = state
        return new

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._state = QuantState()

    @eager
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise ``[N, C, H, W]``."""
        fused = self._kernels(input)
        return self._torch(input) if fused is None else self._normalise(input, float("-inf"), fused)

    @eager
    def rectified(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``[N, C, H, W]`` and apply a ReLU."""
        fused = self._kernels(x)
        return rectify(self._torch(x), inplace=True) if fused is None else self._normalise(x, 0.0, fused)

    def _torch(self, x: torch.Tensor) -> torch.Tensor:
        """PyTorch's own; like the compiled one it leaves the running statistics alone when a pass is run again."""
        if self.training and recomputing():
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(x)

    def _normalise(self, x: torch.Tensor, floor: float, fused: tuple[ModuleType, bool]) -> torch.Tensor:
        """By compiled kernels; what is below ``floor`` is raised to it."""
        found = BatchStatistics()
        y: torch.Tensor = _CompactBatchNorm.apply(x, self.weight, self.bias, self.eps, floor, found, fused)
        known_range.note(y, *found.limits)
        if self.training and self.track_running_stats and not recomputing():
            self._track(found)
        return y

    def _kernels(self, x: torch.Tensor) -> tuple[ModuleType, bool] | None:
        """The compiled kernels, and whether to run them on several threads; None where PyTorch does it."""
        own_statistics = self.training or self.running_mean is None
        if not own_statistics or x.dim() != 4 or x.dtype != torch.float32 or x.shape[1] != self.num_features:
            return None
        if x.shape[0] * x.shape[2] * x.shape[3] < 2:  # PyTorch says what is wrong
            return None
        found = fused_for(x, self._state.kernels)
        if found is None:
            return None
        from fractrain.kernels.cpu import batch_norm as fused_norm

        return fused_norm, found[1]

    def _track(self, found: BatchStatistics) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if factor == 0.0:
            return
        for buffer, value in zip((self.running_mean, self.running_var), found.running, strict=True):
            assert buffer is not None
            buffer.mul_(1 - factor).add_(torch.from_numpy(value).to(buffer.dtype), alpha=factor)


@dataclass
class BatchStatistics:
    """What one pass has found.

    Attributes:
        running: mean and unbiased variance per channel, float32 ``[2, C]``.
        limits: of the output; nan where something was not finite.
    """

    running: Any = None
    limits: tuple[float, float] = (float("nan"), float("nan"))


class _CompactBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, floor: float,
        found: BatchStatistics, fused: tuple[ModuleType, bool],
    ) -> torch.Tensor:  # fmt: skip
        kernels, parallel = fused
        y, out = blocks.rows_like(x)
        channels = columns = x.shape[1]
        while 2 * columns <= LINE and x.numel() % (2 * columns) == 0:  # pixels side by side, as the kernels want it
            columns *= 2
        parts = max(1, min(PARTS, x.numel() // columns // MIN_ROWS))
        gain = np.ones(channels, np.float32) if weight is None else weight.detach().numpy()
        offset = np.zeros(channels, np.float32) if bias is None else bias.detach().numpy()
        found.running = np.empty((2, channels), np.float32)
        own, along = np.empty((2, channels)), np.empty((3, columns), np.float32)
        count, finite, low, high = kernels.normalise[parallel](
            flat(x.detach()).reshape(-1, columns), parts, gain, offset, eps, np.float32(floor), found.running, own,
            along, out.reshape(-1, columns),
        )  # fmt: skip
        if finite:
            found.limits = low, high
        ctx.save_for_backward(x)
        ctx.fused, ctx.parts, ctx.found = fused, parts, (np.float32(floor), count, own, along)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        kernels, parallel = ctx.fused
        live = known_range.samples_of(grads[0])
        g = grads[0].contiguous(memory_format=torch.channels_last)
        floor, count, own, along = ctx.found
        lines = flat(x).reshape(-1, along.shape[1])
        if live is None or lines.shape[0] % x.shape[0]:  # a line of pixels of several samples
            live = ONE
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        dx, out = blocks.rows_like(x) if want_x else (None, np.empty((0, 1), np.float32))
        affine = np.empty((2, x.shape[1]), np.float32)
        finite, low, high = kernels.gradients[parallel](
            lines, flat(g).reshape(lines.shape), ctx.parts, live, floor, count, own, along, affine,
            out.reshape(-1, lines.shape[1]),
        )  # fmt: skip
        if dx is not None and finite:
            known_range.note(dx, low, high)
        dw = torch.from_numpy(affine[0]) if want_weight else None
        return dx, dw, torch.from_numpy(affine[1]) if want_bias else None, None, None, None, None
