"""What a training step costs, by part of the network and product, and along training: the numbers of a drawing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from fractrain.cost.hardware import create
from fractrain.cost.metrics import GATE, block_of
from fractrain.cost.price import RunCost, price
from fractrain.engine.length import check_profile
from fractrain.report.array_sections import Works, works_of
from fractrain.report.build import build_table
from fractrain.report.csv_cells import csv_text
from fractrain.report.grid import plan
from fractrain.report.sources import Sources, Store, default_sources
from fractrain.report.spec import CostDrawing, TableSpec
from fractrain.report.values import Table
from fractrain.util.errors import ConfigError, FractrainError

GATES, WHOLE = "gates", "whole step"


@dataclass(frozen=True)
class Share:
    """What one part and product of a step cost, on average over a run.

    Attributes:
        hardware: the model, as ``--hardware`` takes it.
        part: of the network; ``gates``; ``whole step`` for what belongs to no layer.
        product: FW, EB or GC; empty for a whole step.
        seconds, joules: of a step.
    """

    row: str
    hardware: str
    part: str
    product: str
    seconds: float
    joules: float


@dataclass(frozen=True)
class Period:
    """What a step cost in one evaluation period.

    Attributes:
        row, hardware: as of :class:`Share`.
        start, end: of the period, as shares of the training.
        seconds, joules: of a step.
    """

    row: str
    hardware: str
    start: float
    end: float
    seconds: float
    joules: float


@dataclass(frozen=True)
class CostFigure:
    """A finished figure of costs.

    Attributes:
        parts: of the network, in its order.
        shares, periods: what is drawn.
        remarks: what is not drawn, and why.
    """

    table: Table
    hardware: tuple[str, ...]
    parts: tuple[str, ...]
    shares: tuple[Share, ...]
    periods: tuple[Period, ...]
    remarks: tuple[str, ...]


def build_costs(
    spec: TableSpec, store: Store | None, profile: str, seeds: int | Sequence[int] | None = None,
    sources: Sources | None = None,
) -> CostFigure:  # fmt: skip
    """Price the runs of a table's first pair; arguments as of :func:`fractrain.report.build.build_table`.

    Raises:
        ConfigError: unknown profile, or the specification draws no costs.
    """
    if spec.costs is None:
        raise ConfigError(f"{spec.name} draws no costs: it has no [costs] section")
    known = check_profile(profile)
    sources = sources or default_sources()
    runs = plan(spec, known, seeds, store, sources)
    works = works_of(spec, [run for run in runs if run.pair == spec.pairs[0]], sources)
    shares: list[Share] = []
    periods: list[Period] = []
    missing = [spec.row(key).label for key in _keys(spec.costs) if key not in works]
    remarks = [f"Not finished, so not drawn: {', '.join(missing)}."] if missing else []
    for name in spec.costs.hardware:
        for key, costs in _priced(spec, name, works, remarks):
            label = spec.row(key).label
            shares += _shares(label, name, costs) if key in spec.costs.bars else ()
            periods += _periods(label, name, costs[0]) if key in spec.costs.along else ()
    table = build_table(spec, store, known, seeds, sources)
    drawn = {share.part for share in shares}
    parts = tuple(part for part in (*_parts(works), WHOLE) if part in drawn)
    return CostFigure(table, spec.costs.hardware, parts, tuple(shares), tuple(periods), tuple(remarks))


def _parts(works: Works) -> list[str]:
    """Parts of the network in the order of its layers; gates, which the plain network does not have, last."""
    every = [work for of_row in works.values() for work in of_row]
    names = {part_of(layer, work.counts.blocks): None for work in every for layer in work.geometry}
    others = {part_of(key.layer, work.counts.blocks): None for work in every for key in work.counts.keys}
    return list({**names, **others})


def _keys(drawing: CostDrawing) -> list[str]:
    return list(dict.fromkeys((*drawing.bars, *drawing.along)))


def _priced(spec: TableSpec, hardware: str, works: Works, remarks: list[str]) -> Iterator[tuple[str, list[RunCost]]]:
    """Each row's runs on one model; a row that it cannot price leaves a remark."""
    assert spec.costs is not None
    model = create(hardware)
    for key in _keys(spec.costs):
        try:
            if key in works:
                yield key, [price(work.counts, model, work.geometry) for work in works[key]]
        except FractrainError as problem:
            remarks.append(f"{spec.row(key).label} not priced by {hardware}: {problem}.")


def part_of(layer: str, blocks: frozenset[str]) -> str:
    """Where a layer belongs: gates, the group of its block, or its own first name."""
    if GATE in layer.split("."):
        return GATES
    block = block_of(layer, blocks) if blocks else None
    group = (block or layer).split(".")
    return ".".join(group[:-1]) or group[0] if block else group[0]


def _shares(label: str, hardware: str, costs: Sequence[RunCost]) -> Iterator[Share]:
    """Means over all runs of a row."""
    steps = sum(sum(cost.counts.samples) / (cost.counts.batch or 1) for cost in costs)
    sums: dict[tuple[str, str], list[float]] = {}
    for cost in costs:
        for key, numbers in zip(cost.counts.keys, cost.rows.sum(axis=0).tolist(), strict=True):
            total = sums.setdefault((part_of(key.layer, cost.counts.blocks), key.product), [0.0, 0.0])
            total[0] += sum(numbers[1:5])
            total[1] += sum(numbers[5:])
        rest = cost.overhead.sum(axis=0).tolist()
        if any(rest):
            total = sums.setdefault((WHOLE, ""), [0.0, 0.0])
            total[0] += sum(rest[1:5])
            total[1] += sum(rest[5:])
    for (part, product), (seconds, joules) in sums.items():
        yield Share(label, hardware, part, product, seconds / steps, joules / steps)


def _periods(label: str, hardware: str, cost: RunCost) -> Iterator[Period]:
    """Of the first seed: stages of several do not come at the same time."""
    fed, whole = 0, sum(cost.counts.samples)
    for samples, numbers in zip(cost.counts.samples, cost.by_epoch.tolist(), strict=True):
        steps = samples / (cost.counts.batch or 1)
        yield Period(label, hardware, fed / whole, (fed + samples) / whole, sum(numbers[1:5]) / steps,
                     sum(numbers[5:]) / steps)  # fmt: skip
        fed += samples


def costs_csv(figure: CostFigure) -> str:
    """Return what is drawn, one line each: ``kind`` is ``share`` or ``period``."""
    names = list(dict.fromkeys(field.name for kind in (Share, Period) for field in fields(kind)))
    lines: list[list[object]] = [["figure", "version", "profile", "kind", *names]]
    table = figure.table
    for kind, items in (("share", figure.shares), ("period", figure.periods)):
        for item in items:
            values: Mapping[str, object] = asdict(item)
            lines.append([table.name, table.version, table.profile, kind, *(values.get(n, "") for n in names)])
    return csv_text(lines)
