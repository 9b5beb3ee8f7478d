"""What a call of one of PyTorch's functions multiplies, in the form in which a layer multiplies it.

A call is read as one of three: a weight applied to an activation (``F.linear``, convolutions, ``addmm`` and matrix
products with a parameter), a product of two activations, or attention. What has none of these forms (a vector, a
parameter with an axis per sample or expert, a contraction without samples, an argument ``out=``) is read as None and
stays what it is.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fractrain.layers.matmul import Matmul

Finish = Callable[[torch.Tensor], torch.Tensor]


def _as_it_is(y: torch.Tensor) -> torch.Tensor:
    return y


@dataclass(frozen=True)
class WeightCall:
    """``finish`` of a layer of type ``kind`` with ``weight`` and ``bias``, applied to ``x``.

    Attributes:
        kind: ``nn.Linear`` or a convolution.
        x: input, samples along the first axis.
        weight: of the shape that the layer keeps.
        bias: ``[out]`` or None.
        options: further arguments of the layer's constructor.
        finish: from the layer's output to that of the function.
    """

    kind: type[Any]
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    options: tuple[tuple[str, Any], ...] = ()
    finish: Finish = _as_it_is

    @property
    def key(self) -> Hashable:
        """Equal for calls that the same layer can compute."""
        return self.kind, tuple(self.weight.shape), self.options

    def layers(self) -> dict[str, nn.Module]:
        """The plain layer by its name. It has no parameters: its weight comes with each call (:meth:`lend`)."""
        first, second = self.weight.shape[:2]
        options = dict(self.options)
        if self.kind is nn.Linear:
            layer: nn.Module = nn.Linear(second, first, device="meta")
        else:
            groups = options["groups"]
            inputs, outputs = (first, second * groups) if "output_padding" in options else (second * groups, first)
            layer = self.kind(inputs, outputs, tuple(self.weight.shape[2:]), **options, device="meta")
        del layer.weight, layer.bias
        own = isinstance(self.weight, nn.Parameter)
        layer.__dict__["weight"] = self.weight if own else nn.Parameter(self.weight.detach())
        layer.__dict__["bias"] = self.bias
        return {self.kind.__name__.lower(): layer}

    def report(self, layer: Any) -> bool:
        """Have a layer in floating point count what PyTorch's function is to compute; False: run the layer."""
        if self.kind is not nn.Linear:
            return False  # a convolution has the function's bits
        self._lent(layer, elsewhere=True)
        return True

    def compute(self, layer: Any) -> torch.Tensor:
        """The function's output from a quantized layer."""
        return self.finish(self._lent(layer))

    def _lent(self, layer: Any, **more: bool) -> torch.Tensor:
        own = isinstance(self.weight, nn.Parameter)
        if not own:
            layer.forget_weights()  # a computed weight has no version, and may lie where another one has been
        layer.__dict__.update(weight=self.weight, bias=self.bias)
        try:
            y: torch.Tensor = layer(self.x, **more)
        finally:  # a layer holds no graph: these could not be copied
            if not own:
                layer.__dict__["weight"] = self.weight.detach()
            if self.bias is not None and not self.bias.is_leaf:
                layer.__dict__["bias"] = self.bias.detach()
        return y


@dataclass(frozen=True)
class PairCall:
    """``finish`` of the product of two activations ``[N, ..., R, K]`` and ``[N, ..., K, C]``."""

    a: torch.Tensor
    b: torch.Tensor
    finish: Finish = _as_it_is
    key: Hashable = "matmul"

    @property
    def x(self) -> torch.Tensor:
        """An operand."""
        return self.a

    def layers(self) -> dict[str, nn.Module]:
        """As :meth:`WeightCall.layers`."""
        return {"matmul": Matmul()}

    def report(self, layer: nn.Module) -> bool:
        """As :meth:`WeightCall.report`."""
        layer(self.a, self.b, elsewhere=True)
        return True

    def compute(self, layer: nn.Module) -> torch.Tensor:
        """As :meth:`WeightCall.compute`."""
        return self.finish(layer(self.a, self.b))


