"""Where a saving comes from: a saving of cost is one minus the product of iterations and cost per image.

Published costs count up to the iteration of best test accuracy. A method that happens to be best early saves without
any low precision, so every saving is shown split: ``53.5 % = 1 - .562 x .827`` says that training stopped after .562 of
the other's iterations and that an image cost .827 of the other's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fractrain.cost.formulas import AUTHORS_FORWARD_MACS, static_cp
from fractrain.cost.hardware.fitted import REFERENCES, ReferenceLine
from fractrain.report.values import Cell, RunValues

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


# -- cells -------------------------------------------------------------------------------------------------------------


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
