"""Which products of a model a method reaches, measured by what a forward pass really multiplies.

Modules do not tell: a model may call ``F.linear`` on a parameter of its own, or have layers that never run. So a pass
is watched below autograd, where every product of PyTorch is seen, whoever called it. What quantized layers multiply is
counted as they report it, everything else by PyTorch's own formulas (:mod:`torch.utils.flop_counter`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fractrain.cost.ledger import FLOAT_BITS, Entry
from fractrain.layers.base import QuantLayer
from fractrain.layers.own_products import CALL
from fractrain.layers.state import CandidateScope, QuantState
from fractrain.methods.gate import GateNetwork
from fractrain.methods.gated_block import GatedBlock
from fractrain.util.errors import ConfigError

Status = Literal["quantized", "float", "outside"]
CODE = "computed in the code of"
FLOAT = "the method leaves it in floating point"
WHOLE = 99.95  # percent that is printed as 100.0


@dataclass(frozen=True)
class Product:
    """One operation of a forward pass that multiplies matrices.

    Attributes:
        name: of the layer, or of the module whose code calls the operation.
        operation: type of the layer, or PyTorch's name of the operation.
        status: ``quantized``; ``float``: in a layer that the method leaves in floating point; ``outside``: in no layer
            that a method could reach, so in floating point with every method.
        why: why it is not quantized; empty if it is.
        macs: multiply-accumulates of the batch that was watched, forward.
        eb, gc: whether a training step goes on with EB and GC.
        counted: whether a layer counts it in the ledger.
    """

    name: str
    operation: str
    status: Status
    why: str
    macs: int
    eb: bool = False
    gc: bool = False
    counted: bool = True

    def entries(self) -> Iterator[Entry]:
        """What the ledger counts of it, at 32 bits."""
        yield Entry(self.name, "FW", FLOAT_BITS, FLOAT_BITS, self.macs)
        if self.eb:
            yield Entry(self.name, "EB", FLOAT_BITS, FLOAT_BITS, self.macs)
        if self.gc:
            yield Entry(self.name, "GC", FLOAT_BITS, FLOAT_BITS, self.macs)


@dataclass(frozen=True)
class Coverage:
    """What one forward pass multiplied; ``print`` shows it as a table.

    Attributes:
        products: all operations that multiply matrices, in the order they first ran.
    """

    products: tuple[Product, ...]

    @property
    def macs(self) -> int:
        """Forward MACs of the batch."""
        return sum(p.macs for p in self.products)

    def percent(self, *status: Status) -> float:
        """Share of the forward MACs, 0..100, of products with one of these states."""
        return 100 * sum(p.macs for p in self.products if p.status in status) / max(1, self.macs)

    @property
    def covered(self) -> float:
        """Percent of the forward MACs in layers that methods reach."""
        return self.percent("quantized", "float") if self.macs else 100.0

    @property
    def outside(self) -> tuple[Product, ...]:
        """Products that no method reaches, largest first."""
        return tuple(sorted((p for p in self.products if p.status == "outside"), key=lambda p: -p.macs))

    def __str__(self) -> str:
        lines = [
            f"{self.percent('quantized'):.1f} % of the forward MACs quantized, {self.percent('float'):.1f} % left in "
            f"floating point by the method, {self.percent('outside'):.1f} % outside of layers that methods reach"
        ]
        width = max((len(p.name) for p in self.products), default=0)
        for p in self.products:
            share = f"{100 * p.macs / self.macs:6.2f} %"
            lines.append(f"  {share}  {p.name:<{width}}  {p.operation}: {p.status}{f' ({p.why})' if p.why else ''}")
        return "\n".join(lines)


class Watch:
    """One forward pass being watched, from :meth:`start` to :meth:`stop`.

    Layers tell what they multiply, PyTorch's dispatcher the rest; who multiplies is read off the calls under way. Hooks
    would be seen: with any inside, PyTorch's encoder layer does without its fused path.

    Args:
        model: the model.
        state: shared by its quantized layers; knows why others were not converted, or stay in floating point.
    """

    def __init__(self, model: nn.Module, state: QuantState) -> None:
        self._model, self._state = model, state
        self._names = {m: name for name, m in model.named_modules()}
        self._found: dict[tuple[str, str], Product] = {}
        self._first: dict[FrameType, CandidateScope] = {}  # of the passes of each call of a gated block
        self._reported = 0  # MACs that layers have reported and others compute
        self._mode = _ProductMode(self)

    def start(self) -> None:
        """Begin to watch."""
        self._state.seen = self.ran
        on = [d for d in AUTOCAST if torch.amp.is_autocast_available(d) and torch.is_autocast_enabled(d)]
        self._mode.autocast = [getattr(torch._C.DispatchKey, AUTOCAST[d]) for d in on]
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> Coverage:
        """End watching; return what there was."""
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._state.seen = None
        self._first.clear()
        return Coverage(tuple(self._found.values()))

    def ran(self, layer: QuantLayer, macs: int, elsewhere: bool) -> None:
        """Note one pass through a quantized layer; ``elsewhere``: others multiply, and will be seen, too."""
        if not self._counts(_under_way(self._model)):
            return
        quantized = not layer.effective(layer.precision).is_float
        why = "" if quantized else self._state.kept_in_float.get(layer.site, FLOAT)
        status: Status = "quantized" if quantized else "float"
        self._add(Product(layer.site, type(layer).__name__, status, why, macs))
        if elsewhere:
            self._reported += macs

    def saw(self, operation: str, macs: int | None, operands: list[torch.Tensor]) -> None:
        """Note one product of PyTorch's; ``operands`` without what is only added; None: its MACs are not known."""
        calls = _under_way(self._model)
        if not self._counts(calls) or any(isinstance(m, QuantLayer | GateNetwork) for m, _ in calls):
            return
        known = min(self._reported, macs or 0)
        self._reported -= known
        if macs == known:
            return
        name, status, why = self._where([m for m, _ in calls], operation)
        if macs is None:
            macs, why = 0, f"{why}; its MACs are not known, and not counted"
        train = torch.is_grad_enabled() and self._model.training
        eb = train and operands[0].requires_grad
        gc = train and any(t.requires_grad for t in operands[1:])
        self._add(Product(name, operation, status, why, macs - known, eb, gc, counted=False))

    def _counts(self, calls: list[tuple[nn.Module, FrameType]]) -> bool:
        """Whether what runs now is counted: of the passes of a gated block that all see the whole batch, one."""
        block, frame = next(((m, f) for m, f in calls if isinstance(m, GatedBlock)), (None, None))
        if block is None or frame is None or block.shares_batch:
            return True
        scope = block.state.scope
        if scope is not None:
            self._first.setdefault(frame, scope)
        return self._first.get(frame) is scope

    def _where(self, inside: list[nn.Module], operation: str) -> tuple[str, Status, str]:
        """Name of the innermost module of the model, state of a product of its code, and why it is not quantized.

        Args:
            inside: the modules that are running, innermost first.
            operation: PyTorch's name of it.
        """
        for module in reversed(inside):
            if isinstance(module, nn.RNNBase | nn.RNNCellBase):
                return self._names.get(module, ""), "outside", "recurrent layers stay in floating point"
        name = next((n for m in inside if (n := self._names.get(m)) is not None), "")
        if operation == FUSED and any(isinstance(m, QuantLayer) for m in inside[0].modules()):
            return name, "float", FLOAT
        whose = "the model" if inside[0] is self._model else type(inside[0]).__name__
        return name, "outside", self._state.left_in_float.get(name, f"{CODE} {whose}")

    def _add(self, new: Product) -> None:
        key = (new.name, new.operation)
        old = self._found.get(key)
        if old is not None:
            new = replace(new, macs=new.macs + old.macs, eb=new.eb or old.eb, gc=new.gc or old.gc)
        self._found[key] = new


