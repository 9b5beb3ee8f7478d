"""The contract that every hardware model must meet, for ``fractrain check-hardware`` and plugin authors.

::

    from fractrain.testing.hardware import check_hardware

    report = check_hardware("my_array.py")           # a name with settings, a class, or a file
    assert report.ok, report.text()
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch

from fractrain.cost.hardware.base import Cost, HardwareModel, LayerShape, Product
from fractrain.cost.hardware.registry import HardwareRegistry, configure, create
from fractrain.cost.ledger import Entry, Ledger
from fractrain.cost.price import Counts, Geometries, Recorded, RunCost, price
from fractrain.data import registry as datasets
from fractrain.methods.session import attach
from fractrain.models import registry
from fractrain.models.layer_shapes import layer_shapes
from fractrain.models.macs import forward_macs
from fractrain.testing.report import CheckResult, ContractViolation, NotApplicable, Report, run_one
from fractrain.util.errors import ConfigError, FractrainError, did_you_mean
from fractrain.util.registry import Origin

MAPPED: Mapping[str, Mapping[str, Any]] = {"dfq": {}, "dynasty": {"refresh": 1, "observe": 1}}
"""Methods with widths per sample and per tile, with settings under which they vary at once."""
EMBEDDED = ("digits", "digits32", "docs_text")
SHAPE, CLASSES = (3, 8, 8), 10


@lru_cache(maxsize=32)
def package_shapes(model: str) -> Mapping[str, LayerShape]:
    """Shapes of a registered model's layers on the first embedded data set that it can be trained on.

    Raises:
        ConfigError: there is none.
    """
    for name in EMBEDDED:
        info = datasets.info(name)
        if registry.compatible(model, cast(Any, info)) is None:
            return layer_shapes(lambda info=info: registry.build(model, info.classes, info.shape), info.shape)  # type: ignore[misc]
    raise ConfigError(f"{model} can be trained on none of {', '.join(EMBEDDED)}")


@lru_cache(maxsize=8)
def trained(method: str) -> tuple[Counts, Mapping[str, LayerShape]]:
    """Counts of two training steps of a method on a small residual network, and the shapes of its layers."""
    model = registry.build("resnet38", CLASSES, SHAPE)
    macs = forward_macs(model, SHAPE)
    session = attach(method, model, batch_size=BATCH, total_steps=2, **MAPPED[method])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(session.model.parameters(), lr=1e-3)
    for _ in range(2):
        x = torch.rand((BATCH, *SHAPE), generator=generator)
        y = torch.randint(CLASSES, (BATCH,), generator=generator)
        session.loss(torch.nn.functional.cross_entropy(session.model(x), y)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    ledger: Ledger = session.ledger
    ledger.meta |= {"batch_size": BATCH, "forward_macs": macs}
    return Counts.from_ledger(ledger), layer_shapes(lambda: registry.build("resnet38", CLASSES, SHAPE), SHAPE)


SHAPES: Mapping[str, LayerShape] = {
    "conv": LayerShape("conv", 16, 24, (3, 3), (1, 1), (12, 12), (12, 12)),
    "first": LayerShape("conv", 3, 16, (3, 3), (1, 1), (12, 12), (12, 12), first=True),
    "stride": LayerShape("conv", 32, 64, (3, 3), (2, 2), (12, 8), (6, 4)),
    "pointwise": LayerShape("conv", 48, 16, (1, 1), (1, 1), (12, 12), (12, 12)),
    "grouped": LayerShape("conv", 32, 64, (3, 3), (1, 1), (6, 6), (6, 6), groups=4),
    "depthwise": LayerShape("conv", 48, 48, (3, 3), (2, 2), (12, 12), (6, 6), groups=48),
    "linear": LayerShape("linear", 64, 10),
    "words": LayerShape("linear", 64, 256, in_size=(16, 1), out_size=(16, 1)),
    "attention": LayerShape("matmul", 4 * 16, 4 * 16, in_size=(16, 1), out_size=(16, 1), groups=4),
}
PRODUCTS: tuple[Product, ...] = ("FW", "EB", "GC")
BITS = (2, 3, 4, 6, 8, 12, 16, 32)
BATCH = 8
FORWARD_MACS = 83_280_512  # of ResNet-38
SLACK = 1e-9

Check = Callable[[HardwareModel], str]


@dataclass(frozen=True)
class HardwareReport(Report):
    """Results of all checks of one hardware model."""

    hardware: str
    checks: tuple[CheckResult, ...]

    def subject_text(self) -> dict[str, str]:
        """The hardware model with its settings."""
        return {"hardware": self.hardware}


def load_hardware(hardware: str | Path | type[HardwareModel]) -> HardwareModel:
    """Return a hardware model, given its class, its name with settings, or a plugin file.

    Raises:
        ConfigError: unknown name or setting.
        PluginError: the file cannot be imported or holds no hardware model.
    """
    if isinstance(hardware, type):
        return hardware()
    if isinstance(hardware, Path) or str(hardware).endswith(".py"):
        path, registry = Path(hardware).resolve(), HardwareRegistry()
        registry.add(path.stem, Origin("file", str(path)))
        return registry.get(path.stem)()
    return create(str(hardware))


def check_hardware(
    hardware: str | Path | type[HardwareModel],
    checks: Sequence[str] = (),
    progress: Callable[[CheckResult], None] | None = None,
) -> HardwareReport:
    """Check a hardware model against the contract.

    Args:
        hardware: name with settings, plugin file, or class.
        checks: which checks; none: all.
        progress: called with every result as it comes.

    Returns:
        The report. Whatever a model raises is in it.

    Raises:
        ConfigError: unknown model, setting or check.
        PluginError: the model cannot be loaded.
    """
    for name in checks:
        if name not in CHECKS:
            raise ConfigError(f"unknown check {name!r}{did_you_mean(name, CHECKS)}; there are {', '.join(CHECKS)}")
    model, results = load_hardware(hardware), []
    for name in checks or CHECKS:
        results.append(run_one(name, lambda check=CHECKS[name]: check(model), model.expected_failures.get(name)))  # type: ignore[misc]
        if progress is not None:
            progress(results[-1])
    return HardwareReport(model.title, tuple(results))


# -- what is priced --------------------------------------------------------------------------------------------------


def cost_of(
    model: HardwareModel, shape: str, product: Product, bits: tuple[int, int], samples: int = BATCH, batch: int = BATCH
) -> Cost:
    """Price one product of one of :data:`SHAPES`."""
    entry = Entry(shape, product, *bits, SHAPES[shape].macs)
    return _price(model, _counts([(entry, samples)], samples, batch), SHAPES).until()


def _counts(work: Iterable[tuple[Entry, int]], samples: int, batch: int) -> Counts:
    work = list(work)
    blocks = sorted({entry.layer for entry, _ in work})
    ledger = Ledger({"blocks": blocks, "batch_size": batch, "forward_macs": FORWARD_MACS})
    ledger.samples(samples)
    for number, (entry, units) in enumerate(work):
        ledger.count(str(number), units, lambda entry=entry: [entry])  # type: ignore[misc]
    return Counts.from_ledger(ledger)


def _price(model: HardwareModel, counts: Counts, shapes: Geometries) -> RunCost:
    """Price with clock readings in proportion to the samples, for what measures."""
    taken = {epoch: 1e-3 * n for epoch, n in zip(counts.epochs, counts.samples, strict=True)}
    return price(counts, model, shapes, Recorded(taken, taken))


def _products() -> Iterator[tuple[str, Product]]:
    for shape, product in itertools.product(SHAPES, PRODUCTS):
        if not (SHAPES[shape].first and product == "EB"):  # nobody needs the gradient of the data
            yield shape, product


def _positive(cost: Cost, where: str) -> None:
    for name, value in (("time", cost.seconds.total), ("energy", cost.joules.total)):
        if not (math.isfinite(value) and value > 0):
            raise ContractViolation(f"{where}: {name} is {value:g}, which is no cost")


def _grows(low: Cost, high: Cost, what: str) -> None:
    for name, before, after in (("time", low.seconds, high.seconds), ("energy", low.joules, high.joules)):
        if after.total < before.total * (1 - SLACK):
            raise ContractViolation(f"{what}: {name} falls from {before.total:.6g} to {after.total:.6g}")


# -- the checks --------------------------------------------------------------------------------------------------------


def card(model: HardwareModel) -> str:
    """The card says what is counted, where the numbers come from, and what the model is not."""
    told = model.card()
    missing = [key for key in ("counted", "source", "is not") if not told.get(key, "").strip()]
    if missing or not model.summary():
        raise ContractViolation(f"the card lacks {', '.join(missing) or 'a description (first line of the docstring)'}")
    if long := [key for key, value in told.items() if "\n" in value]:
        raise ContractViolation(f"the card's {long[0]} has more than one line")
    return f"{len(told)} lines"


def finite_positive(model: HardwareModel) -> str:
    """Time and energy of every shape, product and pair of widths are finite and positive."""
    asked = list(itertools.product(_products(), itertools.product(BITS, BITS)))
    for (shape, product), bits in asked:
        _positive(cost_of(model, shape, product, bits), f"{shape} {product} at {bits[0]} x {bits[1]} bits")
    return f"{len(asked)} costs"


def widths(model: HardwareModel) -> str:
    """Time and energy never fall when an operand gets wider."""
    if model.measures:
        raise NotApplicable("it measures: what was run was run")
    compared = 0
    for shape, product in _products():
        costs = {bits: cost_of(model, shape, product, bits) for bits in itertools.product(BITS, BITS)}
        for (a, b), cost in costs.items():
            for wider in [(n, b) for n in BITS if n > a][:1] + [(a, n) for n in BITS if n > b][:1]:
                _grows(cost, costs[wider], f"{shape} {product}, from {a} x {b} to {wider[0]} x {wider[1]} bits")
                compared += 1
    return f"{compared} comparisons"


def work(model: HardwareModel) -> str:
    """Time and energy never fall when there is more to do: more samples, or a larger batch."""
    for shape, product in _products():
        costs = [cost_of(model, shape, product, (4, 8), n * BATCH) for n in (1, 2, 5)]
        larger = [cost_of(model, shape, product, (4, 8), n, n) for n in (1, 2, 5, 8, 31, 128)]
        for name, series in (("samples", costs), ("samples in a batch", larger)):
            for low, high in itertools.pairwise(series):
                _grows(low, high, f"{shape} {product}, more {name}")
    return "samples and batches"


def additive(model: HardwareModel) -> str:
    """Where the model says so, rows add up, and a row's cost is in proportion to its MACs."""
    if not model.additive:
        raise NotApplicable("it says that it is not additive")
    rows = [(Entry(shape, product, 4, 8, SHAPES[shape].macs), BATCH) for shape, product in _products()]
    whole = _price(model, _counts(rows, BATCH, BATCH), SHAPES).until()
    single = [cost_of(model, entry.layer, entry.product, (4, 8)) for entry, _ in rows]
    for name in ("seconds", "joules"):
        total, parts = getattr(whole, name).total, math.fsum(getattr(cost, name).total for cost in single)
        if not math.isclose(total, parts, rel_tol=1e-9):
            raise ContractViolation(f"{name} of all rows together are {total:.9g}, one by one {parts:.9g}")
    _in_proportion(model)
    return f"{len(rows)} rows"


