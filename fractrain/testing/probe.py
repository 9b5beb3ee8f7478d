"""Watching the quantized layers of a model at work: what they say of their operands, and what they really multiply."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fractrain.layers.conv_linear import QuantLayer
from fractrain.layers.delayed import delayed_limits
from fractrain.methods.card import declared_precisions
from fractrain.numerics.formats import Limits, Place
from fractrain.numerics.precision import Operand, Precision
from fractrain.testing.grids import Rounding, off_grid, too_many_values

KEPT = 500  # checked tensors kept to be recognised
ENOUGH = 200  # elements between two grid points before stochastic rounding must have shown itself
ERRORS = {"E": ("eb_e", "gc_e"), "E.eb": ("eb_e",), "E.gc": ("gc_e",)}


@dataclass
class Probe:
    """Findings about one model; attach it with :meth:`watching`.

    Attributes:
        problems: contradictions between declared and observed, one line each (the first ones).
        observed: operand checks done, by phase.
        products: operands of products checked, by phase.
        widths: widths declared while the model ran, by (site, operand).
    """

    problems: list[str] = field(default_factory=list)
    observed: dict[str, int] = field(default_factory=lambda: {"train": 0, "eval": 0})
    products: dict[str, int] = field(default_factory=lambda: {"train": 0, "eval": 0})
    widths: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    _roundings: dict[tuple[str, str, str], Rounding] = field(default_factory=dict)
    _known: OrderedDict[int, tuple[torch.Tensor, int]] = field(default_factory=OrderedDict)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[Probe]:
        """Watch all quantized layers of the model inside the block."""
        declared = declared_precisions(model)
        before = {layer: layer.observer for layer in declared}
        for layer, precisions in declared.items():
            layer.observer = self._observer(precisions)
            layer.product = self._forward(layer, precisions)  # type: ignore[method-assign]
            layer.backward_products = self._backward(layer, precisions)  # type: ignore[method-assign]
        try:
            yield self
        finally:
            for layer, observer in before.items():
                layer.observer = observer
                del layer.product, layer.backward_products
            self._judge_rounding()

    # -- what the layers say -----------------------------------------------------------------------------------------

    def _observer(self, precisions: Callable[[], list[Precision]]) -> Callable[..., None]:
        def observe(layer: QuantLayer, name: str, op: Operand, x: torch.Tensor, values: torch.Tensor) -> None:
            phase = "train" if layer.training else "eval"
            self.observed[phase] += 1
            where = f"{layer.site} {name} ({phase})"
            names = ERRORS.get(name, (name,))
            if not any(op.same_as(p.operands()[n]) for p in precisions() for n in names):
                self._problem(f"{where}: quantized as {op.describe()}, which is not declared")
            self._remember(values)
            place = _place(layer, name, x)
            found = too_many_values(values, op, place)
            rounding = self._roundings.setdefault((layer.site, name, op.format.rounding), Rounding())
            found = found or off_grid(x, values, op, _limits(layer, name, op, x), rounding, place)
            if found:
                self._problem(f"{where}: declared {op.describe()}, observed {found}")

        return observe

    # -- what they multiply ------------------------------------------------------------------------------------------

    def _forward(self, layer: QuantLayer, precisions: Callable[[], list[Precision]]) -> Callable[..., Any]:
        real = layer.product

        def product(a: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            for name, value in (("fw_a", a), ("fw_w", w)):
                self._operand(layer, name, value, precisions())
            return real(a, w, bias)

        return product

    def _backward(self, layer: QuantLayer, precisions: Callable[[], list[Precision]]) -> Callable[..., Any]:
        real = layer.backward_products

        def products(
            e: torch.Tensor, a: torch.Tensor | None, w: torch.Tensor, shape: torch.Size, want_a: bool, want_w: bool
        ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
            known = precisions()
            if want_a:
                self._operand(layer, "eb_e", e, known)
                self._operand(layer, "eb_w", w, known)
            if want_w and a is not None:
                self._operand(layer, "gc_e", e, known)
                self._operand(layer, "gc_a", a, known)
            return real(e, a, w, shape, want_a, want_w)

        return products

    def _operand(self, layer: QuantLayer, name: str, value: torch.Tensor, precisions: list[Precision]) -> None:
        phase = "train" if layer.training else "eval"
        self.products[phase] += 1
        ops = [p.operands()[name] for p in precisions]
        self.widths.setdefault((layer.site, name), set()).update(w for o in ops for w in widths_of(o))
        if any(o.is_float for o in ops) or self._recognised(value):
            return
        found = [too_many_values(value, o, _place(layer, name, value)) for o in ops]
        if all(found):
            self._problem(f"{layer.site} {name} ({phase}): declared {ops[0].describe()}, multiplied {found[0]}")

    def _remember(self, values: torch.Tensor) -> None:
        """Note a tensor that was checked when it was quantized; kept, so that no other one takes its memory."""
        self._known[values.data_ptr()] = (values, values._version)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)

    def _recognised(self, value: torch.Tensor) -> bool:
        kept, version = self._known.get(value.data_ptr(), (None, 0))
        return kept is not None and kept.shape == value.shape and kept._version == version

    # -- verdict -----------------------------------------------------------------------------------------------------

    def _judge_rounding(self) -> None:
        for (site, name, kind), seen in self._roundings.items():
            if kind == "stochastic" and seen.between >= ENOUGH and not seen.away:
                self._problem(f"{site} {name}: declared stochastic rounding, observed nearest")
            if kind == "nearest" and seen.away:
                self._problem(f"{site} {name}: declared rounding to nearest, observed otherwise")

    def _problem(self, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(text)


def _place(layer: QuantLayer, name: str, x: torch.Tensor) -> Place:
    """Which operand a tensor is to its format."""
    weight = name in ("fw_w", "eb_w") and not layer.paired
    return Place("W" if weight else "A", layer.matrix_rows(x))


def widths_of(op: Operand) -> set[int]:
    """All widths of an operand."""
    return set(torch.unique(op.bits).tolist()) if isinstance(op.bits, torch.Tensor) else {op.bits}


def _limits(layer: QuantLayer, name: str, op: Operand, x: torch.Tensor) -> Limits:
    """The limits that the layer has used: its running range in evaluation, else measured on the tensor."""
    running = None if layer.training or op.running is None else layer.running_range(name)
    if running is not None and bool(running[2] > 0):
        return running[:2]
    return delayed_limits(layer, name.replace(".", "_"), op, layer.training) or op.format.limits(
        x.detach(), "reference"
    )
