"""The precision card of a method: what number format every operand has, read off a tiny model that it has prepared.

Nothing is written down twice: the method prepares a ResNet of eight layers and is driven through a short training
whose loss does not move, so that a schedule goes through its stages; the card tells what its layers declared then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fractrain.layers.conv_linear import QuantLayer
from fractrain.layers.convert import quant_layers
from fractrain.methods.base import Method, MethodContext
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.numerics.formats import Granularity, PerAxis, PerBlock, PerTile
from fractrain.numerics.precision import Operand, Precision

STEPS, PERIOD = 256, 4  # of the driven training; enough for the stages of a schedule
REAL_STEPS = 3  # forward and backward are done in these only
OPERANDS = {
    "A": (("FW", "fw_a"), ("GC", "gc_a")), "W": (("FW", "fw_w"), ("EB", "eb_w")), "E": (("EB", "eb_e"), ("GC", "gc_e")),
}  # fmt: skip
SAMPLE_AXIS = {"A": "per sample", "W": "per output channel", "E": "per sample"}


@dataclass(frozen=True)
class OperandCard:
    """One tensor of one layer in one or two products.

    Attributes:
        operand: ``A``, ``W`` or ``E``.
        products: of ``FW``, ``EB``, ``GC``.
        format: name of the number format; ``float32`` where it is not quantized.
        bits: all widths declared while training, ascending.
        varies: how the width varies: empty, ``per sample``, ``per tile``, ``while training``, or ``chosen by a gate``.
        granularity: which elements share a grid.
        rounding: ``nearest`` or ``stochastic``.
        evaluation: where the grid in evaluation comes from; empty for what has no part in evaluation.
    """

    operand: str
    products: tuple[str, ...]
    format: str
    bits: tuple[int, ...]
    varies: str = ""
    granularity: str = ""
    rounding: str = ""
    evaluation: str = ""

    def text(self) -> str:
        """One line."""
        where = f"{self.operand} ({', '.join(self.products)}): "
        if self.format == "float32":
            return f"{where}float32"
        bits = "/".join(str(b) for b in self.bits)
        varies = f" {self.varies}" if self.varies else ""
        tail = f"; evaluation: {self.evaluation}" if self.evaluation else ""
        return f"{where}{self.format} {bits} b{varies}, {self.granularity}, {self.rounding}{tail}"


@dataclass(frozen=True)
class LayerCard:
    """Layers of one kind.

    Attributes:
        place: ``first layer``, ``inner layers`` or ``last layer``.
        count: how many of the tiny model's layers.
        example: name of one of them.
        operands: their operands.
    """

    place: str
    count: int
    example: str
    operands: tuple[OperandCard, ...]


@dataclass(frozen=True)
class PrecisionCard:
    """What a method computes in which precision.

    Attributes:
        method: registry name.
        settings: the settings the card holds for.
        layers: by place.
        normalization: kinds of normalisation layers with their widths.
        added: kinds of modules that the method puts into the model.
        master_weights, optimizer_state: as the method declares them.
    """

    method: str
    settings: dict[str, Any]
    layers: tuple[LayerCard, ...]
    normalization: tuple[str, ...]
    added: tuple[str, ...] = ()
    master_weights: str = "float32"
    optimizer_state: str = "float32"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "method": self.method, "settings": self.settings,
            "layers": [
                {"place": c.place, "count": c.count, "example": c.example, "operands": [vars(o) for o in c.operands]}
                for c in self.layers
            ],
            "normalization": list(self.normalization), "added": list(self.added),
            "master_weights": self.master_weights, "optimizer_state": self.optimizer_state,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The card for people."""
        out = []
        for card in self.layers:
            out.append(f"{card.place} ({card.example}{f' and {card.count - 1} more' if card.count > 1 else ''}):")
            floats = all(o.format == "float32" for o in card.operands)
            out += ["  float32"] if floats else [f"  {o.text()}" for o in card.operands]
        out.append(f"normalisation: {', '.join(self.normalization) or 'none'}")
        if self.added:
            out.append(f"added: {', '.join(self.added)}")
        out.append(f"master weights: {self.master_weights}; optimizer state: {self.optimizer_state}")
        return out


