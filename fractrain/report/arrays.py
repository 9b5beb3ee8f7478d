"""Two sections of a table about widths: which a run had, and what hardware models make of them beside what is claimed.

A claimed speed-up is set beside the ratio that each hardware model gives for the measured widths, over the layers that
both rows quantize and per sample, and beside the mean width that it needs on that model. Widths of that mean are those
of independent tiles: each operand has one of the two allowed widths next to it, whatever the other operand has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.cost.hardware import HardwareModel, create
from fractrain.cost.price import Counts, Geometries, price
from fractrain.util.errors import FractrainError

FLOAT_BITS: Final = 32
OPERANDS: Final = {
    "A": (("FW", "bits1"), ("GC", "bits1")),
    "W": (("FW", "bits2"),),
    "E": (("EB", "bits1"), ("GC", "bits2")),
}
"""Where the width of a tensor stands: the first product that the layer has."""
BISECTIONS: Final = 30


@dataclass(frozen=True)
class Work:
    """What one finished run computed: counts of its training and shapes of its layers."""

    counts: Counts
    geometry: Geometries


def run_work(record: Any) -> Work:
    """The work of a finished run.

    Raises:
        FractrainError: its ledger or its model cannot be read.
    """
    from fractrain.engine.layer_shapes import run_layer_shapes

    return Work(Counts.from_ledger(record.ledger()), run_layer_shapes(record.config))


def quantized(counts: Counts) -> frozenset[str]:
    """Layers of which no product is in floating point."""
    full = {key.layer for key in counts.keys if FLOAT_BITS in (key.bits1, key.bits2)}
    return frozenset({key.layer for key in counts.keys} - full)


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
    layers = frozenset.intersection(*(quantized(work.counts) for work in (*own, *other)))
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
