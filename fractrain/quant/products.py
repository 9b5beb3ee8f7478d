"""The autograd function behind every quantized layer: FW, and in backward EB and GC, from quantized operands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.autograd.function import once_differentiable

from fractrain.quant.integer import Geometry
from fractrain.quant.kernels import Quantized
from fractrain.quant.pool import Term
from fractrain.quant.precision import Precision

if TYPE_CHECKING:
    from fractrain.quant.layer import QuantLayer


@dataclass
class Activation:
    """An activation operand ready for its product.

    Attributes:
        values: for FW now.
        codes: for backward.
        geometry: of the product on integer codes, where FW is to run on them.
    """

    values: torch.Tensor | None
    codes: Quantized | None
    geometry: Geometry | None = None


@dataclass(frozen=True)
class Backward:
    """What a layer has at hand in its backward pass, for :attr:`QuantLayer.backward_observer`.

    Attributes:
        error: output gradient before it is quantized.
        activation: the quantized activation that GC multiplies; None in floating point.
        da, dw: gradients of input and weight, None where not wanted.
    """

    error: torch.Tensor
    activation: Quantized | None
    da: torch.Tensor | None
    dw: torch.Tensor | None


def run_products(
    x: torch.Tensor, layer: QuantLayer, now: Activation | None, kept: Activation, known: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply the three products of a layer.

    Args:
        x: input of the layer (for autograd; its values are not read).
        layer: the layer.
        now: activation for FW, or None when ``known`` is given.
        kept: activation for GC.
        known: output that another candidate of equal forward precision has computed.
    """
    scope = layer.state.scope
    pool = None if scope is None else scope.pool
    weight = layer.weight if pool is None else pool.weights.get(id(layer), layer.weight)
    y: torch.Tensor = _Products.apply(x, weight, layer.bias, layer, now, kept, known)
    return y


class _Products(torch.autograd.Function):
    """FW now; EB and GC in backward, from quantized operands.

    What is kept for backward: the activation as integer codes (values only where GC reads it in floating point), and
    nothing of the error. The weight is quantized again only if it changed in between.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: QuantLayer,
        now: Activation | None, kept: Activation, known: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        p = layer.precision
        y = cast(torch.Tensor, known).detach() if now is None else layer.forward_product(now, p.fw_w, bias)
        ctx.layer, ctx.precision, ctx.shape = layer, p, x.shape
        s = layer.state.scope  # only its index is needed: what it shares must not live as long as the graph
        ctx.scope = None if s is None else replace(s, input=x.new_empty(0), memo={}, sites=[])
        ctx.call = 0 if s is None else len(s.sites)
        ctx.direct = s is not None and x is s.input
        ctx.has_bias = bias is not None
        # EB multiplies by the weight of this forward pass, as quantized now.
        w = layer.quantized_weight(p.eb_w, "eb_w")
        # Autograd keeps the codes: it frees them after backward even where the loss lives on, and hooks see them.
        a = kept.values if kept.codes is None else kept.codes.codes
        ctx.grid = None if kept.codes is None else (kept.codes.grid, kept.codes.kernels, kept.codes.rows)
        ctx.save_for_backward(w, weight, a if ctx.needs_input_grad[1] else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        layer: QuantLayer = ctx.layer
        p: Precision = ctx.precision
        w, master, a = ctx.saved_tensors
        layer.forget_weights()
        g = grads[0]
        if g.dim() == 4:
            g = g.contiguous(memory_format=torch.channels_last)
        want_a, want_w, want_b = ctx.needs_input_grad[:3]
        pool = None if ctx.scope is None or layer.backward_observer is not None else ctx.scope.pool
        outer, layer.state.scope = layer.state.scope, ctx.scope
        try:
            one = p.eb_e.same_as(p.gc_e)
            e_gc = layer.quantized_error(g, p.gc_e, "E" if one else "E.gc") if want_w or want_b or one else g
            e_eb = e_gc if one else (layer.quantized_error(g, p.eb_e, "E.eb") if want_a else g)
        finally:
            layer.state.scope = outer
        kept = None if ctx.grid is None or a is None else Quantized(a, *ctx.grid)
        db = layer.bias_gradient(e_gc) if want_b and ctx.has_bias else None
        if pool is not None and one and (ctx.direct or ctx.scope.sharing > 1):
            later_a = want_a and ctx.direct  # an input of its own must have its gradient now
            if later_a or want_w:
                form = None if p.fw_w.is_float else p.fw_w.format
                term = Term(e_gc, a if kept is None else kept, w, master, form, ctx.shape, later_a, want_w)
                pool.add(layer, ctx.call, (ctx.scope.values, p.gc_a.bits, p.gc_a.format, id(w)), term)
            want_a, want_w, a = want_a and not later_a, False, None
        if want_w and kept is not None:
            a = kept.values()
        if not (want_a or want_w):
            da = dw = None
        elif one:
            da, dw = layer.backward_products(e_eb, a, w, ctx.shape, want_a, want_w)
        else:
            da, _ = layer.backward_products(e_eb, None, w, ctx.shape, want_a, False)
            _, dw = layer.backward_products(e_gc, a, w, ctx.shape, False, want_w)
        if dw is not None and not p.fw_w.is_float:
            dw = p.fw_w.format.backward_transform(master.detach(), dw)
        if layer.backward_observer is not None:
            layer.backward_observer(layer, Backward(g, kept, da, dw))
        return da, dw, db, None, None, None, None