def declared_precisions(model: nn.Module) -> dict[QuantLayer, Callable[[], list[Precision]]]:
    """For every quantized layer, what returns the precisions it may have now.

    That is its own one, or those of the block around it that switches between candidates (a module with a list of
    :class:`Precision` called ``precisions``; where it has a method ``precisions_of(layer)``, what that says).
    """
    candidates: dict[QuantLayer, list[Precision]] = {}
    for module in model.modules():
        own = getattr(module, "precisions", None)
        if isinstance(own, list | tuple) and own and all(isinstance(p, Precision) for p in own):
            of = getattr(module, "precisions_of", lambda _layer, own=own: own)
            candidates |= {layer: list(of(layer)) for layer in quant_layers(module)}

    def reader(layer: QuantLayer) -> Callable[[], list[Precision]]:
        return lambda: [layer.effective(p) for p in candidates.get(layer) or [layer.precision]]

    return {layer: reader(layer) for layer in quant_layers(model)}


def precision_card(kind: type[Method], settings: Mapping[str, Any] | None = None) -> PrecisionCard:
    """Make the card of a method.

    Args:
        kind: the method's class.
        settings: settings that differ from the defaults.

    Raises:
        ConfigError: the settings do not fit a small CIFAR ResNet.
        pydantic.ValidationError: wrong settings.
    """
    method = kind(kind.Settings(**(settings or {})))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = ResNetCifar(1, classes=10)
        before = list(plain.modules())
        blocks = plain.gateable_blocks()
        context = MethodContext(steps_per_epoch=PERIOD, total_steps=STEPS, batch_size=4, blocks=blocks)
        model = method.prepare(plain, context)
        seen = {layer: _Seen(layer.site) for layer in quant_layers(model)}
        readers = declared_precisions(model)
        for _ in _driven(method, model):
            for layer, read in readers.items():
                seen[layer].add(read())
    values = method.settings.model_dump(mode="json")
    return PrecisionCard(
        kind.name, values, tuple(_by_place(list(seen.values()))), _normalization(model), _added(model, before),
        kind.master_weights, kind.optimizer_state,
    )  # fmt: skip