@dataclass(frozen=True)
class AttentionCall:
    """``F.scaled_dot_product_attention`` of ``q`` ``[N, ..., L, E]``, ``k`` ``[N, ..., S, E]``, ``v``."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    dropout: float
    causal: bool
    scale: float
    key: Hashable = "attention"

    @property
    def x(self) -> torch.Tensor:
        """An operand."""
        return self.q

    def layers(self) -> dict[str, nn.Module]:
        """As :meth:`WeightCall.layers`: scores and mix."""
        return {"scores": Matmul(transpose=True), "mix": Matmul()}

    def report(self, scores: nn.Module, mix: nn.Module) -> bool:
        """As :meth:`WeightCall.report`."""
        mix(scores(self.q, self.k, elsewhere=True), self.v, elsewhere=True)
        return True

    def compute(self, scores: nn.Module, mix: nn.Module) -> torch.Tensor:
        """As :meth:`WeightCall.compute`: as the function's documentation spells it out."""
        weights = scores(self.q * self.scale, self.k)
        mask = self.mask
        if self.causal:
            mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
        if mask is not None:
            weights = weights.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else weights + mask
        weights = torch.ops.aten._safe_softmax(weights, -1)  # of a row that is masked whole: zeros
        y: torch.Tensor = mix(F.dropout(weights, self.dropout) if self.dropout else weights, self.v)
        return y


Call = WeightCall | PairCall | AttentionCall


