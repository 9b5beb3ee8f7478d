"""Relative columns: a row set against another one of its pair, beside what its source claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fractrain.cost.published import PublishedRow
from fractrain.report.columns import QUANTITIES, Quantity
from fractrain.report.improve import numbers
from fractrain.report.rows import MethodRow, published_value
from fractrain.report.sources import PublishedIndex
from fractrain.report.spec import Pair, RowSpec, TableSpec
from fractrain.report.stats import Estimate, paired_difference, paired_ratio
from fractrain.report.values import Cell, Measured, Row


def with_relative(
    spec: TableSpec, pair: Pair, row: RowSpec, built: Mapping[str, MethodRow], index: PublishedIndex
) -> Row:
    """Return a method row with its relative columns filled, where the row is set against another one.

    Args:
        spec: the table.
        pair: the model and data set.
        row: the method.
        built: the pair's method rows by row key.
        index: the published numbers.
    """
    cells: dict[str, Cell] = {}
    for relative in spec.relative if row.against in built else ():
        quantity = next(q for q in QUANTITIES if q.key == relative.quantity)
        claimed = published_value(pair, row, relative.claim.metric, index) if relative.claim else None
        if claimed is not None:
            cells[f"{quantity.key}_claim"] = claim_cell(claimed)
        found = compare(built[row.key].measured, built[row.against].measured, quantity)
        if found is not None:
            cells[f"{quantity.key}_relative"] = _cell(found, quantity, spec.row(row.against).label, spec.hardware)
    return replace(built[row.key].row, cells={**built[row.key].row.cells, **cells})


def compare(own: Mapping[int, Measured], other: Mapping[int, Measured], quantity: Quantity) -> Estimate | None:
    """Accuracy, perplexity: own minus other; costs: other by own. Paired over common seeds, None without a measurement.

    Args:
        own: complete runs of the row by seed.
        other: complete runs of the row it is set against.
        quantity: what is compared.
    """
    mine, theirs = numbers(own, quantity), numbers(other, quantity)
    return paired_difference(mine, theirs) if quantity.is_quality else paired_ratio(theirs, mine)


def claim_cell(row: PublishedRow) -> Cell:
    """A claim in the words of its source, for example ``up to 5.1x``; without a number, with what it is about."""
    value = float(row.value) if isinstance(row.value, int | float) else None
    text = str(row.value)
    if not any(character.isdigit() for character in text):
        text = f"{row.metric}: {text}"
    return Cell(text, "published", value, source=f"{row.paper}: {row.source}; {row.confidence}")


def _cell(found: Estimate, quantity: Quantity, other: str, hardware: str) -> Cell:
    spread = "" if found.half_width is None else f" ± {found.half_width:.2f}"
    text = f"{found.mean:+.2f}" if quantity.is_quality else f"{found.mean:.2f}"
    model = f", modelled: {hardware}" if quantity.modelled else ""
    source = f"from measured runs, against {other}, paired over seeds{model}"
    return Cell(text + spread, "derived", found.mean, found.low, found.high, found.n, source)
