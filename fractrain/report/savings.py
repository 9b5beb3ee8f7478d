"""Where a saving comes from: a saving of cost is one minus the product of iterations and cost per image.

Published costs count up to the iteration of best test accuracy. A method that happens to be best early saves without
any low precision, so every saving is shown split, in a section of the table: ``53.5 % = 1 - .562 x .827`` says that
training stopped after .562 of the other's iterations and that an image cost .827 of the other's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fractrain.cost.formulas import AUTHORS_FORWARD_MACS, static_cp
from fractrain.cost.hardware import create
from fractrain.cost.hardware.fitted import REFERENCES, ReferenceLine
from fractrain.engine.length import Profile
from fractrain.report.rows import EMPTY, MethodRow, group_heading, published_value
from fractrain.report.sources import PublishedIndex
from fractrain.report.spec import Pair, RowSpec, TableSpec
from fractrain.report.values import Cell, Column, Row, RunValues, Section

BATCH: Final = 128  # of FracTrain's CIFAR table
MILLI: Final = 1e-3
Runs = Mapping[int, RunValues]  # by seed, complete rows only

LABELS: Final = {"latency": "Latency", "energy": "Energy", "macs": "MACs"}
PUBLISHED: Final = {"latency": "latency_published", "energy": "energy_published", "macs": "macs_published"}


@dataclass(frozen=True)
class SavingFactors:
    """A saving and its two factors, each as a ratio of the row's to the other row's.

    Attributes:
        iterations: training samples up to the point that is meant.
    """

    iterations: float
    per_image: float

    @property
    def saving(self) -> float:
        """In percent."""
        return 100 * (1 - self.iterations * self.per_image)

    @property
    def at_equal_iterations(self) -> float:
        """What precision alone saves, in percent: had both taken the same number of iterations."""
        return 100 * (1 - self.per_image)

    def text(self) -> str:
        """For example ``53.5 % = 1 - .562 x .827``."""
        return f"{self.saving:.1f} % = 1 – {_ratio(self.iterations)} × {_ratio(self.per_image)}"


def _ratio(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


# -- measured ----------------------------------------------------------------------------------------------------------


def measured_split(own: Runs, other: Runs, cost: str, where: str) -> SavingFactors | None:
    """Split a saving of measured runs, over their common seeds together.

    Args:
        own, other: complete runs by seed.
        cost: ``latency``, ``energy`` or ``macs``.
        where: ``best`` (up to each run's epoch of best test accuracy) or ``end`` (whole runs).

    Returns:
        None where a run lacks the cost.
    """
    seeds = own.keys() & other.keys()
    mine, theirs = ([_samples_and_cost(runs[seed], cost, where) for seed in seeds] for runs in (own, other))
    known, known2 = ([spent for spent in found if spent is not None] for found in (mine, theirs))
    if not seeds or len(known) + len(known2) < 2 * len(seeds):
        return None
    samples, amount = (math.fsum(numbers) for numbers in zip(*known, strict=True))
    samples2, amount2 = (math.fsum(numbers) for numbers in zip(*known2, strict=True))
    if not (samples and samples2 and amount2):
        return None
    return SavingFactors(samples / samples2, (amount / samples) / (amount2 / samples2))


def _samples_and_cost(run: RunValues, cost: str, where: str) -> tuple[float, float] | None:
    """Training samples, and what they cost."""
    key = cost if where == "best" and cost != "macs" else f"{cost}_{where}"
    samples, amount = run.values.get(f"samples_{where}"), run.values.get(key)
    return None if samples is None or amount is None else (samples, amount)


# -- published ---------------------------------------------------------------------------------------------------------


def published_iterations(
    model: str, precision: str, values: Mapping[str, float], known: float | None = None
) -> float | None:
    """Iterations up to the best accuracy of a published row; most rows do not print them.

    Where cp is known (a static precision, or ``cp=3``), they follow from the latency by the lines that the latencies
    of that network lie on (:mod:`fractrain.cost.hardware.fitted`), or without a latency from the MACs. Where cp moves,
    both unknowns follow from MACs and latency together.

    Args:
        precision: as the source writes it.
        values: published numbers by column.
        known: iterations that the source does give.
    """
    if known is not None:
        return known
    line, cp = _line(model), known_cp(precision)
    minutes, macs = values.get("latency_published"), values.get("macs_published")
    if minutes is not None and line is not None and cp is not None:
        return _ms_times_iterations(minutes) / (line.time_a + line.time_b * cp)
    if minutes is not None and macs is not None and line is not None:
        return solved_iterations(model, macs, minutes)
    if cp is not None and macs is not None and model in AUTHORS_FORWARD_MACS:
        return _cp_times_iterations(model, macs) / cp
    return None


def solved_iterations(model: str, macs: float, minutes: float) -> float | None:
    """Iterations up to the best accuracy by MACs and latency (minutes) together; None for a model without a line."""
    line = _line(model)
    if line is None:
        return None
    return (_ms_times_iterations(minutes) - line.time_b * _cp_times_iterations(model, macs)) / line.time_a


def split_text(model: str, own: Sequence[float | None], other: Sequence[float | None]) -> str:
    """How much of a published saving is stopping earlier, and what remains at equal iterations; empty if unknown.

    Args:
        own, other: published MACs and latency (minutes) of the two rows.
    """
    known = [cost for cost in (*own, *other) if cost is not None]
    if len(known) < 4:
        return ""
    mine, theirs = solved_iterations(model, *known[:2]), solved_iterations(model, *known[2:])
    macs, time = (published_split(mine, theirs, cost, cost2) for cost, cost2 in zip(known[:2], known[2:], strict=True))
    if not (mine and theirs and macs and time):
        return ""
    return (
        f"by the published rows the best accuracy came after {mine / 1e3:.1f}k against {theirs / 1e3:.1f}k iterations "
        f"(x {macs.iterations:.3f}); at equal iterations they save {macs.at_equal_iterations:.1f} % of the MACs and "
        f"{time.at_equal_iterations:.1f} % of the latency"
    )


def published_split(own: float | None, other: float | None, cost: float, cost2: float) -> SavingFactors | None:
    """Split a published saving.

    Args:
        own, other: iterations of the two rows; None where they cannot be known.
        cost, cost2: their published costs.
    """
    if not own or not other:
        return None
    return SavingFactors(own / other, (cost / own) / (cost2 / other))


def known_cp(precision: str) -> float | None:
    """Mean cp, in percent, that a published precision fixes: ``FW-8 / BW-8`` or ``cp=3``; None for stages."""
    static = re.fullmatch(r"FW-(\d+)\s*/\s*BW-(\d+)", precision)
    if static:
        return static_cp(int(static[1]), int(static[2]))
    target = re.fullmatch(r"cp=([\d.]+)", precision)
    return float(target[1]) if target else None


def _ms_times_iterations(minutes: float) -> float:
    """Milliseconds of an image times iterations."""
    return minutes * 60 / BATCH / MILLI


def _cp_times_iterations(model: str, macs: float) -> float:
    """Percent times iterations, from MACs as the authors count them."""
    return 100 * macs / (3 * BATCH * AUTHORS_FORWARD_MACS[model])


def _line(model: str) -> ReferenceLine | None:
    names = {"resnet38": "ResNet-38", "resnet74": "ResNet-74"}
    return next((line for line in REFERENCES if line.model == names.get(model)), None)


# -- the cells of one cost ---------------------------------------------------------------------------------------------


def split_cells(
    measured: Mapping[str, SavingFactors | None], published: SavingFactors | None, source: str
) -> dict[str, Cell]:
    """Cells of one cost: as published, up to the best epoch, at the end, and each at equal iterations.

    Args:
        measured: splits by ``best`` and ``end``.
        published: of the published rows.
        source: what the measured splits were made from.
    """
    inferred = "derived from the published rows; iterations as the authors' script gives them, else inferred"
    found = {"published": published, **measured}
    cells = {}
    for key, split in found.items():
        if split is not None:
            how = inferred if key == "published" else source
            cells[key] = Cell(split.text(), "derived", split.saving, source=how)
    for key, split in (("equal_published", published), ("equal", measured.get("best"))):
        if split is not None:
            equal = split.at_equal_iterations
            how = inferred if key == "equal_published" else source
            cells[key] = Cell(f"{equal:.1f} %", "derived", equal, source=how)
    return cells


# -- the section -------------------------------------------------------------------------------------------------------


Built = Mapping[str, MethodRow]  # of one pair, by row key

TITLE: Final = "Where the savings come from"
MEANING: Final = (
    "A saving is 1 – (iterations, ratio) × (cost per image, ratio). @best counts up to the epoch of best test "
    "accuracy, as the papers do, so that part of such a saving may be training that happened to be best earlier; @end "
    "counts whole runs. 'At equal iterations' is 1 – cost per image: what precision alone saves."
)


def comparisons(spec: TableSpec, pair: Pair) -> list[tuple[RowSpec, RowSpec]]:
    """Rows of a pair whose savings over another row are shown: the row, and the other."""
    rows = {row.key: row for row in spec.rows_of(pair)}
    keys = [(row.key, row.against) for row in rows.values() if row.against]
    if spec.improvement:
        keys += [(spec.improvement.subject, baseline) for baseline in spec.improvement.baselines]
    if spec.split_against:
        keys += [(key, spec.split_against) for key in rows if key != spec.split_against]
    return [(rows[a], rows[b]) for a, b in dict.fromkeys(keys) if a in rows and b in rows]


def savings_section(
    spec: TableSpec, profile: Profile, built: Mapping[str, Built], index: PublishedIndex
) -> Section | None:
    """Return the section; None where no row is compared with another, or nothing is known of any of them.

    Args:
        built: method rows by row key, of every pair (``model/dataset/setting``).
    """
    costs = ("latency", "energy") if spec.hardware else ("macs",)
    rows = []
    for pair in spec.pairs:
        where = group_heading(pair, spec.dataset(pair, profile))
        for own, other in comparisons(spec, pair):
            for cost in costs:
                cells = _cells(spec, pair, (own, other), built[f"{pair.key}/{pair.setting}"], cost, index)
                if cells:
                    names = {"saving_of": Cell(_name(spec, own, other)), "cost": Cell(LABELS[cost])}
                    rows.append(Row("section", where, {**names, **cells}))
    found = {key for row in rows for key in row.cells}
    columns = tuple(c for c in _columns(spec) if c.key in found)
    blank = {c.key: EMPTY for c in columns}
    rows = [Row(row.kind, row.group, {**blank, **row.cells}) for row in rows]
    caption = f"{MEANING}{_modelled(spec)}{_inferred(found)}"
    return Section("savings", TITLE, caption, columns, tuple(rows)) if rows else None


def _name(spec: TableSpec, own: RowSpec, other: RowSpec) -> str:
    """Both rows, with their precisions where another row has the same label."""
    labels = [row.label for row in spec.rows]
    names = [row.label if labels.count(row.label) == 1 else f"{row.label} {row.precision}" for row in (own, other)]
    return " / ".join(names)


def _cells(
    spec: TableSpec, pair: Pair, rows: tuple[RowSpec, RowSpec], built: Built, cost: str, index: PublishedIndex
) -> dict[str, Cell]:
    own, other = (built[row.key] for row in rows)
    measured = {where: measured_split(own.measured, other.measured, cost, where) for where in ("best", "end")}
    how = f", {spec.hardware}" if cost != "macs" else ""
    return split_cells(measured, _published(pair, rows, built, cost, index), f"measured runs{how}, over common seeds")


def _published(
    pair: Pair, rows: tuple[RowSpec, RowSpec], built: Built, cost: str, index: PublishedIndex
) -> SavingFactors | None:
    values = [built[row.key].published for row in rows]
    costs = [v.get(PUBLISHED[cost]) for v in values]
    if costs[0] is None or costs[1] is None:
        return None
    iterations = []
    for row, numbers in zip(rows, values, strict=True):
        printed = published_value(pair, row, "best_iteration", index)
        precision = row.published.precision if row.published else ""
        known = None if printed is None else float(printed.value)
        iterations.append(published_iterations(pair.model, precision, numbers, known))
    return published_split(iterations[0], iterations[1], costs[0], costs[1])


def _columns(spec: TableSpec) -> list[Column]:
    by = f"by {spec.hardware}" if spec.hardware else "measured"
    return [
        Column("saving_of", "Saving of one row over another", "Saving of"),
        Column("cost", "Cost", "Cost"),
        Column("published", "Saving@best, published", "@best pub.", (), "derived"),
        Column("equal_published", "Saving at equal iterations, published", "equal it. pub.", (), "derived"),
        Column("best", f"Saving@best, {by}", "@best", (), "derived"),
        Column("end", f"Saving@end, {by}", "@end", (), "derived"),
        Column("equal", f"Saving at equal iterations, {by}", "equal it.", (), "derived"),
    ]


def _modelled(spec: TableSpec) -> str:
    if not spec.hardware:
        return ""
    model = create(spec.hardware)
    how = "Measured by the run's own clock" if model.measures else f"Ours are modelled by {model.title}"
    return f" {how}, which is not {model.is_not}."


def _inferred(found: set[str]) -> str:
    if "published" not in found:
        return ""
    return (
        " Iterations of published rows are those that the authors' script gives; else they are inferred (ours) from "
        "MACs and latency, by the lines that both lie on."
    )
