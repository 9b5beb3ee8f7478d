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


def row_products(g: torch.Tensor, outs: Sequence[torch.Tensor], kernels: Kernels = "auto") -> torch.Tensor:
    """Inner products per sample of ``g`` with each of K tensors, all ``[N, ...]``: ``[K, N]``; in either layout."""
    alike = {(o.dtype, o.stride()) for o in outs} == {(torch.float32, g.stride())} and g.dtype == torch.float32
    fused = fused_for(g, kernels) if alike else None
    if fused is not None:
        module, parallel = fused
        errors, products = flat(g.detach()), np.empty((len(outs), len(g)), np.float32)
        for o, row in zip(outs, products, strict=True):
            module.dot_rows[parallel](errors, flat(o.detach()), row)
        return torch.from_numpy(products)
    g = _rows(g)
    return torch.stack([torch.linalg.vecdot(g, _rows(o)) for o in outs])


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``[N, values]``, of images pixel by pixel."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).reshape(x.shape[0], -1)


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
    out, rows = blocks.rows_like(outs[0])
    for k, o in enumerate(outs):
        module.take_rows[parallel](choice.numpy(), k, flat(o.detach()), rows)
    return out


def _shares(choice: torch.Tensor, wanted: Sequence[bool], g: torch.Tensor) -> list[torch.Tensor | None]:
    """``g`` for the samples that chose k, else zero, for every k that is wanted."""
    fused = fused_for(g, "auto") if g.dtype == torch.float32 else None
    out: list[torch.Tensor | None] = [None] * len(wanted)
    if fused is None:
        for k in (k for k, want in enumerate(wanted) if want):
            chosen = (choice == k).view(-1, *([1] * (g.dim() - 1)))
            out[k] = torch.where(chosen, g, g.new_zeros(()))
        return out
    module, parallel = fused
    errors, chosen_by = flat(g), choice.numpy()
    for k, want in enumerate(wanted):
        if want:
            live, (share, rows) = (chosen_by == k).astype(np.uint8), blocks.rows_like(g)
            module.only_rows[parallel](live, errors, rows)
            known_range.note_samples(share, live)
            out[k] = share
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
        columns = None
        if ctx.needs_input_grad[0]:
            products = row_products(g, distinct, ctx.kernels).unbind()
            columns = torch.stack(list(map(products.__getitem__, ctx.place)), dim=1)  # no index that waits for a GPU
        return columns, None, None, *_shares(choice, ctx.needs_input_grad[3:], g)


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
            columns = g.new_zeros(ctx.shape).scatter_(1, choice[:, None], row_products(g, [out], ctx.kernels).T)
        return columns, None, None, g
