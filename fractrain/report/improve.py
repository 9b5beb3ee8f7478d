"""Improvement rows: one method against the static baselines, as min~max savings, the way the paper prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Final

from fractrain.cost.hardware import create
from fractrain.cost.published import PublishedRow
from fractrain.engine.length import Profile
from fractrain.report.columns import columns
from fractrain.report.quantities import BY_KEY, BY_PUBLISHED, IN_TABLES, Quantity
from fractrain.report.rows import EMPTY, MethodRow, estimate_cell, group_heading, labels
from fractrain.report.sources import PublishedIndex
from fractrain.report.spec import Pair, TableSpec
from fractrain.report.stats import Estimate, paired_difference, paired_saving
from fractrain.report.values import Cell, Row, RunValues
from fractrain.report.verdict import Verdict, Word, judge

CIRCULAR: Final = Verdict("inconclusive", "the hardware model is fitted to the published rows")
Runs = Mapping[int, RunValues]  # by seed, complete rows only


def saving_cell(savings: Mapping[str, Estimate], source: str) -> Cell:
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


def published_cells(
    values: Mapping[str, Mapping[str, float]], subject: str, baselines: Mapping[str, str]
) -> dict[str, Cell]:
    """Improvement recomputed from the published rows, which are one run each.

    Args:
        values: published numbers by row key and column key.
        subject: row key of the method.
        baselines: row keys it is compared with, and their names.
    """
    cells: dict[str, Cell] = {}
    for column, quantity in BY_PUBLISHED.items():
        numbers = {key: {0: row[column]} for key, row in values.items() if column in row}
        cell = _gain_cell(quantity, numbers, subject, baselines, "recomputed from the published rows")
        if cell is not None:
            cells[column] = replace(cell, n=None)
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
    source = f"measured, over the baselines {', '.join(measured)}"
    cells: dict[str, Cell] = {}
    for quantity in IN_TABLES:
        numbers = {key: found for key, own in runs.items() if (found := values_by_seed(own, quantity))}
        cell = None if quantity.family == "cp" else _gain_cell(quantity, numbers, subject, measured, source)
        if cell is not None:
            cells[quantity.key] = cell
    return cells


def _gain_cell(
    quantity: Quantity, numbers: Mapping[str, Mapping[int, float]], subject: str, baselines: Mapping[str, str],
    source: str,
) -> Cell | None:  # fmt: skip
    """Difference to the best of the baselines, or savings over each; None where a side has no number.

    Args:
        numbers: by row key and seed.
    """
    own, others = numbers.get(subject), {name: numbers[b] for b, name in baselines.items() if b in numbers}
    if not own or not others:
        return None
    if quantity.is_quality:
        rival = _best(quantity, {name: fmean(other.values()) for name, other in others.items()})
        difference = paired_difference(own, others[rival])
        return None if difference is None else estimate_cell(difference, f"{difference.text('+')} vs {rival}", source)
    savings = {name: saving for name, other in others.items() if (saving := paired_saving(own, other)) is not None}
    return saving_cell(savings, source) if savings else None


def _best(quantity: Quantity, values: Mapping[str, float]) -> str:
    """Name of the rival with the best value, the first of equals."""
    return next(name for name, value in values.items() if value == quantity.best(values.values()))


def circular(quantity: Quantity, hardware: str) -> bool:
    """Whether a number is modelled by something fitted to the published rows: then it is no evidence for them."""
    return quantity.modelled and bool(hardware) and create(hardware).fitted_to_published


def values_by_seed(runs: Runs, quantity: Quantity) -> dict[int, float]:
    """One quantity of all runs that have it, by seed."""
    return {seed: value for seed, run in runs.items() if (value := run.values.get(quantity.key)) is not None}


# -- rows --------------------------------------------------------------------------------------------------------------


GAINS: Final = {"MACs": "macs_best", "latency": "latency", "energy": "energy", "accuracy": "accuracy_best_test"}
WORST: Final[tuple[Word, ...]] = ("differs", "inconclusive", "reproduced")


def improvement_rows(
    spec: TableSpec, pair: Pair, dataset: str, profile: Profile, built: Mapping[str, MethodRow], index: PublishedIndex
) -> tuple[list[Row], list[str]]:
    """The improvement as the paper prints it, and the same recomputed from the rows, published and measured.

    Args:
        dataset: registry name of the data set that was really used.
        built: the pair's method rows by row key.

    Returns:
        Rows and notes; both empty where the table has no improvement rows.
    """
    if spec.improvement is None:
        return [], []
    subject = spec.improvement.subject
    baselines = [key for key in spec.improvement.baselines if key in built]
    if subject not in built or not baselines:
        return [], []
    label = f"{spec.row(subject).label} gain"
    where = group_heading(pair, dataset)
    names = {row.key: row.label for row in spec.rows}
    printed = _printed(pair, spec.improvement.published, index)
    rivals = {key: names[key] for key in baselines}
    recomputed = published_cells({k: b.published for k, b in built.items()}, subject, rivals)
    measured = measured_cells({k: b.measured for k, b in built.items()}, subject, rivals)
    notes = _mismatch(pair, printed, recomputed)
    over = [names[key] for key in baselines if built[key].measured]
    if measured and len(over) < len(baselines):
        notes.append(f"{where}, {label}, measured: over {len(over)} of {len(baselines)} baselines ({', '.join(over)}).")
    notes += _ends(f"{where}, {label}", recomputed, "published") + _ends(f"{where}, {label}", measured, "measured")
    blank = {column.key: EMPTY for column in columns(spec)}
    first = labels(pair, dataset, label, "as printed") | printed
    second = labels(pair, dataset, label, "recomputed") | recomputed | measured
    verdicts = gain_verdicts(spec, pair, dataset, profile, built, subject, baselines) if measured else {}
    if verdicts:
        worst = min(verdicts.values(), key=lambda v: WORST.index(v.word))
        second["verdict"] = Cell(f"{worst.word} (see notes)" if profile == "paper" else str(worst))
        if profile == "paper":
            notes.append(f"{where}, {label}: {'; '.join(f'{name} {verdict}' for name, verdict in verdicts.items())}.")
    rows = [Row("improvement printed", where, blank | {k: c for k, c in first.items() if k in blank})]
    rows.append(Row("improvement recomputed", where, blank | {k: c for k, c in second.items() if k in blank}))
    return rows, notes


def _ends(where: str, cells: Mapping[str, Cell], kind: str) -> list[str]:
    """Over which baselines the ends of the ranges are, quantities with the same ones together."""
    ends: dict[str, list[str]] = {}
    for key, cell in cells.items():
        parts = [part for part in cell.source.split("; ") if part.startswith("least over")]
        if parts:
            quantity = BY_PUBLISHED.get(key) or BY_KEY[key]
            ends.setdefault(parts[0], []).append(quantity.label)
    return [f"{where}, {kind}, {' and '.join(dict.fromkeys(names))}: {part}." for part, names in ends.items()]


def paired_gain(own: MethodRow, other: MethodRow, quantity: Quantity) -> Estimate | None:
    """Difference of a quality or saving of a cost (percent), measured, paired over common seeds; None without any."""
    mine, theirs = values_by_seed(own.measured, quantity), values_by_seed(other.measured, quantity)
    return paired_difference(mine, theirs) if quantity.is_quality else paired_saving(mine, theirs)


def gain_verdicts(
    spec: TableSpec, pair: Pair, dataset: str, profile: Profile, built: Mapping[str, MethodRow], subject: str,
    baselines: Sequence[str],
) -> dict[str, Verdict]:  # fmt: skip
    """One verdict for each published gain, savings of MACs first; baseline by baseline, the least favourable counts."""
    assert spec.improvement is not None
    accuracy = spec.verdict
    saving = accuracy.model_copy(update={"tolerance": spec.improvement.tolerance})
    gains: dict[str, Verdict] = {}
    for name, key in GAINS.items():
        quantity = BY_KEY[key]
        own, said = built[subject], built[subject].published.get(quantity.published)
        verdicts = []
        for other in (built[b] for b in baselines):
            theirs = other.published.get(quantity.published)
            found = paired_gain(own, other, quantity)
            if said is None or theirs is None or found is None:
                continue
            if profile == "paper" and circular(quantity, spec.hardware):
                verdicts.append(CIRCULAR)
                continue
            claim = said - theirs if quantity.is_quality else 100 * (1 - said / theirs)
            rule = accuracy if quantity.is_quality else saving
            verdicts.append(judge(found, claim, profile, dataset == pair.dataset, rule))
        if verdicts:
            gains[name] = min(verdicts, key=lambda v: WORST.index(v.word))
    return gains


def _printed(pair: Pair, method: str, index: PublishedIndex) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for quantity in IN_TABLES:
        if quantity.saving:
            value = index.get(pair.model_label, pair.dataset_label, method, "", quantity.saving)
            if value is not None:
                cells[quantity.published] = _printed_cell(value)
    return cells


def _printed_cell(row: PublishedRow) -> Cell:
    """A printed improvement: ``+0.05``, or a range such as ``64.4~67.2%``."""
    text = str(row.value)
    numbers = [float(part) for part in text.rstrip("%").split("~")]
    source = f"{row.source}; {row.confidence}"
    if text.endswith("%"):
        return Cell(text.replace("%", " %"), "published", low=min(numbers), high=max(numbers), source=source)
    return Cell(text, "published", numbers[0], source=source)


def _mismatch(pair: Pair, printed: Mapping[str, Cell], recomputed: Mapping[str, Cell]) -> list[str]:
    """Name a printed accuracy difference that does not follow from the printed rows."""
    said, found = printed.get("accuracy_published"), recomputed.get("accuracy_published")
    if said is None or found is None or said.value is None or found.value is None:
        return []
    if abs(said.value - found.value) < 0.015:
        return []
    return [
        f"{pair.model_label}, {pair.dataset_label}: the printed accuracy difference {said.text} does not follow from "
        f"the printed rows, which give {found.text}."
    ]