def _in_proportion(model: HardwareModel) -> None:
    from fractrain.cost.hardware.base import WorkRow

    for shape, product in _products():
        full = WorkRow(shape, product, 4, 8, SHAPES[shape].macs * BATCH, SHAPES[shape], BATCH, shape)
        once = model.row(full).figures()
        for factor in (0.25, 3.0):
            more = model.row(replace(full, macs=full.macs * factor)).figures()
            if any(
                not math.isclose(m, factor * o, rel_tol=1e-9, abs_tol=1e-300) for m, o in zip(more, once, strict=True)
            ):
                told = f"{factor:g} times the MACs do not cost {factor:g} times as much"
                raise ContractViolation(f"{shape} {product}: {told}")


def repeatable(model: HardwareModel) -> str:
    """The same work costs the same, whatever was priced before."""
    asked = [(shape, product, (4, 8)) for shape, product in _products()]
    first = [cost_of(model, *one) for one in asked]
    again = [cost_of(model, *one) for one in reversed(asked)][::-1]
    if different := [one for one, a, b in zip(asked, first, again, strict=True) if a != b]:
        raise ContractViolation(f"{different[0][0]} {different[0][1]} costs something else the second time")
    return f"{len(asked)} rows twice"


def models(model: HardwareModel) -> str:
    """Every model of the package can be priced, in all three products."""
    from fractrain.models import registry

    for name in registry.names():
        shapes = package_shapes(name)
        work = [
            (Entry(layer, product, 4, 8, shape.macs), BATCH) for layer, shape in shapes.items() for product in PRODUCTS
        ]
        _positive(_price(model, _counts(work, BATCH, BATCH), shapes).until(), name)
    return ", ".join(registry.names())


