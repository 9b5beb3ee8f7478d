"""The sections of a table that are about widths: mean widths by tensor and layer, and claims on hardware models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fractrain.cost.hardware import create
from fractrain.engine.length import Profile
from fractrain.report.arrays import (
    OPERANDS,
    Factor,
    Judged,
    Work,
    judge_on,
    mean_product_width,
    mean_widths,
    of_layers,
    quantized,
)
from fractrain.report.grid import PlannedRun
from fractrain.report.rows import EMPTY, group_heading, published_value
from fractrain.report.sources import PublishedIndex, Sources
from fractrain.report.spec import Arrays, Pair, RowSpec, TableSpec
from fractrain.report.values import Cell, Column, Row, Section
from fractrain.util.errors import FractrainError

KINDS: Final = {"speed": "Speed-up", "energy": "Energy reduction"}
WIDTHS_TITLE: Final = "Mean widths by layer and tensor"
WIDTHS_CAPTION: Final = (
    "Bits, weighted by MACs over the whole run and all seeds, of the layers that both rows quantize: A and W as the "
    "forward product has them, E as the error product. A speed-up of s over 8 bits needs 8/√s bits on an ideal array "
    "whose time is the product of independent widths: 3.54 for 5.1, 4.00 for 4."
)
ARRAYS_TITLE: Final = "What hardware models make of the claims"
ARRAYS_CAPTION: Final = (
    "Time and energy per sample of the 8-bit row by the row's own, so at equal iterations, over the layers that both "
    "rows quantize (fractrain-fitted: of the whole step, as it sees no layers). 'Needs' is the largest mean width with "
    "which the model reaches the claim, for independent tiles of the allowed widths; 'uniform' the width everywhere "
    "with as many bit operations as the row. No array here is the paper's, whose hardware cannot be read: a claim is "
    "out of reach or plausible on an array, no more; and it says 'up to', over networks that are not named."
)

Works = Mapping[str, Sequence[Work]]  # of one pair, by row key; complete rows alone


def array_sections(
    spec: TableSpec, profile: Profile, runs: Sequence[PlannedRun], sources: Sources, index: PublishedIndex
) -> Iterator[Section]:
    """Yield both sections; nothing where the table asks for none, or no row and the one it is set against are done."""
    if spec.arrays is None:
        return
    rows = [row for row in spec.rows if row.against]
    widths: list[Row] = []
    judged: list[Row] = []
    for pair in spec.pairs:
        works = works_of(spec, [run for run in runs if run.pair == pair], sources)
        where = group_heading(pair, spec.dataset(pair, profile))
        widths += _width_rows(rows, works, where)
        for row in rows:
            if row.key in works and row.against in works:
                judged += _judged_rows(spec.arrays, pair, row, works, where, index)
    if widths:
        yield Section("widths", WIDTHS_TITLE, WIDTHS_CAPTION, tuple(_width_columns(rows)), tuple(widths))
        told = " ".join(f"{title} is not {what}." for title, what in _is_not(spec.arrays).items())
        yield Section("arrays", ARRAYS_TITLE, f"{ARRAYS_CAPTION} {told}", tuple(_array_columns()), tuple(judged))


def _is_not(arrays: Arrays) -> dict[str, str]:
    """What each model is not, once for all its settings."""
    models = [create(name) for name in arrays.hardware]
    return {model.name: model.is_not for model in models}


def works_of(spec: TableSpec, runs: Sequence[PlannedRun], sources: Sources) -> Works:
    """The work of all rows of a pair that are complete and can be read."""
    found: dict[str, list[Work]] = {}
    for row in spec.rows:
        own = [run for run in runs if run.row == row]
        if not own or any(run.state != "cached" or run.record is None for run in own):
            continue
        try:
            works = [sources.work(run.record) for run in own]
        except FractrainError:  # the row itself says that its record is damaged
            continue
        if all(work is not None for work in works):
            found[row.key] = [work for work in works if work is not None]
    return found


# -- widths ------------------------------------------------------------------------------------------------------------


def _width_columns(rows: Sequence[RowSpec]) -> Iterator[Column]:
    yield Column("layer", "Layer", "Layer")
    for row in rows:
        for operand in OPERANDS:
            name = row.label if len(rows) == 1 else f"{row.label} {row.precision}"
            yield Column(
                f"{row.key}-{operand}", f"{operand} of {name} [bits]", f"{operand}, {row.precision}", (), "measured"
            )


def _width_rows(rows: Sequence[RowSpec], works: Works, where: str) -> Iterator[Row]:
    """First all layers together, then one line for each."""
    found = {}
    for row in rows:
        if row.key in works and row.against in works:
            layers = _compared(works[row.key], works[row.against])
            found[row.key] = mean_widths([of_layers(work.counts, layers) for work in works[row.key]])
    order = {name: None for works_of in works.values() for work in works_of for name in work.geometry}
    names = [name for name in ("", *order) if any(name in widths for widths in found.values())]
    for name in names:
        cells = {"layer": Cell(name or "all together")}
        for row in rows:
            for operand in OPERANDS:
                bits = found.get(row.key, {}).get(name, {}).get(operand)
                cell = EMPTY if bits is None else Cell(f"{bits:.2f}", "measured", bits, source="from the ledgers")
                cells[f"{row.key}-{operand}"] = cell
        yield Row("section", where, cells)


def _compared(own: Sequence[Work], other: Sequence[Work]) -> frozenset[str]:
    return frozenset.intersection(*(quantized(work.counts) for work in (*own, *other)))


# -- claims on hardware models -----------------------------------------------------------------------------------------


def _array_columns() -> Iterator[Column]:
    yield Column("row", "Row", "Row")
    yield Column("uniform", "Uniform width with as many bit operations [bits]", "uniform", (), "measured")
    yield Column("hardware", "Hardware model", "Model")
    for kind, label in KINDS.items():
        yield Column(f"{kind}_claim", f"{label} claimed [x]", f"{kind} claim", (), "published")
        yield Column(kind, f"{label} [x] ↑, modelled", kind, (), "derived")
        yield Column(
            f"{kind}_needs", f"{label}: mean width that the claim needs [bits]", f"{kind} needs", (), "derived"
        )
        yield Column(f"{kind}_verdict", f"{label}: on this array", f"{label} on this array")


def _judged_rows(
    arrays: Arrays, pair: Pair, row: RowSpec, works: Works, where: str, index: PublishedIndex
) -> Iterator[Row]:
    claims = {kind: _claim(pair, row, getattr(arrays, kind), index) for kind in KINDS}
    own, other = works[row.key], works[row.against]
    layers = _compared(own, other)
    width = mean_product_width([of_layers(work.counts, layers) for work in own])
    for name in arrays.hardware:
        factors = (claims["speed"][1], claims["energy"][1])
        found = judge_on(name, own, other, arrays.widths, factors)
        cells = {
            "row": Cell(f"{row.label} {row.precision}"),
            "uniform": Cell(f"{width:.2f}", "measured", width, source="from the ledgers"),
            "hardware": Cell(found.hardware),
        }
        for kind, (cell, factor) in claims.items():
            cells[f"{kind}_claim"] = cell
            cells |= _factor_cells(kind, found, factor)
        yield Row("section", where, cells)


def _claim(pair: Pair, row: RowSpec, metric: str, index: PublishedIndex) -> tuple[Cell, float]:
    """A claimed factor as its source words it, and its number."""
    said = published_value(pair, row, metric, index)
    number = re.search(r"\d+(\.\d+)?", str(said.value)) if said else None
    if said is None or number is None:
        return EMPTY, float("inf")
    cell = Cell(str(said.value), "published", float(number[0]), source=f"{said.paper}: {said.source}")
    return cell, float(number[0])


def _factor_cells(kind: str, found: Judged, claim: float) -> dict[str, Cell]:
    factor: Factor | None = getattr(found, kind)
    if factor is None:
        none = Cell("not priced", "not run", source=found.problem)
        return {kind: none, f"{kind}_needs": EMPTY, f"{kind}_verdict": Cell(f"not priced: {found.problem}")}
    source = f"modelled: {found.hardware}"
    needs = EMPTY if factor.needed is None else Cell(f"{factor.needed:.2f}", "derived", factor.needed, source=source)
    return {
        kind: Cell(f"{factor.measured:.2f}", "derived", factor.measured, source=source),
        f"{kind}_needs": needs,
        f"{kind}_verdict": Cell(factor.verdict(claim)),
    }
