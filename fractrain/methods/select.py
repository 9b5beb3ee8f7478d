"""Straight-through selection: a gate's hard choice forward, and backward what its mask and the candidates get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.tensors import flat
from fractrain.kernels.cpu.uniform import fused_for
from fractrain.layers import tensor_hints as known_range
from fractrain.numerics.backend import Kernels
from fractrain.numerics.precision import Precision


def mix(mask: torch.Tensor, choice: torch.Tensor, outs: list[torch.Tensor], kernels: Kernels = "auto") -> torch.Tensor:
    """Take each sample from the candidate that was chosen for it.

    Value: row n of ``outs[choice[n]]``; d mask_k = <dL/d out, out_k> per sample; d out_k = mask_k dL/d out.

    Args:
        mask: ``[N, K]``, one-hot.
        choice: ``[N]``, the column of the one.
        outs: K tensors ``[N, ...]`` of one shape; those that share memory are kept once.
        kernels: for the inner products; what only moves values is the same bits by any.
    """
    out: torch.Tensor = _Mix.apply(mask, choice, kernels, *outs)
    return out


def chosen_only(mask: torch.Tensor, choice: torch.Tensor, out: torch.Tensor, kernels: Kernels = "auto") -> torch.Tensor:
    """Return ``out`` ``[N, ...]``, every sample already at its choice, and give the mask the gradient that is known.

    d mask_k = <dL/d out, out> per sample for the chosen k, and zero for the others, whose outputs were not computed.
    """
    y: torch.Tensor = _Chosen.apply(mask, choice, kernels, out)
    return y


def per_sample(precisions: Sequence[Precision], choice: torch.Tensor) -> Precision:
    """One precision for a batch whose samples have chosen from ``precisions``: A and E get a width per sample.

    Args:
        precisions: of constant widths, alike but for the widths of A and E; each tensor has one width for both of its
            products.
        choice: ``[N]``, index of each sample's.
    """
    first = precisions[0]
    widths = torch.tensor([[p.fw_a.widest for p in precisions], [p.eb_e.widest for p in precisions]])
    a, e = widths.to(choice.device)[:, choice]
    return first.with_bits(a=a, e=e)


def row_products(g: torch.Tensor, o: torch.Tensor, kernels: Kernels = "auto") -> torch.Tensor:
    """Inner product per sample of two tensors ``[N, ...]``, ``[N]``; one pass over memory in either layout."""
    alike = g.dtype == o.dtype == torch.float32 and g.stride() == o.stride()
    fused = fused_for(g, kernels) if alike else None
    if fused is not None:
        module, parallel = fused
        out = torch.empty(g.shape[0])
        module.dot_rows[parallel](flat(g.detach()), flat(o.detach()), out.numpy())
        return out
    if g.dim() == 4:
        g, o = g.permute(0, 2, 3, 1), o.permute(0, 2, 3, 1)
    products: torch.Tensor = torch.linalg.vecdot(g.reshape(g.shape[0], -1), o.reshape(o.shape[0], -1))
    return products


def _pick(choice: torch.Tensor, outs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Row n of ``outs[choice[n]]``, all of one shape."""
    alike = outs[0].dtype == torch.float32 and all(o.stride() == outs[0].stride() for o in outs)
    fused = fused_for(outs[0], "auto") if alike else None
    if fused is None:
        out = outs[0].clone()
        for k in range(1, len(outs)):  # all of them, lest a device be asked which samples chose k
            out = torch.where((choice == k).view(-1, *([1] * (out.dim() - 1))), outs[k], out)
        return out
    module, parallel = fused
    out, chosen = blocks.empty_like(outs[0]), choice.numpy()
    for k, o in enumerate(outs):
        module.take_rows[parallel](chosen, k, flat(o.detach()), flat(out))
    return out


def _only(choice: torch.Tensor, k: int, g: torch.Tensor) -> torch.Tensor:
    """``g`` for the samples that chose ``k``, else zero."""
    fused = fused_for(g, "auto") if g.dtype == torch.float32 else None
    if fused is None:
        chosen = (choice == k).view(-1, *([1] * (g.dim() - 1)))
        return torch.where(chosen, g, g.new_zeros(()))
    module, parallel = fused
    out, live = blocks.empty_like(g), (choice.numpy() == k).astype(np.uint8)
    module.only_rows[parallel](live, flat(g), flat(out))
    known_range.note_samples(out, live)
    return out


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mask: torch.Tensor, choice: torch.Tensor, kernels: Kernels, *outs: torch.Tensor
    ) -> torch.Tensor:
        ctx.kernels = kernels
        places: dict[int, int] = {}
        ctx.place = [places.setdefault(o.data_ptr(), len(places)) for o in outs]
        ctx.save_for_backward(choice, *(outs[ctx.place.index(i)] for i in range(len(places))))
        return _pick(choice, outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        choice, *distinct = ctx.saved_tensors
        g = grads[0]
        products = [row_products(g, o, ctx.kernels) for o in distinct] if ctx.needs_input_grad[0] else []
        columns = torch.stack([products[i] for i in ctx.place], dim=1) if products else None
        need = ctx.needs_input_grad[3:]
        return columns, None, None, *[_only(choice, k, g) if n else None for k, n in enumerate(need)]


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mask: torch.Tensor, choice: torch.Tensor, kernels: Kernels, out: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(choice, out)
        ctx.shape, ctx.kernels = mask.shape, kernels
        return out.clone()  # `out` is kept: what follows may change its input in place

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        choice, out = ctx.saved_tensors
        g = grads[0]
        columns = None
        if ctx.needs_input_grad[0]:
            columns = g.new_zeros(ctx.shape).scatter_(1, choice[:, None], row_products(g, out, ctx.kernels)[:, None])
        return columns, None, None, g
