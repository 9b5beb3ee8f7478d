"""The slow twin of the package: its layers and gated blocks done plainly, whatever the method and the model.

Nothing is shared, kept, skipped or done on codes: every use of a layer quantizes its own operands with plain torch
operations, torch's autograd does the products, and a gated block runs every candidate in full on the whole batch and
sums the outputs times their mask. What a method is (formats, widths, names of the random numbers) stays the package's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fractrain.layers.base import Backward, QuantLayer
from fractrain.layers.batch_norm import CompactBatchNorm2d
from fractrain.layers.convert import quant_layers
from fractrain.layers.matmul import QuantMatmul
from fractrain.layers.max_pool import CompactMaxPool2d
from fractrain.layers.relu import CompactReLU
from fractrain.layers.state import CandidateScope
from fractrain.methods.gated_block import GatedBlock
from fractrain.methods.select import per_sample
from fractrain.numerics.backend import Quantized
from fractrain.numerics.formats import PerTile
from fractrain.numerics.precision import Operand
from fractrain.numerics.quantize import quantize_reference
from fractrain.numerics.running_range import update_range
from fractrain.numerics.stochastic_rounding import NoiseKey


def on_grid(x: torch.Tensor, op: Operand, noise: NoiseKey | None, limits: Any = None) -> torch.Tensor:
    """Quantized values by the plain path; each sample by itself where it has a width of its own."""
    if op.is_float:
        return x
    limits = op.format.limits(x, "reference") if limits is None else limits
    if isinstance(op.bits, int) or isinstance(op.format.granularity, PerTile):
        return quantize_reference(x, op.format.grid(limits, op.bits, x), noise, 0)[0]
    rows = []
    for i, bits in enumerate(op.bits.tolist()):
        own = None if noise is None else NoiseKey(noise.k0, noise.k1, noise.base + i * x[0].numel())
        grid = op.format.grid(limits, max(bits, 2), x[i : i + 1])
        rows.append(quantize_reference(x[i : i + 1], grid, own, 0)[0] * bool(bits))
    return torch.cat(rows)


def products_of(
    op: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    gc_a: torch.Tensor, eb_b: torch.Tensor, e_eb: torch.Tensor, e_gc: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """EB and GC of a product ``op(a, b)``, by torch's autograd."""
    with torch.enable_grad():
        a, b = gc_a.detach().requires_grad_(), eb_b.detach().requires_grad_()
        y = op(a, b)
        (da,) = torch.autograd.grad(y, a, e_eb, retain_graph=True)
        (db,) = torch.autograd.grad(y, b, e_gc)
    return da, db


