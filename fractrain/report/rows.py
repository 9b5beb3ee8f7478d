"""Rows of one model/data pair: what was published and what was measured of one method, or why nothing was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fractrain.cost.published import PublishedRow
from fractrain.engine.record import RunRecord
from fractrain.engine.record_files import FileDamaged
from fractrain.report.columns import columns
from fractrain.report.grid import PlannedRun
from fractrain.report.quantities import BY_PUBLISHED, IN_TABLES, Quantity
from fractrain.report.smoke import learns
from fractrain.report.sources import PublishedIndex, Sources
from fractrain.report.spec import Pair, RowSpec, TableSpec
from fractrain.report.stats import Estimate, estimate
from fractrain.report.values import Cell, Origin, Row, RunValues
from fractrain.report.verdict import Verdict, incomplete, judge
from fractrain.util.errors import FractrainError

EMPTY = Cell("–")
UNVERIFIED = (
    "Some runs are unverified: an earlier release recorded them without a manifest, and only the digests of their "
    "ledgers were checked."
)


@dataclass(frozen=True)
class MethodRow:
    """One row and what improvement rows and notes need of it.

    Attributes:
        measured: finished runs by seed; empty unless every seed is done.
        published: published numbers by column.
        notes: remarks for below the table.
    """

    row: Row
    measured: Mapping[int, RunValues]
    published: Mapping[str, float]
    notes: list[str] = field(default_factory=list)


def method_row(
    spec: TableSpec, pair: Pair, row: RowSpec, runs: Sequence[PlannedRun], sources: Sources, index: PublishedIndex
) -> MethodRow:
    """Build one method's row of one pair.

    Args:
        runs: the runs of this row and pair, at least one.
    """
    request = runs[0].request
    shown = columns(spec)
    printed = _published(pair, row, index)
    numbers = {key: float(value.value) for key, value in printed.items()}
    done = {r.seed: r.record for r in runs if r.state == "cached" and r.record is not None}
    complete = len(done) == len(runs)
    measured, damaged = _measure(done, spec.hardware, sources) if complete else ({}, _damaged(runs))
    complete = complete and not damaged

    cells = labels(pair, request.dataset, row.label, row.precision)
    cells |= {key: _published_cell(key, value) for key, value in printed.items()}
    cells["seeds"] = Cell(f"{len(done)}/{len(runs)}")
    cells["runs"] = Cell(" ".join(r.run_id for r in runs if r.record is not None) or EMPTY.text)
    if complete:
        cells |= _measured_cells(measured, spec.hardware, protocol(request.dataset))
        words = _is_language(measured.values())
        kind = "perplexity" if words else "accuracy"
        quality = estimate([m.values[f"{kind}_best_test"] for m in measured.values()])
        said = numbers.get(f"{kind}_published")
        real = request.dataset == pair.dataset
        verdict = judge(quality, said, request.profile, real, spec.verdict, less_is_better=words)
    else:
        first = next((c.key for c in shown if c.origin == "measured"), "seeds")
        cells[first] = Cell("record damaged" if damaged else _stand_in_text(runs, len(done)), "not run")
        ending = incomplete("record damaged", request.profile)
        verdict = ending if damaged else _unfinished(runs, len(done))
    if request.profile == "smoke":
        cells["verdict"] = learns(measured) if complete else Cell(str(verdict).removeprefix("inconclusive "))
    else:
        cells["verdict"] = Cell(str(verdict))
    for column in shown:
        blank = Cell(EMPTY.text, "not run") if column.origin in ("measured", "derived") and not complete else EMPTY
        cells.setdefault(column.key, blank)
    keys = {column.key for column in shown}
    cells = {key: cell for key, cell in cells.items() if key in keys}
    notes = _notes(pair, row, runs, printed) + damaged + _not_priced(spec.hardware, measured)
    if not all(record.verified for record in done.values()):
        notes.append(UNVERIFIED)
    notes += _trivial(pair, row, request.dataset, list(measured.values()))
    return MethodRow(Row("method", group_heading(pair, request.dataset), cells), measured, numbers, notes)


def group_heading(pair: Pair, dataset: str) -> str:
    """Heading of a pair's rows, with the data set that was really used."""
    return f"{pair.model_label}, {data_label(pair, dataset)}"