def read(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """How layers compute a call; None where they do not."""
    reader = READERS.get(function)
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
    if reader is None or any(t.is_nested or t.is_complex() or t.layout != torch.strided for t in tensors):
        return None
    try:
        bound = _signature(reader).bind(*args, **kwargs)
    except TypeError:  # another form of the function
        return None
    call = reader(*bound.args, **bound.kwargs)
    return call if call is not None and call.x.numel() and call.x.is_floating_point() else None


_signature = lru_cache(inspect.signature)


def _is_weight(t: torch.Tensor) -> bool:
    """Whether a tensor is a parameter or a view of one."""
    return isinstance(t, nn.Parameter) or isinstance(t._base, nn.Parameter)


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Call | None:
    return WeightCall(nn.Linear, input, weight, bias) if input.dim() > 1 and weight.dim() == 2 else None


def _convolution(kind: type[Any], transposed: bool) -> Callable[..., Call | None]:
    axes = int(kind.__name__[-2])

    def make(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **options: Any) -> Call | None:
        if x.dim() != axes + 2:
            return None
        same = {k: v if k == "groups" or isinstance(v, str) else _each(v, axes) for k, v in options.items()}
        return WeightCall(kind, x, weight, bias, tuple(same.items()))

    def plain(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Call | None:  # fmt: skip
        return make(input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)

    def back(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Call | None:  # fmt: skip
        return make(
            input, weight, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups,
            dilation=dilation,
        )  # fmt: skip

    return back if transposed else plain


def _each(value: Any, axes: int) -> tuple[int, ...]:
    all_ = (value,) if isinstance(value, int) else tuple(value)
    return all_ * axes if len(all_) == 1 else all_


def _matmul(input: torch.Tensor, other: torch.Tensor) -> Call | None:
    a, b = input, other
    if min(a.dim(), b.dim()) < 2 or (_is_weight(a) and _is_weight(b)):
        return None
    if _is_weight(b) or (b.dim() == 2 and a.dim() > 2 and not _is_weight(a)):
        return _linear(a, b.mT)
    if _is_weight(a) or (a.dim() == 2 and b.dim() > 2):
        return WeightCall(nn.Linear, b.mT, a, None, finish=_turned) if a.dim() == 2 else None
    if a.dim() == 2:  # which axis are samples?
        return None
    a, b = _alike(a, b)
    return PairCall(a, b)


def _alike(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Matrices with all axes before them broadcast."""
    lead = torch.broadcast_shapes(*(t.shape[:-2] for t in tensors))  # type: ignore[no-untyped-call]
    return [t.expand(*lead, *t.shape[-2:]) for t in tensors]


def _turned(y: torch.Tensor) -> torch.Tensor:
    return y.mT


def _mm(input: torch.Tensor, mat2: torch.Tensor) -> Call | None:
    return _matmul(input, mat2)


def _addmm(
    input: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> Call | None:
    call = _matmul(mat1, mat2)
    if not isinstance(call, WeightCall):
        return None
    if beta == alpha == 1 and input.dim() == 1 and call.finish is _as_it_is and len(input) == len(call.weight):
        return WeightCall(call.kind, call.x, call.weight, input)
    return WeightCall(call.kind, call.x, call.weight, None, finish=lambda y: beta * input + alpha * call.finish(y))


def _baddbmm(
    input: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> Call | None:
    call = _matmul(batch1, batch2)
    return PairCall(call.a, call.b, lambda y: beta * input + alpha * y) if isinstance(call, PairCall) else None


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Call | None:  # fmt: skip
    if min(t.dim() for t in (query, key, value)) < 3:
        return None
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    q, k, v = _alike(query, key, value)
    return AttentionCall(q, k, v, attn_mask, dropout_p, is_causal, q.shape[-1] ** -0.5 if scale is None else scale)


def _einsum(equation: str, *operands: Any) -> Call | None:
    tensors = tuple(operands[0]) if len(operands) == 1 and not isinstance(operands[0], torch.Tensor) else operands
    if not isinstance(equation, str) or len(tensors) != 2:
        return None
    terms = _terms(equation.replace(" ", ""), tensors)
    if terms is None or all(_is_weight(t) for t in tensors):
        return None
    first, second, out = terms
    (a, b), swapped = tensors, _is_weight(tensors[0])
    if swapped:  # the weight comes second
        first, second, a, b = second, first, b, a
    both = [c for c in first if c in second]
    batch, summed = [c for c in both if c in out], [c for c in both if c not in out]
    rows, columns = [c for c in first if c not in both], [c for c in second if c not in both]
    size = dict(zip(first + second, (*a.shape, *b.shape), strict=True))
    fits = all(size[c] == n for c, n in zip(first, a.shape, strict=True)) and set(out) == {*batch, *rows, *columns}
    weight = _is_weight(b)
    if not fits or not summed or not rows or bool(batch) == weight:
        return None

    def ordered(t: torch.Tensor, term: str, *groups: Sequence[str]) -> torch.Tensor:
        return t.permute([term.index(c) for group in groups for c in group])

    def sizes(*groups: Sequence[str]) -> list[int]:
        return [size[c] for group in groups for c in group]

    depth, width = math.prod(sizes(summed)), math.prod(sizes(columns))

    def finish(y: torch.Tensor) -> torch.Tensor:
        now = "".join([*batch, *rows, *columns])
        return ordered(y.reshape(sizes(now)), now, out)

    if weight:
        x = ordered(a, first, rows, summed).reshape(*sizes(rows), depth)
        return WeightCall(nn.Linear, x, ordered(b, second, columns, summed).reshape(width, depth), None, (), finish)
    left = ordered(a, first, batch, rows, summed).reshape(*sizes(batch), math.prod(sizes(rows)), depth)
    right = ordered(b, second, batch, summed, columns).reshape(*sizes(batch), depth, width)
    return PairCall(left, right, finish)


def _terms(equation: str, tensors: Sequence[torch.Tensor]) -> tuple[str, str, str] | None:
    """The letters of both operands and of the output, ellipses spelled out; None of what is no product."""
    left, arrow, out = equation.partition("->")
    if not arrow:
        out = "..." * ("..." in left) + "".join(sorted(c for c in set(left) - {",", "."} if left.count(c) == 1))
    terms, spare = left.split(","), "".join(chr(0x3B1 + i) for i in range(16))
    if len(terms) != 2:
        return None
    axes = [t.dim() - len(term.replace("...", "")) for term, t in zip(terms, tensors, strict=True) if "..." in term]
    if len(axes) == 2 and axes[0] != axes[1]:
        return None
    first, second, out = (term.replace("...", spare[: axes[0] if axes else 0]) for term in (*terms, out))
    known = all(len(set(t)) == len(t) for t in (first, second, out)) and set(out) <= {*first, *second}
    right = len(first) == tensors[0].dim() and len(second) == tensors[1].dim()
    return (first, second, out) if known and right else None


READERS: dict[Any, Callable[..., Call | None]] = {
    F.linear: _linear,
    **{getattr(F, f"conv{n}d"): _convolution(getattr(nn, f"Conv{n}d"), False) for n in (1, 2, 3)},
    **{getattr(F, f"conv_transpose{n}d"): _convolution(getattr(nn, f"ConvTranspose{n}d"), True) for n in (1, 2, 3)},
    **dict.fromkeys((torch.matmul, torch.linalg.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.mm, torch.bmm, torch.Tensor.mm, torch.Tensor.bmm), _mm),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm), _addmm),
    **dict.fromkeys((torch.baddbmm, torch.Tensor.baddbmm), _baddbmm),
    F.scaled_dot_product_attention: _attention,
    torch.einsum: _einsum,
}
"""The functions whose calls are read; each reader has the parameters of its function."""
