"""The section of a table that shows every saving split: fewer iterations, cheaper images, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fractrain.cost.hardware import create
from fractrain.engine.length import Profile
from fractrain.report.rows import EMPTY, MethodRow, group_heading, published_value
from fractrain.report.saving_factors import (
    LABELS,
    PUBLISHED,
    SavingFactors,
    measured_split,
    published_iterations,
    published_split,
    split_cells,
)
from fractrain.report.sources import PublishedIndex
from fractrain.report.spec import Pair, RowSpec, TableSpec
from fractrain.report.values import Cell, Column, Row, Section

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