def _under_way(model: nn.Module) -> list[tuple[nn.Module, FrameType]]:
    """The modules of a model that are running, and the frames of their calls, innermost first, to its own call."""
    found: list[tuple[nn.Module, FrameType]] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and (not found or found[-1][0] is not model):
        if frame.f_code is CALL:
            found.append((frame.f_locals["self"], frame))
        frame = frame.f_back
    return found


def _calls_of(model: nn.Module) -> int:
    """How many calls of a model are under way, one inside of the other."""
    count, frame = 0, sys._getframe(2)
    while frame is not None:
        count += frame.f_code is CALL and frame.f_locals["self"] is model
        frame = frame.f_back  # type: ignore[assignment]
    return count


class _ProductMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a :class:`Watch` every operation that multiplies matrices."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch
        self.autocast: list[Any] = []  # keys of the devices that have it on

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", None)
        foreign = packet is not None and func.namespace not in PYTORCH_S
        formula = OWN_FORMULAS.get(str(packet))
        if packet not in flop_registry and formula is None and not foreign:
            if torch.is_inference_mode_enabled() and packet is not None:  # there, products come whole
                with self:
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            return func(*args, **kwargs)
        out = func(*args, **kwargs) if formula is None else self._whole(func, args, kwargs)
        operands = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
        name = str(packet).rpartition(".")[2]
        macs: int | None = None
        if formula is not None:
            macs = formula(*args, **kwargs)
        elif packet in flop_registry:
            sparse = next((t for t in operands if t.layout is not torch.strided), None)
            macs = flop_registry[packet](*args, **kwargs, out_val=out) // 2 if sparse is None else _sparse(sparse, out)
        elif not any(isinstance(t, nn.Parameter) and t.dim() > 1 for t in operands):
            return out  # an operation of another library, without a weight
        if not name.endswith("backward") and operands:
            self._watch.saw(name, macs, operands[1:] if name in ADDING else operands)
        return out

    def _whole(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operation that calls others, for which autocast is on again."""
        exclude = torch._C._dispatch_tls_local_exclude_set()
        for key in self.autocast:
            exclude = exclude.remove(key)
        with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude):
            return func(*args, **kwargs)


AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
PYTORCH_S = ("aten", "prim", "prims", "profiler", "inductor", "c10d", "_c10d_functional")
"""Namespaces of operations that multiply no weights where no formula says so."""
ADDING = ("addmm", "baddbmm", "addmv", "addbmm", "_sparse_addmm")
"""Operations whose first operand is added to the product."""
FUSED = "_transformer_encoder_layer_fwd"


def _encoder_layer(src: torch.Tensor, width: int, heads: int, *rest: Any) -> int:
    """MACs of the fused encoder layer on ``[N, T, width]``: projections, attention's products, feed-forward."""
    weights = sum(t.numel() for t in [t for t in rest if isinstance(t, torch.Tensor) and t.dim() == 2][:4])
    return sum(t * weights + 2 * t * t * width for t in _lengths(src))


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, width: int, heads: int, *rest: Any) -> int:
    """MACs of fused attention with its projections, on ``[N, T, width]``."""
    return sum(4 * t * width * width + 2 * t * t * width for t in _lengths(q))


