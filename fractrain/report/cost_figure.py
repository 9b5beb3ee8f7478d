"""What a training step costs, by part of the network and product, and along training: the numbers of a drawing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Final

from fractrain.cost.hardware import create
from fractrain.cost.metrics import GATE, block_of
from fractrain.cost.price import RunCost, price
from fractrain.engine.length import check_profile
from fractrain.report.arrays import Works, works_of
from fractrain.report.build import build_table
from fractrain.report.csv_cells import csv_text
from fractrain.report.draw import COLOURS, DPI, HeadLine, head_lines, saved, style, write_head
from fractrain.report.grid import plan
from fractrain.report.sources import Sources, Store, default_sources
from fractrain.report.spec import CostDrawing, TableSpec
from fractrain.report.values import Table
from fractrain.util.errors import ConfigError, FractrainError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


# -- the drawing -------------------------------------------------------------------------------------------------------


PRODUCTS: Final = {"FW": ("#0072B2", "forward"), "EB": ("#D55E00", "error"), "GC": ("#009E73", "weight gradient")}
REST: Final = "#9aa3ad"
LIGHTEST: Final = 0.72  # share of white in the last part's shade
UNITS: Final = {"seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")), "joules": ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))}
QUANTITIES: Final = {"seconds": "Time", "joules": "Energy"}
PANEL, LEFT, BETWEEN, RIGHT = 3.3, 0.95, 0.62, 0.62  # inches
BAR, CURVE, ABOVE, UNDER = 0.34, 1.9, 0.36, 0.44
STYLES: Final = ("-", "--", "-", "-.", ":")


def draw_costs(figure: CostFigure, form: str) -> bytes:
    """Return the figure as an ``svg``, ``png`` or ``pdf`` file.

    Raises:
        MachineError: matplotlib is not installed.
    """
    with style(figure.table.name):
        return saved(compose(figure), form)


def compose(figure: CostFigure) -> Figure:
    """Lay out and draw all panels; to be called, and saved, inside :func:`fractrain.report.draw.style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = LEFT + 2 * PANEL + BETWEEN + RIGHT
    rows = list(dict.fromkeys(share.row for share in figure.shares))
    bars = max(1, len(rows)) * BAR + 0.15
    texts = _texts(figure, width)
    head, foot = sum(space for *_, space in texts[0]) + 0.75, 0.16 * len(texts[1]) + 0.2
    height = head + 2 * (ABOVE + bars + UNDER) + ABOVE + CURVE + UNDER + foot
    made = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(made)
    _write(made, figure, texts, (width, height), head)
    down = head
    for hardware in figure.hardware:
        for column, quantity in enumerate(QUANTITIES):
            box = _box(column, down + ABOVE, bars, width, height)
            _bars(made.add_axes(box), figure, hardware, quantity, rows, names=column == 0)
        down += ABOVE + bars + UNDER
    for column, hardware in enumerate(figure.hardware):
        _curves(made.add_axes(_box(column, down + ABOVE, CURVE, width, height)), figure, hardware, legend=column == 0)
    return made


def _box(column: int, down: float, tall: float, width: float, height: float) -> tuple[float, float, float, float]:
    x = LEFT + column * (PANEL + BETWEEN)
    return x / width, 1 - (down + tall) / height, PANEL / width, tall / height


def _texts(figure: CostFigure, width: float) -> tuple[list[HeadLine], list[str]]:
    """Lines above the panels, and lines below."""
    warning = figure.table.watermark.partition(";")[0].replace("measured columns are", "the runs are")
    below = [*figure.remarks, *(note for note in figure.table.notes if "reconstruction" in note)]
    head = head_lines([figure.table.title, warning, figure.table.caption], width - 0.4)
    return head, [line for text in below for line in textwrap.wrap(text, int(width * 15))]


def _write(
    made: Figure, figure: CostFigure, texts: tuple[list[HeadLine], list[str]], size: tuple[float, float], head: float
) -> None:
    from matplotlib.patches import Patch

    width, height = size
    write_head(made, texts[0], 0.2)
    handles = [Patch(color=colour, label=f"{name} ({words})") for name, (colour, words) in PRODUCTS.items()]
    layers = [part for part in figure.parts if part != WHOLE]
    shades = [Patch(facecolor=_shade("#3b4450", figure, part), label=part) for part in layers]
    rest = [Patch(color=REST, label=WHOLE)] if WHOLE in figure.parts else []
    for place, group in enumerate((handles, [*shades, *rest])):
        corner = 0.2 / width, 1 - (head - 0.52 + 0.2 * place) / height
        made.legend(handles=group, loc="upper left", bbox_to_anchor=corner,
                    ncols=max(1, len(group)), frameon=False, fontsize=8, borderpad=0, borderaxespad=0, handlelength=1.2,
                    columnspacing=1.2)  # fmt: skip
    made.text(0.2 / width, (0.1 + 0.16 * len(texts[1])) / height, "\n".join(texts[1]), va="top", fontsize=7.5,
              color="#3b4450", linespacing=1.35)  # fmt: skip


def _shade(colour: str, figure: CostFigure, part: str) -> tuple[float, float, float]:
    """The product's colour, the lighter the later the part."""
    from matplotlib.colors import to_rgb

    layers = [p for p in figure.parts if p != WHOLE]
    white = LIGHTEST * layers.index(part) / max(1, len(layers) - 1)
    red, green, blue = (c + (1 - c) * white for c in to_rgb(colour))
    return red, green, blue


def _unit(values: list[float], quantity: str) -> tuple[float, str]:
    largest = max(values, default=0.0)
    return next((unit for unit in UNITS[quantity] if largest >= unit[0]), UNITS[quantity][-1])


def _is_empty(axes: Axes, title: str, empty: bool) -> bool:
    """Write a panel's title, and into one without numbers why it has none."""
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold", pad=5)
    if empty:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", va="center", color="#66707f")
    return empty


def _bars(axes: Axes, figure: CostFigure, hardware: str, quantity: str, rows: list[str], names: bool) -> None:
    """One bar for each row, from the first product of the first part to the last of the last."""
    own = [share for share in figure.shares if share.hardware == hardware]
    totals = {row: sum(getattr(s, quantity) for s in own if s.row == row) for row in rows}
    scale, unit = _unit(list(totals.values()), quantity)
    if _is_empty(axes, f"{QUANTITIES[quantity]} of a step, {hardware}", not any(totals.values())):
        return
    for place, row in enumerate(rows):
        left = 0.0
        for share in sorted((s for s in own if s.row == row), key=lambda s: _order(figure, s)):
            size = getattr(share, quantity) / scale
            colour = _shade(PRODUCTS[share.product][0], figure, share.part) if share.product else REST
            axes.barh(place, size, left=left, height=0.72, color=colour, edgecolor="white", linewidth=0.35)
            left += size
        told = f" {totals[row] / scale:.3g}"
        told += f" (×{totals[row] / totals[rows[0]]:.2f})" if place and totals[rows[0]] else ""
        axes.text(left, place, told, va="center", fontsize=7.5, color="#3b4450")
    axes.set_yticks(range(len(rows)), rows if names else [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.22 * max(totals.values()) / scale)
    axes.set_xlabel(unit, labelpad=1)
    axes.grid(True, axis="x", color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)


def _order(figure: CostFigure, share: Share) -> tuple[int, int]:
    return [*PRODUCTS, ""].index(share.product), figure.parts.index(share.part)


def _curves(axes: Axes, figure: CostFigure, hardware: str, legend: bool) -> None:
    """Time of a step along training, in percent of the mean step of the first row."""
    own = [period for period in figure.periods if period.hardware == hardware]
    rows = list(dict.fromkeys(period.row for period in own))
    if _is_empty(axes, f"Time along training, {hardware}", not rows):
        return
    first = [period for period in own if period.row == rows[0]]
    whole = sum((period.end - period.start) * period.seconds for period in first)
    for number, row in enumerate(rows):
        line = [period for period in own if period.row == row]
        edges = [line[0].start, *(period.end for period in line)]
        axes.stairs([100 * period.seconds / whole for period in line], edges, baseline=None, label=row, linewidth=1.5,
                    color=COLOURS[number % len(COLOURS)], linestyle=STYLES[number % len(STYLES)])  # fmt: skip
    axes.set_ylim(0, 1.12 * max(100 * period.seconds / whole for period in own))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the training (first seed)", labelpad=1)
    axes.set_ylabel(f"% of {rows[0]}'s mean step" if legend else "")
    axes.grid(True, color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(loc="lower left", fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none", ncols=2)
