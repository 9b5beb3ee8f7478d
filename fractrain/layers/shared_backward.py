"""Backward products that the candidates of a gated block share, done once for all of them.

Both backward products are linear in the error. Candidates that read the same input through the same quantized weight
need one ``EB`` of the sum of their quantized errors; candidates with the same quantized activation need one ``GC``.
Same values as one product per candidate, up to the order of the sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from fractrain.kernels.cpu import memory as blocks
from fractrain.layers.relu import rectify_gradient
from fractrain.numerics.quantize import Kept

if TYPE_CHECKING:
    from fractrain.layers.base import QuantLayer
    from fractrain.numerics.formats import Format


@dataclass
class Term:
    """What the candidates of equal activation and weight leave for the end: the sum of their errors.

    Attributes:
        error: sum of quantized errors.
        activation: that GC multiplies.
        weight: that EB multiplies.
        master: weight in floating point.
        format: of the weight.
        shape: of the input.
        want_a, want_w: whether EB and GC are left to do.
    """

    error: torch.Tensor
    activation: Kept | torch.Tensor | None
    weight: torch.Tensor
    master: torch.Tensor
    format: Format | None
    shape: torch.Size
    want_a: bool
    want_w: bool


class Pool:
    """Collects errors while the candidates of one block go backward; :meth:`open` does the products after them.

    Attributes:
        input: the block's input, to be given to all candidates that go backward.
        weights: the layers' weights by ``id(layer)``, to be used by all candidates.
        gradient: of the input where it goes to the block's end directly, summed over candidates; nobody else's tensor.
    """

    def __init__(self) -> None:
        self.input = torch.empty(0)
        self.weights: dict[int, torch.Tensor] = {}
        self.gradient: torch.Tensor | None = None
        self._layers: list[QuantLayer] = []
        self._terms: dict[tuple[int, int], dict[Any, Term]] = {}

    @classmethod
    def open(cls, x: torch.Tensor, layers: Iterable[QuantLayer]) -> Pool:
        """A pool for one pass: everything that learns goes through one node, whose backward runs after all others."""
        pool = cls()
        pool._layers = [layer for layer in layers if layer.learns]  # products of two activations have no weight
        first = [x] if x.requires_grad else []
        aliases = list(_Gateway.apply(pool, bool(first), *first, *(layer.weight for layer in pool._layers)))
        pool.input = aliases.pop(0) if first else x
        pool.weights = {id(layer): w for layer, w in zip(pool._layers, aliases, strict=True)}
        return pool

    def close(self) -> None:
        """Forget input and weights, lest the graph of later layers keep them."""
        self.input, self.weights = torch.empty(0), {}

    def add(self, layer: QuantLayer, call: int, key: Any, term: Term) -> None:
        """Leave a candidate's backward products of one use of a layer to the end.

        Args:
            layer: the layer.
            call: number of the use in the pass.
            key: equal for candidates of equal activation and weight.
            term: with this candidate's error.
        """
        terms = self._terms.setdefault((id(layer), call), {})
        if key in terms:
            terms[key].error = terms[key].error + term.error  # a new tensor: observers may hold the old one
        else:
            terms[key] = term

    def rectified(self, signs: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """``g`` where the bit is set (see :func:`.rectify_gradient`), which is also added to the input's gradient."""
        first = self.gradient is None
        if self.gradient is None:  # g may have another layout
            self.gradient = blocks.empty(g.shape, g.dtype, channels_last=True)
        return rectify_gradient(signs, g, torch.channels_last, self.gradient, first)

    def settle(self) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Do the products; return parts of the input's gradient, and the gradient of each weight."""
        inputs = [] if self.gradient is None else [self.gradient]
        self.gradient = None
        weights: dict[int, torch.Tensor] = {}
        layers = {id(layer): layer for layer in self._layers}
        left, self._terms = self._terms, {}
        for (which, _), terms in left.items():
            for da, dw in _products(layers[which], list(terms.values())):
                if da is not None:
                    inputs.append(da)
                if dw is not None:
                    weights[which] = weights[which] + dw if which in weights else dw
        return inputs, [weights.get(id(layer)) for layer in self._layers]


def _products(layer: QuantLayer, terms: list[Term]) -> Iterable[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Gradients from one use of a layer: one EB per weight, one GC per term."""
    same = all(t.weight is terms[0].weight for t in terms)
    alone = not same or len(terms) == 1
    if not alone and terms[0].want_a:
        total = sum((t.error for t in terms[1:]), terms[0].error)
        first = terms[0]
        yield layer.backward_products(total, None, first.weight, first.shape, True, False)
    for t in terms:
        want_a = t.want_a and alone
        if not want_a and not t.want_w:
            continue
        a = t.activation.values() if t.want_w and isinstance(t.activation, Kept) else t.activation
        a = None if isinstance(a, Kept) else a
        da, dw = layer.backward_products(t.error, a, t.weight, t.shape, want_a, t.want_w)
        if dw is not None and t.format is not None:
            dw = t.format.backward_transform(t.master.detach(), dw)
        yield da, dw


class _Gateway(torch.autograd.Function):
    """Passes input and weights on; backward adds what the pool has collected, once all candidates are through."""

    @staticmethod
    def forward(ctx: Any, pool: Pool, has_input: bool, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.pool, ctx.has_input = pool, has_input
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        parts, weights = ctx.pool.settle()
        got = list(grads)
        out: list[torch.Tensor | None] = []
        if ctx.has_input:
            first = got.pop(0)
            out.append(_sum([*parts, *([] if first is None else [first])]))
        for given, pooled in zip(got, weights, strict=True):
            out.append(_sum([t for t in (pooled, given) if t is not None]))
        return (None, None, *out)


def _sum(parts: list[torch.Tensor]) -> torch.Tensor | None:
    """Sum, or None of nothing; adds to the first part if there are more, which must be nobody else's then."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0] if parts else None