def _lengths(x: torch.Tensor) -> list[int]:
    """Lengths of the sequences of a batch, nested or not."""
    return [len(t) for t in x.unbind()] if x.is_nested else [x.shape[1]] * x.shape[0]


def _recurrent(x: torch.Tensor, *rest: Any) -> int:
    """MACs of a fused recurrent layer on ``[T, N, features]``: all its matrices for every vector."""
    weights = tree_leaves(rest[0]) if isinstance(rest[0], list | tuple) else rest[:2]
    return int(x.shape[0] * x.shape[1] * sum(w.numel() for w in weights if w.dim() == 2))


def _vector(*args: Any) -> int:
    matrix = next(t for t in args if t.dim() == 2)
    return int(matrix.numel())


def _dot(a: torch.Tensor, b: torch.Tensor) -> int:
    return a.numel()


def _batches_summed(to: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **scales: Any) -> int:
    return a.numel() * b.shape[-1]


def _sparse(operand: torch.Tensor, out: torch.Tensor) -> int:
    """MACs of a product with a sparse matrix: those of the elements that it has."""
    return int(operand._nnz()) * out.shape[-1]


def _sparse_added(to: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **scales: Any) -> int:
    return _sparse(a, b) if a.layout is not torch.strided else _sparse(b, a.t())


