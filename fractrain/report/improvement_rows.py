"""Improvement rows of one pair: as the paper prints them, and recomputed from published and measured rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from fractrain.cost.published import PublishedRow
from fractrain.engine.length import Profile
from fractrain.report import improve
from fractrain.report.columns import columns
from fractrain.report.quantities import BY_KEY, BY_PUBLISHED, IN_TABLES
from fractrain.report.rows import EMPTY, MethodRow, group, labels
from fractrain.report.sources import PublishedIndex
from fractrain.report.spec import Pair, TableSpec
from fractrain.report.stats import paired_difference, paired_saving
from fractrain.report.values import Cell, Row
from fractrain.report.verdict import Verdict, Word, judge

GAINS: Final = {"MACs": "macs_best", "latency": "latency", "energy": "energy", "accuracy": "accuracy_best_test"}
WORST: Final[tuple[Word, ...]] = ("differs", "inconclusive", "reproduced")


def improvement_rows(
    spec: TableSpec,
    pair: Pair,
    dataset: str,
    profile: Profile,
    built: Mapping[str, MethodRow],
    index: PublishedIndex,
) -> tuple[list[Row], list[str]]:
    """The improvement as the paper prints it, and the same recomputed from the rows, published and measured.

    Args:
        spec: the table.
        pair: the model and data set.
        dataset: registry name of the data set that was really used.
        profile: whose runs were measured.
        built: the pair's method rows by row key.
        index: the published numbers.

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
    where = group(pair, dataset)
    names = {row.key: row.label for row in spec.rows}
    printed = _printed(pair, spec.improvement.published, index)
    rivals = {key: names[key] for key in baselines}
    recomputed = improve.published_cells({k: b.published for k, b in built.items()}, subject, rivals)
    measured = improve.measured_cells({k: b.measured for k, b in built.items()}, subject, rivals)
    notes = _mismatch(pair, printed, recomputed)
    over = [names[key] for key in baselines if built[key].measured]
    if measured and len(over) < len(baselines):
        notes.append(f"{where}, {label}, measured: over {len(over)} of {len(baselines)} baselines ({', '.join(over)}).")
    notes += _rivals(f"{where}, {label}", recomputed, "published") + _rivals(f"{where}, {label}", measured, "measured")
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


def _rivals(where: str, cells: Mapping[str, Cell], kind: str) -> list[str]:
    """Over which baselines the ends of the ranges are, quantities with the same ones together."""
    ends: dict[str, list[str]] = {}
    for key, cell in cells.items():
        parts = [part for part in cell.source.split("; ") if part.startswith("least over")]
        if parts:
            quantity = BY_PUBLISHED.get(key) or BY_KEY[key]
            ends.setdefault(parts[0], []).append(quantity.label)
    return [f"{where}, {kind}, {' and '.join(dict.fromkeys(names))}: {part}." for part, names in ends.items()]


def gain_verdicts(
    spec: TableSpec, pair: Pair, dataset: str, profile: Profile, built: Mapping[str, MethodRow], subject: str,
    baselines: Sequence[str],
) -> dict[str, Verdict]:  # fmt: skip
    """One verdict for each published gain, savings of MACs first; baseline by baseline, the least favourable counts."""
    assert spec.improvement is not None
    accuracy = spec.verdict.rule()
    saving = replace(accuracy, tolerance=spec.improvement.tolerance)
    gains: dict[str, Verdict] = {}
    for name, key in GAINS.items():
        quantity = BY_KEY[key]
        own, said = built[subject], built[subject].published.get(quantity.published)
        verdicts = []
        for other in (built[b] for b in baselines):
            theirs = other.published.get(quantity.published)
            mine, others = improve.numbers(own.measured, quantity), improve.numbers(other.measured, quantity)
            found = paired_difference(mine, others) if quantity.is_quality else paired_saving(mine, others)
            if said is None or theirs is None or found is None:
                continue
            if profile == "paper" and improve.circular(quantity, spec.hardware):
                verdicts.append(improve.CIRCULAR)
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