def data_label(pair: Pair, dataset: str) -> str:
    """Name of the data set that was really used, for example ``digits (for CIFAR-10)``; with a setting of its own."""
    name = pair.dataset_label if dataset == pair.dataset else f"{dataset} (for {pair.dataset_label})"
    return f"{name}{_setting(pair)}"


def _setting(pair: Pair) -> str:
    return "" if pair.setting == "standard" else f", {pair.setting}"


def labels(pair: Pair, dataset: str, method: str, precision: str) -> dict[str, Cell]:
    """The cells that name a row; a stand-in data set is named with what it stands for."""
    return {
        "model": Cell(pair.model_label),
        "data": Cell(data_label(pair, dataset)),
        "data_short": Cell((pair.dataset_label if dataset == pair.dataset else dataset) + _setting(pair)),
        "method": Cell(method),
        "precision": Cell(precision),
        "label": Cell(method if precision == method else f"{method} {precision.replace(' / ', '/')}"),
    }


def _published(pair: Pair, row: RowSpec, index: PublishedIndex) -> dict[str, PublishedRow]:
    """Published rows of one table row by column."""
    found: dict[str, PublishedRow] = {}
    for quantity in IN_TABLES:
        value = published_value(pair, row, quantity.metric, index) if quantity.published else None
        if value is not None:
            scale = quantity.metric_scale
            found[quantity.published] = value if scale == 1 else replace(value, value=float(value.value) * scale)
    return found


def published_value(pair: Pair, row: RowSpec, metric: str, index: PublishedIndex) -> PublishedRow | None:
    """The published row of one metric that belongs to a row of the table, or None.

    All metrics come from one key of the row: the first of which anything is published for the pair.
    """
    keys = (() if row.published is None else (row.published,)) + row.published_elsewhere
    for p in keys:
        place = (p.model or pair.model_label, p.dataset or pair.dataset_label, p.method, p.precision)
        if index.has(*place, p.table):
            return index.get(*place, metric, p.table)
    return None


def _published_cell(key: str, row: PublishedRow) -> Cell:
    value = float(row.value)
    return Cell(BY_PUBLISHED[key].published_text(value), "published", value, source=f"{row.source}; {row.confidence}")


def protocol(dataset: str) -> str:
    """How perplexity on a text is measured (context and stride); empty for other data."""
    from fractrain.data import registry

    info = registry.info(dataset) if dataset in registry.names() else None
    return info.protocol if info and info.kind == "text" else ""


def _measured_cells(measured: Mapping[int, RunValues], hardware: str, how: str) -> dict[str, Cell]:
    """Means over seeds; an optional number counts only where every seed has it. ``how`` perplexities were measured."""
    cells: dict[str, Cell] = {}
    for quantity in IN_TABLES:
        numbers = [v for m in measured.values() if (v := m.values.get(quantity.key)) is not None]
        if len(numbers) < len(measured):
            why = next((m.not_priced for m in measured.values() if m.not_priced), "")
            if quantity.modelled and why:
                cells[quantity.key] = Cell("not priced", "not run", source=f"{hardware}: {why}")
            continue
        source = how if quantity.is_perplexity else ""
        if quantity.modelled:
            source = "; ".join([f"modelled: {hardware}", *sorted({m.caveat for m in measured.values() if m.caveat})])
        cells[quantity.key] = mean_cell(quantity, estimate(numbers), source)
    return cells


def mean_cell(quantity: Quantity, mean: Estimate, source: str) -> Cell:
    """A mean over seeds; a quality's with its interval."""
    spread = f" ± {quantity.text(mean.half_width)}" if quantity.is_quality and mean.half_width is not None else ""
    origin: Origin = "derived" if quantity.modelled else "measured"
    return estimate_cell(mean, quantity.text(mean.mean) + spread, source, origin)


def estimate_cell(found: Estimate, text: str, source: str, origin: Origin = "derived") -> Cell:
    """A cell with the numbers of an estimate behind its text."""
    return Cell(text, origin, found.mean, found.low, found.high, found.n, source)


def _measure(
    records: Mapping[int, RunRecord], hardware: str, sources: Sources
) -> tuple[dict[int, RunValues], list[str]]:
    """Numbers of finished runs by seed, or one remark for each whose files do not hold any."""
    measured, remarks = {}, []
    for seed, record in records.items():
        try:
            measured[seed] = sources.measure(record, hardware)
        except FractrainError as error:
            fault = f"{error.name} {error.reason}" if isinstance(error, FileDamaged) else str(error)
            remarks.append(f"{record.run_id}: record damaged: {fault}")
    return ({}, remarks) if remarks else (measured, [])