def _bilinear(a: torch.Tensor, weight: torch.Tensor, b: torch.Tensor, *rest: Any) -> int:
    """MACs of ``a^T W b`` for every row: those of one of its two products."""
    return a.shape[0] * weight.numel()


def _deformed(x: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor, *rest: Any) -> int:
    """MACs of a deformable convolution, without its interpolation; a place of the output has a place of the offset."""
    return offset.shape[0] * offset[0, 0].numel() * weight.numel()


def _time_first(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, pad: int = 0) -> int:
    return (x.shape[0] + 2 * pad - weight.shape[0] + 1) * x.shape[1] * weight.numel()


OWN_FORMULAS: dict[str, Callable[..., int]] = {
    "aten._transformer_encoder_layer_fwd": _encoder_layer,
    "aten._native_multi_head_attention": _attention,
    "aten.mkldnn_rnn_layer": _recurrent,
    "aten._cudnn_rnn": _recurrent,
    "aten.mv": _vector,
    "aten.addmv": _vector,
    "aten.dot": _dot,
    "aten.vdot": _dot,
    "aten.addbmm": _batches_summed,
    "aten._sparse_addmm": _sparse_added,
    "aten._trilinear": _bilinear,
    "aten.conv_tbc": _time_first,
    "torchvision.deform_conv2d": _deformed,
}
"""MACs of what PyTorch's counter has no formula for."""


class Meter:
    """Counts in a ledger what runs outside of layers, and knows the coverage of a model.

    A pass is watched when its inputs have other shapes than any before (or its mode is another); what the next ones
    like it multiply is known then.

    Args:
        strict: refuse a model with products that methods do not reach.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.coverage: Coverage | None = None
        self._known: dict[Any, tuple[Product, ...]] = {}
        self._watch: Watch | None = None
        self._key: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watch": None}

    def forget(self) -> None:
        """Watch anew: layers may have been frozen, or others put in their place."""
        self._known.clear()

    def before(self, model: nn.Module, state: Any, args: Any, kwargs: Any) -> None:
        """At the start of a forward pass of ``model`` whose layers share ``state``."""
        if self._watch is not None and _calls_of(model) == 1:  # a pass that was interrupted
            self._watch.stop()
            self._watch = None
        key = (model.training, torch.is_grad_enabled(), *map(_form, tree_leaves((args, kwargs))))
        if key in self._known:
            self._count(state.ledger, key)
        elif self._watch is None:
            self._key, self._watch = key, Watch(model, state)
            self._watch.start()

    def after(self, model: nn.Module, state: Any, whole: bool) -> bool:
        """At the end of a forward pass; whether it was the first that was watched as a ``whole`` (without an error).

        Raises:
            ConfigError: there is a product that methods do not reach, and the meter is strict.
        """
        if self._watch is None or _calls_of(model) > 1:  # a model may call itself
            return False
        watch, self._watch = self._watch, None
        coverage = watch.stop()
        if not whole:
            return False
        self._known[self._key] = tuple(p for p in coverage.products if not p.counted)
        self._count(state.ledger, self._key)
        first, self.coverage = self.coverage is None, self.coverage or coverage
        if self.strict and coverage.outside:
            p = coverage.outside[0]
            raise ConfigError(
                f"{100 - coverage.covered:.1f} % of the forward MACs are outside of layers that methods reach: first "
                f"{p.operation} in {p.name or 'the model'} ({p.why}); attach(..., strict=False) counts them at 32 bits"
            )
        return first

    def _count(self, ledger: Any, key: Any) -> None:
        for p in self._known[key]:
            work = f"{p.name}|outside|{p.operation}|{p.macs}|{'E' if p.eb else ''}{'G' if p.gc else ''}"
            ledger.count(work, 1, partial(tuple, p.entries()))


def _form(value: Any) -> Any:
    """What of an argument a model's code may depend on: shape and type of a tensor, flags and names."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    return value if isinstance(value, bool | str | None) else type(value).__name__
