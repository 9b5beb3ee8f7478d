"""Causal softmax that keeps nothing for backward where its input can be made again from integer codes.

Softmax keeps its output, a float32 of the size of the scores (N x heads x T x T): in quantized training that would be
most of what a Transformer layer keeps, and more than fused attention keeps in floating point. The scores are the
product of two operands whose codes are kept anyway, so backward multiplies them again: the same values, one product
more. That product is a matter of memory, not of the method: the ledger does not count it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Remake:
    """How to make a tensor again: ``build(*tensors)``."""

    tensors: tuple[torch.Tensor, ...]
    build: Callable[..., torch.Tensor]


def causal_softmax(scores: torch.Tensor, remake: Remake | None = None) -> torch.Tensor:
    """Softmax over the last axis of ``[..., T, T]``; what lies after the diagonal gets probability 0.

    Args:
        scores: scores, float.
        remake: gives exactly the scores again; None: the output is kept for backward.
    """
    out: torch.Tensor = _CausalSoftmax.apply(scores, remake)
    return out


def _probabilities(scores: torch.Tensor) -> torch.Tensor:
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return torch.softmax(scores.masked_fill(later, -math.inf), dim=-1)


class _CausalSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, remake: Remake | None) -> torch.Tensor:
        p = _probabilities(scores)
        ctx.build = None if remake is None else remake.build
        ctx.save_for_backward(*((p,) if remake is None else remake.tensors))
        return p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        p = ctx.saved_tensors[0] if ctx.build is None else _probabilities(ctx.build(*ctx.saved_tensors))
        g = grads[0]
        out: torch.Tensor = torch.ops.aten._softmax_backward_data(g, p, -1, g.dtype)
        return out, None
