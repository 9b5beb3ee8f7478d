"""Batch normalisation over the global batch of several processes.

torch's ``SyncBatchNorm`` does the same on GPUs only. Sums are taken in float64, of values and squares that do not
depend on who holds which sample (distances from the running mean), so that statistics are the same for any number of
ranks and differ from those of one process by float32 rounding only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fractrain.distributed.ranks import Ranks
from fractrain.layers.batch_norm import CompactBatchNorm2d


class RankBatchNorm(_BatchNorm):
    """A batch norm whose training statistics are those of all ranks' samples; parameters and buffers are taken over.

    Args:
        norm: the layer whose place it takes (1-D, 2-D or 3-D).
    """

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, False, False)
        self.affine, self.track_running_stats, self._ranks = norm.affine, norm.track_running_stats, ranks
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of axes after the channels."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise ``[N, C, ...]``."""
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        out, mean, var, count = _SyncBatchNorm.apply(
            input, self.weight, self.bias, self.running_mean, self.eps, self._ranks
        )
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._track(mean, var * (count / (count - 1).clamp(min=1)))
        return out  # type: ignore[no-any-return]

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for buffer, value in ((self.running_mean, mean), (self.running_var, var)):
            assert buffer is not None
            buffer.mul_(1 - factor).add_(value.to(buffer.dtype), alpha=factor)


class _SyncBatchNorm(torch.autograd.Function):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with mean and var over all ranks, which gradients reach."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, near: torch.Tensor | None,
        eps: float, ranks: Ranks,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        axes, view = [a for a in range(x.dim()) if a != 1], [1, -1] + [1] * (x.dim() - 2)
        near = x.new_zeros(x.shape[1]) if near is None else near.clone()  # it moves before backward
        away = x - near.view(view)
        own = [away.sum(axes, dtype=torch.float64), away.square().sum(axes, dtype=torch.float64)]
        sums = ranks.sum(torch.cat([own[0].new_tensor([x.numel() // x.shape[1]]), *own]))
        count, first, second = torch.split(sums, [1, len(near), len(near)])
        shift = first / count
        mean, var = near + shift, (second / count - shift * shift).clamp(min=0)
        scale = (var + eps).rsqrt().to(x.dtype)
        normal = (x - mean.to(x.dtype).view(view)) * scale.view(view)
        out = normal if weight is None else normal * weight.view(view)
        out = out if bias is None else out + bias.view(view)
        ctx.save_for_backward(normal, scale, weight)
        ctx.ranks, ctx.axes, ctx.view, ctx.has_bias = ranks, axes, view, bias is not None
        ctx.count = count
        ctx.mark_non_differentiable(mean, var, count)
        return out, mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        normal, scale, weight = ctx.saved_tensors
        g, view = grads[0], ctx.view
        own = torch.stack([g.sum(ctx.axes, dtype=torch.float64), (g * normal).sum(ctx.axes, dtype=torch.float64)])
        means = (ctx.ranks.sum(own) / ctx.count).to(g.dtype)
        own = own.to(g.dtype)
        dx = (g - means[0].view(view) - normal * means[1].view(view)) * scale.view(view)
        dx = dx if weight is None else dx * weight.view(view)
        return dx, None if weight is None else own[1], own[0] if ctx.has_bias else None, None, None, None


def synchronise_norms(model: nn.Module, ranks: Ranks) -> None:
    """:func:`replace_norms`, unless there is a single process."""
    if ranks.is_distributed:
        replace_norms(model, ranks)


def replace_norms(model: nn.Module, ranks: Ranks) -> None:
    """Replace every plain batch norm of a model in place."""
    for name, module in list(model.named_modules()):
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, CompactBatchNorm2d):
            assert isinstance(module, _BatchNorm)
            model.set_submodule(name, RankBatchNorm(module, ranks).train(module.training))
