"""Products of two activations (attention's Q K^T and P V) as quantized GEMMs, counted like every other one.

A product ``Y = A B`` of two activations has the same three GEMMs as a layer. They are booked under the same names, with
B in the place of the weight:

* FW: ``Y = A B``;
* EB: ``dA = E B^T`` (error times second operand), the gradient of the first operand;
* GC: ``dB = A^T E`` (first operand times error), the gradient of the second operand.

Both operands are activations, so both take the activation's format and width: ``fw_a`` in FW, ``gc_a`` in the two
backward products. What a precision says of weights (``fw_w``, ``eb_w``) does not apply. A grid per tensor is one per
operand; "per sample" means the first axis; heads and whatever else lies between belong to the sample. Each operand has
a running range of its own for evaluation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from fractrain.cost.counting import entries_for
from fractrain.cost.ledger import Entry
from fractrain.kernels.cpu.gemm import matmul
from fractrain.layers.base import Activation, Backward, QuantLayer
from fractrain.layers.eager import eager
from fractrain.layers.number_types import WIDE, widened, without_autocast
from fractrain.layers.softmax import Remake
from fractrain.layers.state import QuantState
from fractrain.layers.take_over import take_over
from fractrain.layers.tensor_hints import version_of
from fractrain.numerics.backend import Kept
from fractrain.numerics.precision import Precision
from fractrain.numerics.tiles import PerTile
from fractrain.util.errors import ConfigError


class Matmul(nn.Module):
    """Product of two activations; :func:`fractrain.layers.convert.convert` replaces it by :class:`QuantMatmul`.

    Args:
        transpose: the second operand comes as ``[N, ..., C, K]`` and is transposed before it is multiplied.
        remade: whether the caller asks for :meth:`again` after every product.

    Attributes:
        is_float: whether the product may as well be computed elsewhere (by a fused kernel); see :meth:`forward`.
    """

    is_float = True

    def __init__(self, transpose: bool = False, remade: bool = False) -> None:
        super().__init__()
        self.transpose, self.remade = transpose, remade

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"transpose={self.transpose}"

    def forward(self, a: torch.Tensor, b: torch.Tensor, elsewhere: bool = False) -> torch.Tensor:
        """Multiply ``a`` ``[N, ..., R, K]`` with ``b`` ``[N, ..., K, C]`` to ``[N, ..., R, C]``.

        Args:
            a: first operand.
            b: second operand.
            elsewhere: the product is made by other means: only report it (to hooks and ledger). Returned are zeros of
                its shape that take no memory and are in no graph.
        """
        return stand_in(a, b, self.transpose) if elsewhere else multiply(a, b, self.transpose)

    def again(self) -> Remake | None:
        """How to make the last product again from what is kept for backward; None where that is not possible."""
        return None


def multiply(a: torch.Tensor, b: torch.Tensor, transpose: bool) -> torch.Tensor:
    """``a b``, or ``a b^T``, over the last two axes."""
    return matmul(a, b.mT if transpose else b)


def stand_in(a: torch.Tensor, b: torch.Tensor, transpose: bool) -> torch.Tensor:
    """Zeros of the product's shape that take no memory; they want a gradient where the product would."""
    zero = a.new_zeros(()).requires_grad_(torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
    return zero.expand(*a.shape[:-1], b.shape[-2 if transpose else -1])


class QuantMatmul(QuantLayer, Matmul):
    """Product of two activations with quantized operands; see the module's docstring.

    Attributes:
        second_low, second_high, second_steps: running range of the second operand, as the layer's own of the first.

    Raises:
        ConfigError: an empty batch, operands without a sample axis, or widths per tile.
        NonFiniteError: inf or nan in an operand.
    """

    axes = 3
    paired = True
    second_low: torch.Tensor
    second_high: torch.Tensor
    second_steps: torch.Tensor

    def __init__(
        self, plain: Matmul, precision: Precision, state: QuantState | None = None, site: str = "",
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        take_over(self, plain)
        self._effective: tuple[Precision, Precision] | None = None
        self.init_quant(precision, state or QuantState(), site or "matmul", device)
        for name in ("second_low", "second_high"):
            self.register_buffer(name, torch.zeros((), device=device))
        self.register_buffer("second_steps", torch.zeros((), dtype=torch.int64, device=device))
        self._operand = torch.Size()  # of A in the last forward pass, heads apart
        self._remake: Remake | None = None

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"transpose={self.transpose}, site={self.site!r}"

    @property
    def learns(self) -> bool:
        """False: there is no weight."""
        return False

    @property
    def is_float(self) -> bool:  # type: ignore[override]
        """Whether nothing is quantized at the present precision."""
        return self.effective(self.precision).is_float

    def effective(self, precision: Precision) -> Precision:
        """What a precision means here: the second operand is an activation as well."""
        if self._effective is None or self._effective[0] is not precision:
            fw_w, eb_w = precision.fw_a, precision.gc_a
            if not self.transpose:  # the reduction is along the other axis of what is multiplied as it stands
                fw_w, eb_w = fw_w.flipped(), eb_w.flipped()
            p = replace(precision, fw_w=fw_w, eb_w=eb_w)
            for op in p.operands().values():
                if isinstance(op.bits, torch.Tensor) and isinstance(op.format.granularity, PerTile):
                    raise ConfigError(f"{self.site}: products of two activations take no widths per tile")
            self._effective = (precision, p)
        return self._effective[1]

    def matrix_rows(self, x: torch.Tensor) -> int:
        """Rows of each sample's and head's matrix; operands come as ``[N, heads x rows, columns]``."""
        return x.shape[1] // self._operand[1:-2].numel()

    def running_range(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Low, high and number of updates of an operand's running range; None for errors."""
        if name in ("fw_w", "eb_w"):
            return self.second_low, self.second_high, self.second_steps
        return super().running_range(name)

    def wants(self, *inputs: torch.Tensor) -> tuple[bool, bool]:
        """Whether EB and GC will run: whether the operands need gradients."""
        return inputs[0].requires_grad, inputs[1].requires_grad

    def entries(self, precision: Precision, macs: int, eb: bool, gc: bool) -> list[Entry]:
        """Ledger entries per sample at constant widths."""
        return entries_for(self.site, self.effective(precision), macs, eb, gc, self.shapes)

    def sample_macs(self, output: torch.Tensor) -> int:
        """Forward MACs per sample (first axis) of the last operands: every element of the product, masked or not."""
        return output[0].numel() * self._operand[-1]

    # -- the products ------------------------------------------------------------------------------------------------

    @eager
    def forward(self, a: torch.Tensor, b: torch.Tensor, elsewhere: bool = False) -> torch.Tensor:  # type: ignore[override]
        """As :meth:`Matmul.forward`, at the present precision; counts the products in the ledger.

        ``elsewhere`` is allowed only where nothing is quantized.
        """
        self.check_input(a)
        self.check_input(b)
        p = self.effective(self.precision)
        self._operand = a.shape
        if elsewhere:
            if not p.is_float:
                raise ConfigError(f"{self.site}: a quantized product cannot be computed elsewhere")
            y = stand_in(a, b, self.transpose)
        elif p.is_float:
            y = multiply(a, b, self.transpose)
        else:
            y = self._quantized_pair(p, a, b)
        for name, t in (("A", a), ("W", b), ("E", y)):
            self.shapes[name] = torch.Size((t.shape[0], t.shape[1:-1].numel(), t.shape[-1]))
        self.report(a, y, self.wants(a, b), elsewhere)
        return y

    @without_autocast
    def _quantized_pair(self, p: Precision, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if not (a.is_floating_point() and b.is_floating_point()):
            raise ConfigError(f"{self.site}: operands of types {a.dtype}, {b.dtype}: floating point numbers are taken")
        if a.dtype not in WIDE or b.dtype not in WIDE:
            return self._quantized_pair(p, widened(a), widened(b)).to(a.dtype)
        scope = self.state.scope
        key = None if scope is None else ("product", self.site, scope.forward_key, len(scope.sites))
        known = None if scope is None else scope.memo.get(key)
        if known is not None and version_of(known[0]) == known[3]:  # see QuantLayer
            self._remake = self._recipe(*known[1:3]) if self.remade and p.one_activation else None
            return _Pair.apply(a, b, self, p, (), known[1:3], known[0])  # type: ignore[no-any-return]
        first, second = _rows(a), _rows(b)
        now = self._activation(first, p.fw_a, "fw_a"), self._activation(second, p.fw_w, "fw_w")
        kept = now
        if self.training and not p.one_activation:
            kept = self._activation(first, p.gc_a, "gc_a"), self._activation(second, p.eb_w, "eb_w")
        y: torch.Tensor = _Pair.apply(a, b, self, p, (now[0].values, now[1].values), kept, None)
        if scope is not None and self.training:
            slim = [replace(k, values=None) if k.codes is not None else k for k in kept]
            scope.memo[key] = (y.detach(), *slim, version_of(y))
        if self.remade:
            self._remake = self._recipe(*kept) if kept is now else None
        return y

    def again(self) -> Remake | None:
        """As :meth:`Matmul.again`; may be asked once per product."""
        remake, self._remake = self._remake, None
        return remake

    def _recipe(self, first: Activation, second: Activation) -> Remake | None:
        if first.codes is None or second.codes is None:
            return None
        grids, shape = [q.emptied() for q in (first.codes, second.codes)], self._operand

        def build(*codes: torch.Tensor) -> torch.Tensor:
            a, b = (q.with_codes(c).values() for q, c in zip(grids, codes, strict=True))
            return multiply(a.view(shape), b.view(*shape[:-2], -1, b.shape[-1]), self.transpose)

        return Remake((first.codes.codes, second.codes.codes), build)

    def product(self, a: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """FW, from operands with heads and rows in one axis ``[N, rows, columns]``."""
        return multiply(a.view(self._operand), w.view(*self._operand[:-2], -1, w.shape[-1]), self.transpose)

    def backward_products(
        self, e: torch.Tensor, a: torch.Tensor | None, w: torch.Tensor, shape: torch.Size, want_a: bool, want_w: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """EB and GC, from operands ``[N, rows, columns]``; ``shape`` is that of A with its heads."""
        error = e.view(*shape[:-1], e.shape[-1])
        da = db = None
        if want_a:
            b = w.view(*shape[:-2], -1, w.shape[-1])
            da = matmul(error, b if self.transpose else b.mT)
        if want_w and a is not None:
            first = a.view(shape)
            db = matmul(error.mT, first) if self.transpose else matmul(first.mT, error)
        return da, db


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``[N, ..., R, K]`` as ``[N, rows, K]``, dense."""
    return x.detach().reshape(x.shape[0], -1, x.shape[-1]).contiguous()


def _restored(kept: Any) -> torch.Tensor:
    """What was kept, as values."""
    values: torch.Tensor = kept.values() if isinstance(kept, Kept) else kept
    return values


class _Pair(torch.autograd.Function):
    """FW now; EB and GC in backward. Kept are the operands' codes, and only those a wanted gradient needs."""

    @staticmethod
    def forward(
        ctx: Any, a: torch.Tensor, b: torch.Tensor, layer: QuantMatmul, p: Precision, values: tuple[Any, ...],
        kept: tuple[Activation, Activation], known: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        y = layer.product(values[0], values[1], None) if known is None else known.detach()
        ctx.layer, ctx.precision, ctx.shape = layer, p, a.shape
        s = layer.state.scope
        ctx.scope = None if s is None else replace(s, input=a.new_empty(0), memo={}, sites=[])
        ctx.kept = [None if k.codes is None else k.codes.emptied() for k in kept]
        # The first operand is needed for the gradient of the second, and the other way round.
        needed = (ctx.needs_input_grad[1], ctx.needs_input_grad[0])
        stored = [k.values if k.codes is None else k.codes.codes for k in kept]
        ctx.save_for_backward(*(t if n else None for t, n in zip(stored, needed, strict=True)))
        return y

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        layer, p = cast(QuantMatmul, ctx.layer), cast(Precision, ctx.precision)
        want_a, want_b = ctx.needs_input_grad[:2]
        stored = [
            t if t is None or kept is None else kept.with_codes(t)
            for t, kept in zip(ctx.saved_tensors, ctx.kept, strict=True)
        ]
        g = _rows(grads[0])
        outer, layer.state.scope = layer.state.scope, ctx.scope
        try:
            one = p.one_error
            e_gc: Any = layer.error_operand(g, p.gc_e, "E" if one else "E.gc")[0] if want_b or one else g
            e_eb: Any = e_gc if one else (layer.error_operand(g, p.eb_e, "E.eb")[0] if want_a else g)
        finally:
            layer.state.scope = outer
        da = db = None
        if want_b:  # first, and its operand is gone before the other product: both may be as large as the scores
            first = _restored(stored[0])
            none = first.new_empty(0)  # EB's operand: not read
            _, db = layer.backward_products(e_gc, first, none, ctx.shape, False, True)
            del first
        if want_a:
            da, _ = layer.backward_products(e_eb, None, _restored(stored[1]), ctx.shape, True, False)
        if layer.backward_observer is not None:
            seen = stored[0] if isinstance(stored[0], Kept) else None
            layer.backward_observer(layer, Backward(g, seen, da, db))
        return da, db, None, None, None, None, None
