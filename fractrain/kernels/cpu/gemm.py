"""PyTorch's matrix products, with results in blocks of memory of their own (:mod:`fractrain.kernels.cpu.memory`)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fractrain.kernels.cpu import memory as blocks


def linear(a: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``a w^T + bias``: ``[..., K]``, ``[C, K]`` and ``[C]`` to ``[..., C]``."""
    if not _ours(a, w) or (bias is not None and torch.is_grad_enabled() and bias.requires_grad):
        return F.linear(a, w, bias)
    out = blocks.empty((*a.shape[:-1], w.shape[0]))
    rows, flat = a.reshape(-1, a.shape[-1]), out.view(-1, w.shape[0])
    if bias is None:
        torch.mm(rows, w.t(), out=flat)
    else:
        torch.addmm(bias, rows, w.t(), out=flat)
    return out


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a b``: ``[..., R, K]`` and ``[..., K, C]`` with the same leading axes, or ``[..., K]`` and ``[K, C]``."""
    if not _ours(a, b) or (b.dim() != 2 and a.shape[:-2] != b.shape[:-2]):
        return a @ b
    out = blocks.empty((*a.shape[:-1], b.shape[-1]))
    if b.dim() == 2:
        torch.mm(a.reshape(-1, a.shape[-1]), b, out=out.view(-1, b.shape[-1]))
    else:
        torch.bmm(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), out=out.view(-1, *out.shape[-2:]))
    return out


def _ours(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both are float32 on the CPU and no graph is being made (its operations cannot be told where to write)."""
    if torch.compiler.is_compiling():
        return False
    plain = (
        a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu" and min(a.dim(), b.dim()) > 1
    )
    return plain and not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