def _driven(method: Method, model: nn.Module) -> Iterator[None]:
    """Drive the method through a training on noise, and stop at every step."""
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    loss = torch.tensor(1.0)
    model.train()
    for step in range(STEPS):
        if step % PERIOD == 0:
            method.on_epoch_start(step // PERIOD)
        method.on_step_start(step)
        extra = None
        if step < REAL_STEPS:
            model.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x), y)
            extra = method.extra_loss()
            (loss if extra is None else loss + extra).backward()  # type: ignore[no-untyped-call]
            loss = loss.detach()
        yield
        method.on_step_end(step, loss, None if extra is None else extra.detach())
        if step % PERIOD == PERIOD - 1:
            method.on_epoch_end(step // PERIOD, 1.0)


@dataclass
class _Seen:
    """All that one layer declared."""

    site: str
    operands: dict[str, list[Operand]] = field(default_factory=dict)
    choice: bool = False
    _last: list[Precision] = field(default_factory=list)

    def add(self, precisions: list[Precision]) -> None:
        if len(precisions) == len(self._last) and all(a is b for a, b in zip(precisions, self._last, strict=True)):
            return
        self.choice |= len(precisions) > 1
        self._last = list(precisions)
        for precision in precisions:
            for name, op in precision.operands().items():
                known = self.operands.setdefault(name, [])
                if not any(op is k or (isinstance(op.bits, int) and op == k) or op.same_as(k) for k in known):
                    known.append(op)

    def cards(self) -> tuple[OperandCard, ...]:
        """One card per tensor, or two where its products use it differently."""
        out: list[OperandCard] = []
        for operand, uses in OPERANDS.items():
            how = "chosen by a gate" if self.choice else "while training"
            first, second = (_operand_card(operand, product, self.operands[name], how) for product, name in uses)
            both = OperandCard(**{**vars(first), "products": first.products + second.products})
            same = OperandCard(**{**vars(second), "products": both.products, "evaluation": first.evaluation}) == both
            out += [both] if same else [first, second]
        return tuple(out)


def _operand_card(operand: str, product: str, ops: list[Operand], how: str) -> OperandCard:
    live = [o for o in ops if not o.is_float]
    if not live:
        return OperandCard(operand, (product,), "float32", (32,))
    bits = {w for o in ops for w in (torch.unique(o.bits).tolist() if isinstance(o.bits, torch.Tensor) else [o.bits])}
    maps = [o for o in live if isinstance(o.bits, torch.Tensor)]
    varies = ""
    if maps:
        varies = "per tile" if isinstance(maps[0].format.granularity, PerTile) else "per sample"
    elif len(bits) > 1:
        varies = how
    evaluation = ""
    if product == "FW":
        running = sorted({o.running for o in live if o.running is not None})
        keeps = "/".join(f"{r:g}" for r in running)
        evaluation = f"running range (keeps {keeps})" if running else "as in training"
    names, roundings = (
        " or ".join(dict.fromkeys(getattr(o.format, key) for o in live)) for key in ("name", "rounding")
    )
    granularity = " or ".join(dict.fromkeys(_granularity(operand, o.format.granularity) for o in live))
    return OperandCard(operand, (product,), names, tuple(sorted(bits)), varies, granularity, roundings, evaluation)


def _granularity(operand: str, g: Granularity) -> str:
    if isinstance(g, PerBlock):
        rows, cols = g.rows or "all", g.cols or "all"
        return {(1, "all"): "per row", ("all", 1): "per column"}.get((rows, cols), f"per {rows}x{cols} block")
    if isinstance(g, PerTile):
        return f"per {g.rows}x{g.cols} tile"
    if isinstance(g, PerAxis):
        return SAMPLE_AXIS[operand] if g.axis == 0 else ("per input channel" if operand == "W" else "per channel")
    return "per tensor"


def _by_place(layers: list[_Seen]) -> Iterator[LayerCard]:
    """First and last layer, and the others grouped by what they declare."""
    if not layers:
        return
    yield LayerCard("first layer", 1, layers[0].site, layers[0].cards())
    groups: dict[tuple[OperandCard, ...], list[str]] = {}
    for layer in layers[1:-1]:
        groups.setdefault(layer.cards(), []).append(layer.site)
    for cards, sites in groups.items():
        yield LayerCard("inner layers", len(sites), sites[0], cards)
    if len(layers) > 1:
        yield LayerCard("last layer", 1, layers[-1].site, layers[-1].cards())


def _normalization(model: nn.Module) -> tuple[str, ...]:
    """Kinds of normalisation layers; one that has widths of its own shows them."""
    kinds: Counter[str] = Counter()
    for m in model.modules():
        if "Norm" in type(m).__name__ and not any(m.children()):  # not what only holds one
            widths = [f"{n} {getattr(m, n)}" for n in ("bits", "grad_bits") if isinstance(getattr(m, n, None), int)]
            name = type(m).__name__.removeprefix("Compact")  # the same function
            kinds[f"{name} in {', '.join(widths) or 'float32'}"] += 1
    return tuple(kinds)


def _added(model: nn.Module, before: list[nn.Module]) -> tuple[str, ...]:
    """Kinds of modules, other than torch's own and those of the package, that were not in the plain model."""
    old = {id(m) for m in before}
    new = Counter(
        type(m).__name__
        for m in model.modules()
        if id(m) not in old and not type(m).__module__.startswith(("torch.", "fractrain.layers."))
        and "Norm" not in type(m).__name__
    )  # fmt: skip
    return tuple(f"{name} x {count}" for name, count in sorted(new.items()))