class _TwinProducts(torch.autograd.Function):
    """FW, EB and GC of one use of a layer; ``op`` turns quantized operands into the product."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, layer: QuantLayer, operands: Any, op: Any) -> torch.Tensor:
        fw_a, fw_b, gc_a, eb_b = operands
        ctx.layer, ctx.precision, ctx.op, ctx.scope = layer, layer.effective(layer.precision), op, layer.state.scope
        ctx.save_for_backward(a.clone(), b.clone(), gc_a, eb_b)
        y: torch.Tensor = op(fw_a, fw_b)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        layer, p = ctx.layer, ctx.precision
        a, b, gc_a, eb_b = ctx.saved_tensors
        g = grads[0]
        seen = g.reshape(g.shape[0], -1, g.shape[-1]) if layer.paired else g
        outer, layer.state.scope = layer.state.scope, ctx.scope
        try:
            one = p.eb_e.same_as(p.gc_e)
            keys = [layer._noise(op, "E" if one else n, seen) for op, n in ((p.eb_e, "E.eb"), (p.gc_e, "E.gc"))]
        finally:
            layer.state.scope = outer
        e_eb, e_gc = (on_grid(seen, e, k).reshape(g.shape) for e, k in zip((p.eb_e, p.gc_e), keys, strict=True))
        da, db = products_of(ctx.op, gc_a, eb_b, e_eb, e_gc)
        if not layer.paired and not p.fw_w.is_float:
            db = p.fw_w.format.backward_transform(b, db)
        if layer.backward_observer is not None:
            known = None
            if not p.gc_a.is_float:
                grid = p.gc_a.format.compact_grid(p.gc_a.format.limits(a, "reference"), p.gc_a.bits, a)
                known = Quantized(a.new_empty(0), grid, "reference")
            wanted = ctx.needs_input_grad
            layer.backward_observer(layer, Backward(g, known, da if wanted[0] else None, db if wanted[1] else None))
        return da, db, None, None, None


class _Bias(torch.autograd.Function):
    """Adds the bias; its gradient is the sum of the error as GC reads it."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, bias: torch.Tensor, layer: QuantLayer) -> torch.Tensor:
        ctx.layer, ctx.op, ctx.scope = layer, layer.precision.gc_e, layer.state.scope
        ctx.name = "E" if layer.precision.eb_e.same_as(ctx.op) else "E.gc"
        ctx.axis = 1 if y.dim() == 4 else -1
        return y + (bias.view(1, -1, 1, 1) if y.dim() == 4 else bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        state, g = ctx.layer.state, grads[0]
        outer, state.scope = state.scope, ctx.scope
        try:
            key = ctx.layer._noise(ctx.op, ctx.name, g)
        finally:
            state.scope = outer
        return g, on_grid(g, ctx.op, key).movedim(ctx.axis, 0).flatten(1).sum(1), None


def _measured(layer: QuantLayer, x: torch.Tensor, op: Operand, name: str) -> torch.Tensor:
    """An activation operand, and its running range as it is documented."""
    x = x.detach()
    if op.is_float:
        return x
    limits: Any = op.format.limits(x, "reference")
    running = None if op.running is None else layer.running_range(name)
    if running is not None and layer.training and name in ("fw_a", "fw_w"):
        update_range(running, limits, op.running)  # type: ignore[arg-type]
    elif running is not None and not layer.training and int(running[2]):
        limits = (running[0].clone(), running[1].clone())
    return on_grid(x, op, layer._noise(op, "A" if name in ("fw_a", "gc_a") else "B", x), limits)


def _layer(layer: QuantLayer, x: torch.Tensor) -> torch.Tensor:
    p = layer.precision
    a = _measured(layer, x, p.fw_a, "fw_a")
    kept = a if p.gc_a.same_as(p.fw_a) or not layer.training else _measured(layer, x, p.gc_a, "gc_a")
    weights = []
    for op in (p.fw_w, p.eb_w):
        w = layer.weight.detach() if op.is_float else op.format.forward_transform(layer.weight.detach())
        weights.append(on_grid(w, op, layer._noise(op, "W", w)))
    operands = (a, weights[0], kept, weights[1])
    y = _TwinProducts.apply(x, layer.weight, layer, operands, lambda a, w: layer.product(a, w, None))
    return y if layer.bias is None else _Bias.apply(y, layer.bias, layer)  # type: ignore[no-any-return]


def _pair(layer: QuantMatmul, p: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    first, second = (t.reshape(t.shape[0], -1, t.shape[-1]) for t in (a, b))
    now = _measured(layer, first, p.fw_a, "fw_a"), _measured(layer, second, p.fw_w, "fw_w")
    kept = now
    if layer.training and not p.gc_a.same_as(p.fw_a):
        kept = _measured(layer, first, p.gc_a, "gc_a"), _measured(layer, second, p.eb_w, "eb_w")
    shape = layer._operand  # of this use; there may be another before its backward pass

    def op(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        layer._operand = shape
        return layer.product(a, b, None)

    return _TwinProducts.apply(first, second, layer, (*now, *kept), op)  # type: ignore[no-any-return]


@contextmanager
def _unchanged(block: nn.Module) -> Iterator[None]:
    """Running ranges and statistics stay as they are."""
    before = [b.clone() for b in block.buffers()]
    yield
    for b, old in zip(block.buffers(), before, strict=True):
        b.data.copy_(old)


def _alone(block: GatedBlock, x: torch.Tensor, index: int, precision: Any) -> tuple[torch.Tensor, list[Any]]:
    """The block in full in one precision per layer, sharing nothing."""
    for layer in quant_layers(block.block):
        layer.precision = precision(layer)
    block.state.scope = scope = CandidateScope(index, x, ("alone", index), {})
    try:
        return block.block(x), scope.sites
    finally:
        block.state.scope = None


def _every_candidate(block: GatedBlock, x: torch.Tensor) -> tuple[list[torch.Tensor], list[Any]]:
    outs, before = [], set()
    sites: list[Any] = []
    for k, c in enumerate(block.candidates):
        again = block.training and (c.a, c.w) in before and not block.every_pass
        before.add((c.a, c.w))
        with _unchanged(block.block) if again else nullcontext():  # once per distinct forward precision
            y, ran = _alone(block, x, k, lambda layer, k=k: block._precision(layer, k))
        outs.append(y)
        sites = sites or ran
    return outs, sites


def _mixed(mask: torch.Tensor, outs: list[torch.Tensor]) -> torch.Tensor:
    columns = (m.view(-1, *([1] * (outs[0].dim() - 1))) for m in mask.t())
    return sum((m * y for m, y in zip(columns, outs, strict=True)), torch.zeros(()))


def _chosen(mask: torch.Tensor, choice: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return mask.gather(1, choice[:, None]).view(-1, *([1] * (out.dim() - 1))) * out


def _trained(
    block: GatedBlock, call: Any, x: torch.Tensor, mask: torch.Tensor, choice: torch.Tensor, counts: list[int]
) -> tuple[Callable[[], torch.Tensor], list[Any]]:
    outs, sites = _every_candidate(block, x)
    return lambda: _mixed(mask, outs), sites


def _evaluated(
    block: GatedBlock, call: Any, x: torch.Tensor, choice: torch.Tensor, counts: list[int]
) -> tuple[Callable[[], torch.Tensor], list[Any]]:
    outs, sites = _every_candidate(block, x)
    return lambda: _mixed(F.one_hot(choice, len(outs)).to(x), outs), sites


def _selected(
    block: GatedBlock, call: Any, x: torch.Tensor, mask: torch.Tensor, choice: torch.Tensor
) -> tuple[Callable[[], torch.Tensor], list[Any]]:
    mixed = per_sample(block.precisions, choice)
    y, sites = _alone(block, x, 0, lambda layer: block._held(layer) or mixed)
    return lambda: _chosen(mask, choice, y), sites


def use_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the twin in the place of all fast paths, for models made before or after."""
    monkeypatch.setattr(QuantLayer, "_quantized", _layer)
    monkeypatch.setattr(QuantMatmul, "_quantized_pair", _pair)
    monkeypatch.setattr(QuantMatmul, "again", lambda layer: None)
    monkeypatch.setattr(CompactReLU, "forward", lambda relu, x: F.relu(x))
    monkeypatch.setattr(CompactBatchNorm2d, "rectified", lambda norm, x: F.relu(norm(x)))
    monkeypatch.setattr(CompactMaxPool2d, "forward", nn.MaxPool2d.forward)
    monkeypatch.setattr(GatedBlock, "_train", _trained)
    monkeypatch.setattr(GatedBlock, "_train_selected", _selected)
    monkeypatch.setattr(GatedBlock, "_evaluate", _evaluated)


def restored_in_the_dtype_of_the_grid(codes: Quantized) -> torch.Tensor:
    """What :meth:`Quantized.values` gives, in float64 where the grid is: the package restores float32."""
    g = codes.grid() if callable(codes.grid) else codes.grid
    g = replace(g) if g.tile is None else g.full(codes.codes.shape)
    shift = 0.0 if codes.codes.dtype == torch.uint8 else 32768.0
    return (codes.codes.to(g.scale.dtype) + (g.qmin + shift)) * g.scale + g.offset