def _damaged(runs: Sequence[PlannedRun]) -> list[str]:
    """One remark for each run whose record is damaged."""
    return [f"{r.run_id}: {r.record.message}" for r in runs if r.record is not None and r.record.status == "damaged"]


# -- rows without a measured value ------------------------------------------------------------------------------------


def _endings(runs: Sequence[PlannedRun]) -> str:
    """How unfinished attempts ended, for example ``1 diverged``; empty if there were none."""
    counts = Counter(r.record.status for r in runs if r.record is not None and r.state != "cached")
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))


def _stand_in_text(runs: Sequence[PlannedRun], done: int) -> str:
    """Text that takes the place of the mean: ``not run``, how all attempts ended, or how many seeds there are."""
    endings = {r.record.status for r in runs if r.record is not None and r.state != "cached"}
    if not done and not endings:
        return "not run"
    attempts = sum(r.record is not None for r in runs)
    if attempts == len(runs) and not done and len(endings) == 1:
        return endings.pop()
    return f"{done}/{len(runs)} seeds"


def _unfinished(runs: Sequence[PlannedRun], done: int) -> Verdict:
    if runs[0].state not in ("cached", "to run"):
        return Verdict("not run", runs[0].state)
    endings = _endings(runs)
    if not done and not endings:
        return Verdict("not run")
    count = f"{done}/{len(runs)} seeds"
    if runs[0].request.profile == "smoke":
        return Verdict("inconclusive", ", ".join(filter(None, (count, endings))))
    return incomplete(", ".join(filter(None, (count, endings))), runs[0].request.profile)


def _notes(pair: Pair, row: RowSpec, runs: Sequence[PlannedRun], printed: Mapping[str, PublishedRow]) -> list[str]:
    where = f"{pair.model_label}, {pair.dataset_label}, {row.label}"
    notes = [f"{where}, published: {note}." for note in dict.fromkeys(p.note for p in printed.values() if p.note)]
    if how := protocol(runs[0].request.dataset):
        notes.append(f"{group_heading(pair, runs[0].request.dataset)}: {how}.")
    if runs[0].state == "no plugin":
        notes.append(f"{row.label} was not run (no plugin): {runs[0].reason}")
    elif runs[0].state in ("no model", "no data", "left out"):
        notes.append(f"{pair.model_label}, {pair.dataset_label} was not run: {runs[0].reason}.")
    elif runs[0].state == "incompatible":
        notes.append(f"{where} {row.precision} was not run: {runs[0].reason}")
    return notes


def _not_priced(hardware: str, measured: Mapping[int, RunValues]) -> list[str]:
    """Why a hardware model gave no energy and latency; rows that fail for one reason share the note."""
    reasons = dict.fromkeys(m.not_priced for m in measured.values() if m.not_priced)
    return [f"Not priced by {hardware}: {reason}." for reason in reasons]


def _is_language(measured: Iterable[RunValues]) -> bool:
    """Whether these runs are judged by perplexity."""
    return all("perplexity_best_test" in m.values for m in measured)


def _trivial(pair: Pair, row: RowSpec, dataset: str, measured: Sequence[RunValues]) -> list[str]:
    """What a predictor without learning reaches on this data, and whether this row's runs are better on average."""
    words = bool(measured) and _is_language(measured)
    kind = "perplexity" if words else "accuracy"
    if not measured or any(f"{kind}_trivial" not in m.values for m in measured):
        return []
    bar = measured[0].values[f"{kind}_trivial"]
    what, unit = ("giving each word its frequency", "perplexity") if words else ("always one class", "accuracy, %")
    where = dataset if pair.setting == "standard" else group_heading(pair, dataset)
    notes = [f"{where}, trivial predictor ({what}): {unit} {bar:.2f}."]
    mean = estimate([m.values[f"{kind}_best_test"] for m in measured]).mean
    if (mean >= bar) if words else (mean <= bar):
        notes.append(f"{group_heading(pair, dataset)}, {row.label}: NOT better than the trivial predictor.")
    return notes
