"""The autograd function behind every quantized layer: FW, and in backward EB and GC, from quantized operands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from fractrain.experimental.int8_gemm import GemmPlan
from fractrain.kernels.cpu.int8_backward import Plan
from fractrain.layers.number_types import widened, without_autocast
from fractrain.layers.product_layer import Activation, Backward, ProductLayer
from fractrain.numerics.backend import Kept, Quantized
from fractrain.numerics.precision import Operand, Precision


def run_products(
    x: torch.Tensor, layer: ProductLayer, now: Activation | None, kept: Activation, known: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply the three products of a layer.

    Args:
        x: input of the layer (for autograd; its values are not read).
        layer: the layer.
        now: activation for FW, or None when ``known`` is given.
        kept: activation for GC.
        known: output that another candidate of equal forward precision has computed.
    """
    bias = None if layer.bias is None else widened(layer.bias)
    y: torch.Tensor = _Products.apply(x, layer.as_kernel(widened(layer.weight)), bias, layer, now, kept, known)
    return y


class _Products(torch.autograd.Function):
    """FW now; EB and GC in backward, from quantized operands.

    What is kept for backward: the activation as integer codes (values only where GC reads it in floating point), and
    nothing of the error. The weight is quantized again only if it changed in between.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: ProductLayer,
        now: Activation | None, kept: Activation, known: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        p = layer.precision
        y = cast(torch.Tensor, known).detach() if now is None else layer.forward_product(now, p.fw_w, bias)
        ctx.layer, ctx.precision, ctx.shape = layer, p, layer.operand_shape(x)
        s = layer.state.scope  # only its index is needed: what it shares must not live as long as the graph
        ctx.scope = None if s is None else replace(s, input=x.new_empty(0), memo={}, sites=[])
        ctx.has_bias = bias is not None
        # EB multiplies by the weight of this forward pass, as quantized now.
        plan = layer.integer_paths(x)[1] if kept.codes is not None else None
        ctx.plan, ctx.weight, ctx.weight_kept = plan, None, None
        if plan is not None and plan.eb:
            w, ctx.weight = layer.weight_operand(p.eb_w, "eb_w", True)
        elif not p.eb_w.is_float and layer.keeps_codes and s is None:
            w, codes = layer.weight_operand(p.eb_w, "eb_w", False)
            if codes is not None:
                w, ctx.weight_kept = codes.codes, codes.emptied()
        else:
            w = layer.quantized_weight(p.eb_w, "eb_w")
        # Autograd keeps the codes: it frees them after backward even where the loss lives on, and hooks see them.
        a = kept.values if kept.codes is None else kept.codes.codes
        ctx.kept = None if kept.codes is None else kept.codes.emptied()
        ctx.save_for_backward(w, weight, a if ctx.needs_input_grad[1] else None)
        return y

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        layer: ProductLayer = ctx.layer
        p: Precision = ctx.precision
        w, master, a = ctx.saved_tensors
        if ctx.weight_kept is not None:
            w = replace(ctx.weight_kept, codes=w).values().to(grads[0].dtype)  # codes are restored in float32
        layer.forget_weights()
        g = grads[0].contiguous(memory_format=torch.channels_last) if grads[0].dim() == 4 else grads[0]
        want_a, want_w, want_b = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        wants = (want_a, want_w, want_b and ctx.has_bias)
        kept: Kept | None = None if ctx.kept is None or a is None else replace(ctx.kept, codes=a)
        plan = None if ctx.plan is None else ctx.plan.only(want_a, want_w)
        outer, layer.state.scope = layer.state.scope, ctx.scope
        try:
            codes = kept if isinstance(kept, Quantized) else None
            e_eb, e_gc, da, dw = _errors_and_integer_products(layer, p, g, codes, ctx.weight, plan, wants)
        finally:
            layer.state.scope = outer
        db = layer.bias_gradient(e_gc) if wants[2] else None
        eb, gc = want_a and da is None, want_w and dw is None  # what integers have not done
        if gc and kept is not None:
            a = kept.values().to(g.dtype)
        if eb and gc and e_eb is e_gc:
            da, dw = layer.backward_products(e_eb, a, w, ctx.shape, True, True)
        else:
            if eb:
                da, _ = layer.backward_products(e_eb, None, w, ctx.shape, True, False)
            if gc:
                _, dw = layer.backward_products(e_gc, a, w, ctx.shape, False, True)
        if dw is not None and not p.fw_w.is_float:
            dw = p.fw_w.format.backward_transform(master.detach(), dw)
        if layer.backward_observer is not None:
            layer.backward_observer(layer, Backward(g, kept, da, dw))
        return da, dw, db, None, None, None, None


def _errors_and_integer_products(
    layer: ProductLayer, p: Precision, g: torch.Tensor, kept: Quantized | None, weight: Quantized | None,
    plan: Plan | GemmPlan | None, wants: tuple[bool, bool, bool],
) -> tuple[Any, Any, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """Quantize the error, and do what the plan says on its codes.

    Args:
        layer, p: the layer and the precision of its forward pass.
        g: output gradient.
        kept, weight: codes of activation and weight.
        plan: which products run on integer codes; None: none.
        wants: whether gradients of input, weight and bias are wanted.

    Returns:
        The error's values for EB and for GC (None where nothing is left to do with them), and the gradients of input
        and weight that are done (else None).
    """
    eb, gc = (False, False) if plan is None else (plan.eb, plan.gc)
    float_a, float_w = wants[0] and not eb, (wants[1] and not gc) or wants[2]

    def run(op: Operand, name: str, part: Plan | GemmPlan | None, values: bool) -> tuple[torch.Tensor | None, Any, Any]:
        if not part:
            return layer.quantized_error(g, op, name), None, None
        e, codes = layer.error_operand(g, op, name, True, values)
        if not isinstance(codes, Quantized):
            return e, None, None
        done = layer.integer_products(codes, kept, weight, part)
        if done is None:  # not quantized by the compiled kernels: there are values
            return e, None, None
        da, dw = done
        if codes.rows is not None and codes.rows.coded is not None:
            assert e is not None
            assert isinstance(part, Plan)
            dw = _others(layer, e, codes.rows.coded, kept, weight, part, da, dw)
        return e, da, dw

    if p.eb_e.same_as(p.gc_e):
        e, da, dw = run(p.gc_e, "E", plan, float_a or float_w)
        return e, e, da, dw
    da = dw = None
    e_eb: torch.Tensor | None = g
    e_gc: torch.Tensor | None = g
    if wants[1] or wants[2]:
        e_gc, _, dw = run(p.gc_e, "E.gc", plan and plan.only(False, True), float_w)
    if wants[0]:
        e_eb, da, _ = run(p.eb_e, "E.eb", plan and plan.only(True, False), float_a)
    return e_eb, e_gc, da, dw


def _others(
    layer: ProductLayer, e: torch.Tensor, coded: np.ndarray, kept: Quantized | None, weight: Quantized | None,
    part: Plan, da: torch.Tensor | None, dw: torch.Tensor | None,
) -> torch.Tensor | None:  # fmt: skip
    """The products of samples whose errors have no codes, in float32, into ``da``; return their GC added to ``dw``."""
    rows = np.setdiff1d(np.arange(e.shape[0]), coded)
    which = torch.from_numpy(rows)
    error = e[which].contiguous(memory_format=torch.channels_last)
    a = None
    if part.gc:
        assert kept is not None
        a = kept.take(rows).values()
    w = layer.weight.detach() if weight is None else weight.values()
    shape = torch.Size((len(rows), *part.geometry.image))
    some_da, some_dw = layer.backward_products(error, a, w, shape, part.eb, part.gc)
    if da is not None:
        assert some_da is not None
        da[which] = some_da
    return dw if some_dw is None or dw is None else dw + some_dw