def mapped(model: HardwareModel) -> str:
    """Ledgers of real training steps can be priced: widths per sample (gates, floating point) and per tile."""
    for method in MAPPED:
        counts, shapes = trained(method)
        _positive(_price(model, counts, shapes).until(), f"two steps of {method}")
    return ", ".join(MAPPED)


def presets(model: HardwareModel) -> str:
    """Every preset can be made and priced."""
    kind = type(model)
    for name, values in kind.presets.items():
        _positive(cost_of(configure(kind, values), "conv", "FW", (4, 8)), f"preset {name}")
    if not kind.presets:
        raise NotApplicable("there are none")
    return ", ".join(kind.presets)


def unknown_layer(model: HardwareModel) -> str:
    """A layer without a known shape is priced, or refused in one line."""
    counts = _counts([(Entry("elsewhere", "FW", 4, 8, 1000), BATCH)], BATCH, BATCH)
    try:
        _positive(_price(model, counts, {}).until(), "a layer without a known shape")
    except FractrainError as told:
        if model.needs_geometry and "elsewhere" in str(told) and "\n" not in str(told):
            return "refused"
        raise
    return "priced"


CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        card, finite_positive, widths, work, additive, repeatable, presets, unknown_layer, models, mapped,
    )
}  # fmt: skip
