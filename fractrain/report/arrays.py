"""The sections of a table that are about widths: mean widths by tensor and layer, and claims on hardware models."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.cost.hardware import HardwareModel, create
from fractrain.cost.price import Counts, price
from fractrain.engine.length import Profile
from fractrain.report.grid import PlannedRun
from fractrain.report.rows import EMPTY, group_heading, published_value
from fractrain.report.sources import PublishedIndex, Sources, Work
from fractrain.report.spec import Arrays, Pair, RowSpec, TableSpec
from fractrain.report.values import Cell, Column, Row, Section
from fractrain.util.errors import FractrainError

FLOAT_BITS: Final = 32
OPERANDS: Final = {
    "A": (("FW", "bits1"), ("GC", "bits1")),
    "W": (("FW", "bits2"),),
    "E": (("EB", "bits1"), ("GC", "bits2")),
}
"""Where the width of a tensor stands: the first product that the layer has."""
BISECTIONS: Final = 30


def quantized(counts: Counts) -> frozenset[str]:
    """Layers of which no product is in floating point."""
    full = {key.layer for key in counts.keys if FLOAT_BITS in (key.bits1, key.bits2)}
    return frozenset({key.layer for key in counts.keys} - full)


def compared(own: Sequence[Work], other: Sequence[Work]) -> frozenset[str]:
    """Layers that all of these runs quantize."""
    return frozenset.intersection(*(quantized(work.counts) for work in (*own, *other)))


def of_layers(counts: Counts, layers: frozenset[str]) -> Counts:
    """The part of counts that belongs to some layers."""
    columns = [number for number, key in enumerate(counts.keys) if key.layer in layers]
    return replace(counts, keys=tuple(counts.keys[c] for c in columns), macs=counts.macs[:, columns])


def at_widths(counts: Counts, bits1: int, bits2: int) -> Counts:
    """The same work with two widths everywhere."""
    columns: dict[Any, Any] = {}
    for number, key in enumerate(counts.keys):
        alike = key._replace(bits1=bits1, bits2=bits2, format1="", format2="", scale1=0.0, scale2=0.0)
        columns[alike] = columns.get(alike, 0.0) + counts.macs[:, number]
    cp = 100 * bits1 * bits2 / FLOAT_MAC_BITS
    return replace(
        counts, keys=tuple(columns), macs=np.stack(list(columns.values()), axis=1), cp=(cp,) * len(counts.epochs)
    )


# -- widths ------------------------------------------------------------------------------------------------------------


def mean_widths(runs: Sequence[Counts]) -> dict[str, dict[str, float]]:
    """Mean width of A, W and E by layer, weighted by MACs over all runs; under the name of no layer of all together."""
    sums: dict[tuple[str, str], list[float]] = {}
    for counts in runs:
        products = {(key.layer, key.product) for key in counts.keys}
        for key, macs in zip(counts.keys, counts.macs.sum(axis=0).tolist(), strict=True):
            for operand, places in OPERANDS.items():
                product, side = next((p for p in places if (key.layer, p[0]) in products), ("", ""))
                if key.product == product:
                    for name in (key.layer, ""):
                        total = sums.setdefault((name, operand), [0.0, 0.0])
                        total[0] += macs * getattr(key, side)
                        total[1] += macs
    found: dict[str, dict[str, float]] = {}
    for (name, operand), (bits, macs) in sums.items():
        found.setdefault(name, {})[operand] = bits / macs
    return found


def mean_product_width(runs: Sequence[Counts]) -> float:
    """Width of the uniform map with as many bit operations."""
    total = sum(counts.macs.sum() for counts in runs)
    bits = sum((counts.macs.sum(axis=0) * [k.bits1 * k.bits2 for k in counts.keys]).sum() for counts in runs)
    return math.sqrt(bits / total)


# -- hardware models ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Factor:
    """Time or energy of the other row by the row's own, per sample.

    Attributes:
        measured: with the widths of the runs.
        narrowest: with the narrowest width everywhere.
        needed: largest mean width with which the claim is reached; None where none reaches it.
    """

    measured: float
    narrowest: float
    needed: float | None

    def verdict(self, claim: float) -> str:
        """What this array says of a claimed factor; it can never reproduce one."""
        if self.needed is None:
            return f"out of reach on this array: the narrowest widths everywhere give {self.narrowest:.2f}x"
        if self.measured >= claim:
            return f"plausible on this array: these widths give {self.measured:.2f}x"
        return (
            f"plausible on this array at a mean width of {self.needed:.2f} bits or less; these widths give "
            f"{self.measured:.2f}x"
        )


@dataclass(frozen=True)
class Judged:
    """What one hardware model makes of a row against another.

    Attributes:
        hardware: the model, as ``--hardware`` takes it.
        speed, energy: None where the model cannot price the runs.
        problem: why.
    """

    hardware: str
    speed: Factor | None = None
    energy: Factor | None = None
    problem: str = ""


def judge_on(
    hardware: str, own: Sequence[Work], other: Sequence[Work], widths: Sequence[int], claims: tuple[float, float]
) -> Judged:
    """Set runs against others on a hardware model, over the layers that both quantize.

    Args:
        widths: those that a tile may have, ascending.
        claims: claimed factors of time and energy.
    """
    model = create(hardware)
    layers = compared(own, other)
    try:
        mine, theirs = _spent(own, layers, model), _spent(other, layers, model)
        grid = {(a, b): _spent(other, layers, model, (a, b)) for a in widths for b in widths}
    except FractrainError as problem:
        return Judged(hardware, problem=str(problem))
    factors = []
    for place, claim in enumerate(claims):
        costs = {pair: spent[place] for pair, spent in grid.items()}
        if not (mine[place] and all(costs.values())):
            return Judged(hardware, problem="it counts nothing for the layers that both rows quantize")
        needed = _needed(costs, widths, theirs[place] / claim)
        narrowest = theirs[place] / costs[widths[0], widths[0]]
        factors.append(Factor(theirs[place] / mine[place], narrowest, needed))
    return Judged(hardware, speed=factors[0], energy=factors[1])


def _spent(
    runs: Sequence[Work], layers: frozenset[str], model: HardwareModel, widths: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Seconds and joules per sample of some layers; of a model that is not additive, of all it counts."""
    seconds = joules = samples = 0.0
    for work in runs:
        counts = of_layers(work.counts, layers)
        cost = price(counts if widths is None else at_widths(counts, *widths), model, work.geometry).until()
        seconds, joules = seconds + cost.seconds.total, joules + cost.joules.total
        samples += sum(counts.samples)
    return seconds / samples, joules / samples


