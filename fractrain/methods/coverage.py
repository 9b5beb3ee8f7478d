"""Which products of a model a method reaches, measured by what a forward pass really multiplies.

Modules do not tell: a model may call ``F.linear`` on a parameter of its own, or have layers that never run. So a pass
is watched below autograd, where every product of PyTorch is seen, whoever called it. What quantized layers multiply is
counted as they report it, everything else by PyTorch's own formulas (:mod:`torch.utils.flop_counter`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fractrain.cost.ledger import FLOAT_BITS, Entry
from fractrain.layers.base import QuantLayer
from fractrain.layers.state import CandidateScope
from fractrain.methods.gate import GateNetwork
from fractrain.methods.gated_block import GatedBlock
from fractrain.util.errors import ConfigError

Status = Literal["quantized", "float", "outside"]
CODE = "computed in the code of"
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
    """

    name: str
    operation: str
    status: Status
    why: str
    macs: int
    eb: bool = False
    gc: bool = False

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

    Args:
        model: the model; its quantized layers say what they multiply.
        left: layers and why they were not converted, by name.
        kept: layers and why a method leaves them in floating point, by name.
    """

    def __init__(self, model: nn.Module, left: Mapping[str, str], kept: Mapping[str, str]) -> None:
        self._modules = {m: name for name, m in model.named_modules()}
        self._left, self._kept = left, kept
        self._frames: list[_Frame] = []
        self._found: dict[tuple[str, str], Product] = {}
        self._reported = 0  # MACs that layers have reported and others compute
        self._mode = _ProductMode(self)
        self._hooks: list[Any] = []

    def start(self) -> None:
        """Begin to watch."""
        for module in self._modules:  # torch's global hooks leave traces behind when they are removed
            self._hooks.append(module.register_forward_pre_hook(self._enter))
            self._hooks.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> Coverage:
        """End watching; return what there was. The hooks stay: see :meth:`remove`."""
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return Coverage(tuple(self._found.values()))

    def remove(self) -> None:
        """Remove the hooks. Not while PyTorch goes through them after an error: it would hide that."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._frames.append(_Frame(module))

    def _leave(self, module: nn.Module, args: Any, *rest: Any) -> None:
        *kwargs, output = rest  # after an error PyTorch calls without the keyword arguments
        while self._frames and self._frames.pop().module is not module:
            pass
        if not isinstance(module, QuantLayer) or not isinstance(output, torch.Tensor) or not self._counts():
            return
        macs = module.sample_macs(output) * output.shape[0]
        quantized = not module.effective(module.precision).is_float
        why = "" if quantized else self._kept.get(module.site, "the method leaves it in floating point")
        self._add(Product(module.site, type(module).__name__, "quantized" if quantized else "float", why, macs))
        if kwargs[0].get("elsewhere"):
            self._reported += macs

    def saw(self, operation: str, macs: int, operands: list[torch.Tensor]) -> None:
        """Note one product of PyTorch's; ``operands`` without what is only added."""
        inside = [f.module for f in self._frames]
        if not self._counts() or any(isinstance(m, QuantLayer | GateNetwork) for m in inside):
            return
        known = min(self._reported, macs)
        self._reported -= known
        if macs == known:
            return
        name, why = self._where(inside)
        train = torch.is_grad_enabled()
        eb = train and operands[0].requires_grad
        gc = train and any(t.requires_grad for t in operands[1:])
        self._add(Product(name, operation, "outside", why, macs - known, eb, gc))

    def _counts(self) -> bool:
        """Whether what runs now is counted: of the passes of a gated block that all see the whole batch, one."""
        frame = next((f for f in reversed(self._frames) if isinstance(f.module, GatedBlock)), None)
        if frame is None or frame.module.shares_batch:
            return True
        scope = frame.module.state.scope  # type: ignore[union-attr]
        frame.first = frame.first or scope  # type: ignore[assignment]
        return frame.first is scope

    def _where(self, inside: list[nn.Module]) -> tuple[str, str]:
        """Name of the innermost module of the model, and why its products are reached by no method."""
        names = [n for m in inside if (n := self._modules.get(m)) is not None]
        for module in inside:
            if isinstance(module, nn.RNNBase | nn.RNNCellBase):
                return self._modules.get(module, ""), "recurrent layers stay in floating point"
        name = names[-1] if names else ""
        own = self._left.get(name)
        return name, own or f"{CODE} {type(inside[-1]).__name__ if inside else 'the model'}"

    def _add(self, new: Product) -> None:
        key = (new.name, new.operation)
        old = self._found.get(key)
        macs = new.macs + (old.macs if old else 0)
        eb, gc = (new.eb or bool(old and old.eb)), (new.gc or bool(old and old.gc))
        self._found[key] = Product(new.name, new.operation, new.status, new.why, macs, eb, gc)


