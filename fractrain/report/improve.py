"""Improvement rows: one method against the static baselines, as min~max savings, the way the paper prints them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from fractrain.cost.hardware import create
from fractrain.report.quantities import IN_TABLES, Quantity
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


def saving_cell(subject: float, baselines: Mapping[str, float], source: str) -> Cell:
    """Cell of a cost column; ``baselines`` are costs by the name of the rival."""
    low, high = saving_range(subject, list(baselines.values()))
    least, most = (pick(baselines, key=lambda name: baselines[name]) for pick in (min, max))
    text = _range_text(low, high)
    return Cell(text, "derived", low=low, high=high, source=f"{source}{_rivals(text, least, most)}")


def measured_saving_cell(savings: Mapping[str, Estimate], source: str) -> Cell:
    """Cell of a cost column with intervals: the least and greatest mean, and in brackets what their intervals span."""
    least, most = (pick(savings, key=lambda name: savings[name].mean) for pick in (min, max))
    low, high = savings[least].mean, savings[most].mean
    text = _range_text(low, high)
    source = f"{source}{_rivals(text, least, most)}"
    ends = [end for s in savings.values() for end in (s.low, s.high) if end is not None]
    n = min(s.n for s in savings.values())
    if not ends:
        return Cell(text, "derived", low=low, high=high, n=n, source=source)
    if _range_text(min(ends), max(ends)) != text:  # an interval without width says nothing
        text = f"{text} [{min(ends):.1f}, {max(ends):.1f}]"
    return Cell(text, "derived", low=min(ends), high=max(ends), n=n, source=f"{source}; 95 % intervals, paired")


def _range_text(low: float, high: float) -> str:
    """A range of savings; one number where both ends are written alike."""
    return f"{low:.1f} %" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f}~{high:.1f} %"


def _rivals(text: str, least: str, most: str) -> str:
    """Over which rivals the ends of a range are."""
    return f"; least over {least}, most over {most}" if "~" in text else ""


def difference_cell(difference: Estimate, source: str, rival: str) -> Cell:
    """Cell of an accuracy or perplexity column: difference in percentage points, or in perplexity, to a rival."""
    spread = "" if difference.half_width is None else f" ± {difference.half_width:.2f}"
    n = difference.n if source.startswith("measured") else None
    text = f"{difference.mean:+.2f}{spread} vs {rival}"
    return Cell(text, "derived", difference.mean, difference.low, difference.high, n, source)


def published_cells(
    values: Mapping[str, Mapping[str, float]], subject: str, baselines: Mapping[str, str]
) -> dict[str, Cell]:
    """Improvement recomputed from the published rows.

    Args:
        values: published numbers by row key and column key.
        subject: row key of the method.
        baselines: row keys it is compared with, and their names.
    """
    cells: dict[str, Cell] = {}
    for quantity in IN_TABLES:
        column = quantity.published
        own = values.get(subject, {}).get(column)
        others = {name: values[b][column] for b, name in baselines.items() if column in values.get(b, {})}
        if not column or own is None or not others:
            continue
        source = "recomputed from the published rows"
        if quantity.is_quality:
            rival = _best(quantity, others)
            cells[column] = difference_cell(estimate([own - others[rival]]), source, rival)
        else:
            cells[column] = saving_cell(own, others, source)
    return cells


def measured_cells(runs: Mapping[str, Runs], subject: str, baselines: Mapping[str, str]) -> dict[str, Cell]:
    """Improvement of the measured runs, over those baselines that were measured.

    Accuracy and perplexity are differences to the baseline with the best mean, costs are savings over each baseline;
    all are paired over common seeds.

    Args:
        runs: complete rows by row key.
        subject: row key of the method.
        baselines: row keys it is compared with, and their names.
    """
    measured = {b: name for b, name in baselines.items() if runs.get(b)}
    if not runs.get(subject) or not measured:
        return {}
    source = f"measured, over the baselines {', '.join(measured)}"
    cells: dict[str, Cell] = {}
    for quantity in IN_TABLES:
        own = numbers(runs[subject], quantity)
        others = {name: n for b, name in measured.items() if (n := numbers(runs[b], quantity))}
        if not own or not others or quantity.family == "cp":
            continue
        if not quantity.is_quality:
            savings = {name: s for name, other in others.items() if (s := paired_saving(own, other)) is not None}
            if savings:
                cells[quantity.key] = measured_saving_cell(savings, source)
            continue
        rival = _best(quantity, {name: _mean(o) for name, o in others.items()})
        if (difference := paired_difference(own, others[rival])) is not None:
            cells[quantity.key] = difference_cell(difference, source, rival)
    return cells


def _best(quantity: Quantity, values: Mapping[str, float]) -> str:
    """Name of the rival with the best value, the first of equals."""
    return next(name for name, value in values.items() if value == quantity.best(values.values()))


def circular(quantity: Quantity, hardware: str) -> bool:
    """Whether a number is modelled by something fitted to the published rows: then it is no evidence for them."""
    return quantity.modelled and bool(hardware) and create(hardware).fitted_to_published


def numbers(runs: Runs, quantity: Quantity) -> dict[int, float]:
    """One quantity of all runs that have it, by seed."""
    return {seed: value for seed, run in runs.items() if (value := run.values.get(quantity.key)) is not None}


def _mean(values: Mapping[int, float]) -> float:
    return math.fsum(values.values()) / len(values)
