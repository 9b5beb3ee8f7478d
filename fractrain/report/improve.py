"""Improvement rows: one method against the static baselines, as min~max savings, the way the paper prints them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from fractrain.cost.hardware import create
from fractrain.report.columns import QUANTITIES, Quantity
from fractrain.report.stats import Estimate, estimate, paired_difference, paired_saving
from fractrain.report.values import Cell, Measured
from fractrain.report.verdict import Verdict

CIRCULAR: Final = Verdict("inconclusive", "the hardware model is fitted to the published rows")
Runs = Mapping[int, Measured]  # by seed, complete rows only


def saving_range(subject: float, baselines: Sequence[float]) -> tuple[float, float]:
    """Least and greatest saving of ``subject`` over the baselines, in percent: ``100 * (1 - subject/baseline)``.

    Raises:
        ValueError: no baseline, or one that is not positive.
    """
    if not baselines or not all(b > 0 and math.isfinite(b) for b in baselines):
        raise ValueError(f"baselines must be positive numbers, got {list(baselines)}")
    savings = [100 * (1 - subject / b) for b in baselines]
    return min(savings), max(savings)


def saving_cell(subject: float, baselines: Sequence[float], source: str) -> Cell:
    """Cell of a cost column."""
    low, high = saving_range(subject, baselines)
    text = f"{low:.1f} %" if len(baselines) == 1 else f"{low:.1f}~{high:.1f} %"
    return Cell(text, "derived", low=low, high=high, source=source)


def measured_saving_cell(savings: Sequence[Estimate], source: str) -> Cell:
    """Cell of a cost column with intervals: the least and greatest mean, and in brackets what their intervals span."""
    low, high = min(s.mean for s in savings), max(s.mean for s in savings)
    text = f"{low:.1f} %" if len(savings) == 1 else f"{low:.1f}~{high:.1f} %"
    ends = [end for s in savings for end in (s.low, s.high) if end is not None]
    n = min(s.n for s in savings)
    if not ends:
        return Cell(text, "derived", low=low, high=high, n=n, source=source)
    text = f"{text} [{min(ends):.1f}, {max(ends):.1f}]"
    return Cell(text, "derived", low=min(ends), high=max(ends), n=n, source=f"{source}; 95 % intervals, paired")


def difference_cell(difference: Estimate, source: str) -> Cell:
    """Cell of an accuracy or perplexity column: difference in percentage points, or in perplexity."""
    spread = "" if difference.half_width is None else f" ± {difference.half_width:.2f}"
    n = difference.n if source.startswith("measured") else None
    text = f"{difference.mean:+.2f}{spread}"
    return Cell(text, "derived", difference.mean, difference.low, difference.high, n, source)


def published_cells(
    values: Mapping[str, Mapping[str, float]], subject: str, baselines: Sequence[str]
) -> dict[str, Cell]:
    """Improvement recomputed from the published rows.

    Args:
        values: published numbers by row key and column key.
        subject: row key of the method.
        baselines: row keys it is compared with.
    """
    cells: dict[str, Cell] = {}
    for quantity in QUANTITIES:
        column = quantity.published
        own = values.get(subject, {}).get(column)
        others = [values[b][column] for b in baselines if column in values.get(b, {})]
        if not column or own is None or not others:
            continue
        source = "recomputed from the published rows"
        if quantity.is_quality:
            cells[column] = difference_cell(estimate([own - quantity.best(others)]), source)
        else:
            cells[column] = saving_cell(own, others, source)
    return cells


def measured_cells(runs: Mapping[str, Runs], subject: str, baselines: Sequence[str]) -> dict[str, Cell]:
    """Improvement of the measured runs, over those baselines that were measured.

    Accuracy and perplexity are differences to the baseline with the best mean, costs are savings over each baseline;
    all are paired over common seeds.

    Args:
        runs: complete rows by row key.
        subject: row key of the method.
        baselines: row keys it is compared with.
    """
    measured = [b for b in baselines if runs.get(b)]
    if not runs.get(subject) or not measured:
        return {}
    source = f"measured, over the baselines {', '.join(measured)}"
    cells: dict[str, Cell] = {}
    for quantity in QUANTITIES:
        own = numbers(runs[subject], quantity)
        others = [n for b in measured if (n := numbers(runs[b], quantity))]
        if not own or not others or quantity.key == "cp":
            continue
        if not quantity.is_quality:
            savings = [saving for other in others if (saving := paired_saving(own, other)) is not None]
            if savings:
                cells[quantity.key] = measured_saving_cell(savings, source)
            continue
        best = quantity.best(_mean(o) for o in others)
        rival = next(o for o in others if _mean(o) == best)
        if (difference := paired_difference(own, rival)) is not None:
            cells[quantity.key] = difference_cell(difference, source)
    return cells


def circular(quantity: Quantity, hardware: str) -> bool:
    """Whether a number is modelled by something fitted to the published rows: then it is no evidence for them."""
    return quantity.modelled and bool(hardware) and create(hardware).fitted_to_published


def numbers(runs: Runs, quantity: Quantity) -> dict[int, float]:
    """One quantity of all runs that have it, by seed."""
    return {seed: value for seed, run in runs.items() if (value := quantity.read(run)) is not None}


def _mean(values: Mapping[int, float]) -> float:
    return math.fsum(values.values()) / len(values)