@dataclass
class _Frame:
    """A module that is running; of a gated block also the first of its passes."""

    module: nn.Module
    first: CandidateScope | None = None


class _ProductMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a :class:`Watch` every operation that multiplies matrices."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", None)
        formula = OWN_FORMULAS.get(str(packet))
        if packet not in flop_registry and formula is None:
            if torch.is_inference_mode_enabled() and packet is not None:  # there, products come whole
                with self:
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        operands = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
        name = str(packet).rpartition(".")[2]
        if formula is not None:
            macs = formula(*args, **kwargs)
        else:
            macs = flop_registry[packet](*args, **kwargs, out_val=out) // 2
        if not name.endswith("backward") and operands:
            self._watch.saw(name, macs, operands[1:] if name in ADDING else operands)
        return out


ADDING = ("addmm", "baddbmm", "addmv")
"""Operations whose first operand is added to the product."""


def _encoder_layer(src: torch.Tensor, width: int, heads: int, *rest: Any) -> int:
    """MACs of the fused encoder layer on ``[N, T, width]``: projections, attention's products, feed-forward."""
    tensors = [t for t in rest if isinstance(t, torch.Tensor) and t.dim() == 2]
    n, t, _ = src.shape
    return int(n * t * sum(w.numel() for w in tensors[:4]) + 2 * n * t * t * width)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, width: int, heads: int, *rest: Any) -> int:
    """MACs of fused attention with its projections, on ``[N, T, width]``."""
    n, t, _ = q.shape
    return int(4 * n * t * width * width + 2 * n * t * t * width)


def _recurrent(x: torch.Tensor, *rest: Any) -> int:
    """MACs of a fused recurrent layer on ``[T, N, features]``: all its matrices for every vector."""
    weights = tree_leaves(rest[0]) if isinstance(rest[0], list | tuple) else rest[:2]
    return int(x.shape[0] * x.shape[1] * sum(w.numel() for w in weights if w.dim() == 2))


def _vector(*args: Any) -> int:
    matrix = next(t for t in args if t.dim() == 2)
    return int(matrix.numel())


OWN_FORMULAS: dict[str, Callable[..., int]] = {
    "aten._transformer_encoder_layer_fwd": _encoder_layer,
    "aten._native_multi_head_attention": _attention,
    "aten.mkldnn_rnn_layer": _recurrent,
    "aten._cudnn_rnn": _recurrent,
    "aten.mv": _vector,
    "aten.addmv": _vector,
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
        self._ended: Watch | None = None  # of a pass that ended with an error
        self._key: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watch": None, "_ended": None}

    def before(self, model: nn.Module, state: Any, args: Any, kwargs: Any) -> None:
        """At the start of a forward pass of ``model`` whose layers share ``state``."""
        self._remove()
        key = (model.training, torch.is_grad_enabled(), *map(_form, tree_leaves((args, kwargs))))
        if key in self._known:
            self._count(state.ledger, key)
        elif self._watch is None:
            self._key, self._watch = key, Watch(model, state.left_in_float, state.kept_in_float)
            self._watch.start()

    def after(self, state: Any, whole: bool) -> bool:
        """At the end of a forward pass; whether it was the first that was watched as a ``whole`` (without an error).

        Raises:
            ConfigError: there is a product that methods do not reach, and the meter is strict.
        """
        watch, self._watch = self._watch, None
        if watch is None:
            return False
        coverage = watch.stop()
        self._ended = watch
        if not whole:
            return False
        self._remove()
        self._known[self._key] = coverage.outside
        self._count(state.ledger, self._key)
        first, self.coverage = self.coverage is None, self.coverage or coverage
        if self.strict and coverage.outside:
            p = coverage.outside[0]
            raise ConfigError(
                f"{100 - coverage.covered:.1f} % of the forward MACs are outside of layers that methods reach: first "
                f"{p.operation} in {p.name or 'the model'} ({p.why}); attach(..., strict=False) counts them at 32 bits"
            )
        return first

    def _remove(self) -> None:
        if self._ended is not None:
            self._ended.remove()
            self._ended = None

    def _count(self, ledger: Any, key: Any) -> None:
        for number, product in enumerate(self._known[key]):
            work = f"{product.name}|outside|{'/'.join(map(str, key))}|{number}"
            ledger.count(work, 1, partial(tuple, product.entries()))


def _form(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