def _needed(costs: Mapping[tuple[int, int], float], widths: Sequence[int], most: float) -> float | None:
    """Largest mean width of independent tiles whose cost is at most ``most``."""
    low, high = float(widths[0]), float(widths[-1])
    if mixed(costs, widths, low) > most:
        return None
    if mixed(costs, widths, high) <= most:
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if mixed(costs, widths, middle) <= most else (low, middle)
    return low


def mixed(costs: Mapping[tuple[int, int], float], widths: Sequence[int], mean: float) -> float:
    """Expected cost where each operand has, on its own, one of the two widths next to a mean."""
    if len(widths) == 1:
        return costs[widths[0], widths[0]]
    place = min(max(int(np.searchsorted(widths, mean, side="right")) - 1, 0), len(widths) - 2)
    low, high = widths[place], widths[place + 1]
    share = (mean - low) / (high - low)
    chances = ((low, 1 - share), (high, share))
    return sum(p * q * costs[a, b] for (a, p), (b, q) in itertools.product(chances, repeat=2))


# -- both sections -----------------------------------------------------------------------------------------------------


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


# -- the section of widths ---------------------------------------------------------------------------------------------


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
            layers = compared(works[row.key], works[row.against])
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


# -- the section of claims ---------------------------------------------------------------------------------------------


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
    layers = compared(own, other)
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
