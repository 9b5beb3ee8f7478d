"""Scaling: the accuracy gap between methods at several lengths of training, and where its trend leads.

Gaps are paired over seeds. What is missing is `not run`; what was run with some of its seeds counts with those, and the
table says how many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fractrain.engine.length import length_divisor, length_text
from fractrain.report.campaign import Campaign, plan_campaign
from fractrain.report.grid import PlannedRun
from fractrain.report.improve import values_by_seed
from fractrain.report.quantities import BY_KEY
from fractrain.report.rows import EMPTY, estimate_cell, mean_cell, published_value
from fractrain.report.sources import PublishedIndex, Sources, Store, default_sources
from fractrain.report.spec import Pair, RowSpec
from fractrain.report.stats import CONFIDENCE, Estimate, estimate, paired_saving
from fractrain.report.trend import Trend, TrendVerdict, fit_trend, judge_trend, trend_rule
from fractrain.report.values import Cell, Column, Row, RunValues, Table

GAP: Final = "accuracy_best_test"
SHOWN: Final = ("accuracy_best_test", "accuracy_last", "macs_end", "energy_end")
SAVED: Final = ("macs_end", "energy_end")
PAPER: Final = "1"


@dataclass(frozen=True)
class Curve:
    """One method on one data set.

    Attributes:
        planned: seeds of the campaign, by length (``1/64``), shortest first.
        measured: finished runs by length and seed.
        published: published accuracy in percent, or None.
    """

    pair: Pair
    row: RowSpec
    planned: Mapping[str, tuple[int, ...]]
    measured: Mapping[str, Mapping[int, RunValues]]
    published: float | None

    def accuracy(self, length: str) -> dict[int, float]:
        """Best test accuracy of the finished runs of a length, by seed."""
        return values_by_seed(self.measured.get(length, {}), BY_KEY[GAP])

    def gaps(self, rival: Curve) -> dict[str, list[float]]:
        """Paired differences in points, by length; lengths without a pair are left out."""
        found = {}
        for length in self.planned:
            own, other = self.accuracy(length), rival.accuracy(length)
            if common := sorted(set(own) & set(other)):
                found[length] = [own[seed] - other[seed] for seed in common]
        return found

    def published_gap(self, rival: Curve) -> float | None:
        """Difference of the published accuracies, which are one run each."""
        return None if self.published is None or rival.published is None else self.published - rival.published


@dataclass(frozen=True)
class Gap:
    """The gap of a method to a rival: at each length, followed to the paper's, and what was published.

    Attributes:
        at: paired difference by length.
        trend: the line through all pairs; None with too few.
        published: published difference; None: nothing to judge.
        verdict: what the trend says of it.
    """

    curve: Curve
    rival: Curve
    at: Mapping[str, Estimate]
    trend: Trend | None
    published: float | None
    verdict: TrendVerdict | None


@dataclass(frozen=True)
class Scaling:
    """All of a campaign that is done.

    Attributes:
        runs: its runs, in order.
        curves: by data set and method.
    """

    campaign: Campaign
    runs: Sequence[PlannedRun]
    curves: Mapping[tuple[str, str], Curve]
    table: Table

    def gap(self, dataset: str, method: str, rival: str) -> Gap | None:
        """The gap of one method to another; None where the campaign has not both."""
        own, other = self.curves.get((dataset, method)), self.curves.get((dataset, rival))
        return None if own is None or other is None else _gap(own, other, self.campaign.trend.tolerance)


def build_scaling(campaign: Campaign, store: Store | None, sources: Sources | None = None) -> Scaling:
    """Read what is done of a campaign from a store (or from the committed records).

    Args:
        store: a run store or an :class:`~fractrain.report.evidence.EvidenceStore`; None: nothing is done.
        sources: configurations, costs and published rows; default: the engine's and the package's own.
    """
    sources = sources or default_sources()
    runs = plan_campaign(campaign, store, sources)
    curves = _curves(campaign, runs, sources)
    return Scaling(campaign, runs, curves, _table(campaign, runs, curves))


def _curves(campaign: Campaign, runs: Sequence[PlannedRun], sources: Sources) -> dict[tuple[str, str], Curve]:
    index = PublishedIndex(sources.published, campaign.published_table)
    found: dict[tuple[str, str], Curve] = {}
    for dataset in campaign.datasets:
        for method in campaign.methods:
            own = [r for r in runs if r.pair.dataset == dataset and r.row.key == method.key]
            if not own:
                continue
            lengths = sorted({r.request.profile for r in own}, key=lambda name: -(length_divisor(name) or 0))
            planned = {name: tuple(r.seed for r in own if r.request.profile == name) for name in lengths}
            measured = {
                name: {r.seed: sources.measure(r.record, campaign.hardware) for r in own
                       if r.request.profile == name and r.state == "cached" and r.record is not None}
                for name in lengths
            }  # fmt: skip
            said = published_value(own[0].pair, own[0].row, BY_KEY[GAP].metric, index)
            value = None if said is None else float(said.value)
            found[dataset, method.key] = Curve(own[0].pair, own[0].row, planned, measured, value)
    return found


def _gap(own: Curve, rival: Curve, tolerance: float) -> Gap:
    gaps = own.gaps(rival)
    trend = fit_trend({1 / (length_divisor(length) or 1): values for length, values in gaps.items()})
    published = own.published_gap(rival)
    at = {length: estimate(values) for length, values in gaps.items()}
    return Gap(own, rival, at, trend, published, judge_trend(trend, published, tolerance) if gaps else None)


# -- the table ---------------------------------------------------------------------------------------------------------


def _table(campaign: Campaign, runs: Sequence[PlannedRun], curves: Mapping[tuple[str, str], Curve]) -> Table:
    rows = [row for (dataset, key), curve in curves.items() for row in _rows(campaign, dataset, key, curve, curves)]
    lengths = sorted({r.request.profile for r in runs}, key=lambda name: -(length_divisor(name) or 0))
    span = f"{lengths[0]} to {lengths[-1]}"
    done = sum(run.state == "cached" for run in runs)
    return Table(
        name=campaign.name, version=campaign.version, title=f"{campaign.title} [lengths {span} of the paper's]",
        caption=f"{campaign.caption} {done} of {len(runs)} runs of the campaign are done.", source=campaign.source,
        profile=span, seeds=tuple(sorted({run.seed for run in runs})),
        watermark=(
            "NOT A REPRODUCTION: all runs are shorter than the paper's. A trend is a prediction of what its length "
            "would show; only runs of that length can confirm it."
        ),
        columns=_columns(campaign, curves), rows=tuple(rows), notes=campaign.notes, rules=_rules(campaign),
    )  # fmt: skip


def _columns(campaign: Campaign, curves: Mapping[tuple[str, str], Curve]) -> tuple[Column, ...]:
    names = {key: next(c.row.label for (_, k), c in curves.items() if k == key) for key in campaign.trend.against}
    gaps: list[Column] = []
    for key, name in names.items():
        head = f"Accuracy over {name} [points] ↑, paired over seeds"
        gaps.append(Column(f"gap_{key}", head, f"over {name}", ("all",), "derived"))
        if any(c.published_gap(curves[d, key]) is not None for (d, _), c in curves.items() if (d, key) in curves):
            printed = f"Accuracy over {name} [points] ↑, by the published rows"
            gaps.append(Column(f"gap_{key}_published", printed, f"over {name} pub.", ("all",), "published"))
    first = next(iter(names.values()))
    model = f"modelled by {campaign.hardware}"
    return (
        Column("label", "Method", "Method", ("all",)),
        Column("length", "Length [share of the paper's iterations]", "Length", ("all",)),
        Column("seeds", "Seeds [done/planned]", "Seeds", ("all",)),
        Column(GAP, "Accuracy [%] ↑, best on test (paper protocol)", "best* %↑", ("all",), "measured"),
        Column("accuracy_last", "Accuracy [%] ↑, last epoch", "last %↑", ("all",), "measured"),
        *gaps,
        Column("trend", "What the trend says of the published gap", "Trend", ("all",)),
        Column("macs_end", "MACs@end [effective MACs] ↓", "MACs↓@end", ("all",), "measured"),
        Column("macs_end_saving", f"MACs@end saved against {first} [%] ↑", "MACs saved %", ("all",), "derived"),
        Column("energy_end", f"Energy@end [kJ] ↓, {model}", "", ("all",), "derived"),
        Column("energy_end_saving", f"Energy@end saved against {first} [%] ↑, {model}", "kJ saved % model", ("all",),
               "derived"),
        Column("method", "", "", ("all",)),
        Column("runs", "Run ids", "", ("all",)),
    )  # fmt: skip


def _rows(
    campaign: Campaign, dataset: str, key: str, curve: Curve, curves: Mapping[tuple[str, str], Curve]
) -> Iterator[Row]:
    heading = f"{curve.pair.model_label}, {curve.pair.dataset_label}"
    label = f"{curve.row.label} {curve.row.precision}" if curve.row.precision != curve.row.label else curve.row.label
    named = {"label": Cell(label), "method": Cell(label)}
    blank = {column.key: EMPTY for column in _columns(campaign, curves)}
    rivals = {r: curves[dataset, r] for r in campaign.trend.against if r != key and (dataset, r) in curves}
    gaps = {r: _gap(curve, other, campaign.trend.tolerance) for r, other in rivals.items()}
    for length in curve.planned:
        cells = _measured_cells(campaign, curve, length, rivals)
        cells |= {f"gap_{r}": _paired_cell(gap.at[length], "+", 2) for r, gap in gaps.items() if length in gap.at}
        yield Row("method", heading, blank | named | cells)
    if ahead := _predicted_cells(gaps):
        yield Row("method", heading, blank | named | {"length": Cell(f"{PAPER} (trend)")} | ahead)


def _measured_cells(campaign: Campaign, curve: Curve, length: str, rivals: Mapping[str, Curve]) -> dict[str, Cell]:
    runs, planned = curve.measured[length], curve.planned[length]
    cells = {"length": Cell(length), "seeds": Cell(f"{len(runs)}/{len(planned)}")}
    if not runs:
        return {**cells, GAP: Cell("not run", "not run")}
    for name in SHOWN:
        quantity = BY_KEY[name]
        values = values_by_seed(runs, quantity)
        if values:
            source = f"modelled: {campaign.hardware}" if quantity.modelled else ""
            cells[name] = mean_cell(quantity, estimate(list(values.values())), source)
    base = rivals.get(campaign.trend.against[0])  # none for that method itself
    for name in SAVED:
        other = base.measured.get(length, {}) if base else {}
        saving = paired_saving(values_by_seed(runs, BY_KEY[name]), values_by_seed(other, BY_KEY[name]))
        if saving is not None:
            cells[f"{name}_saving"] = _paired_cell(saving, "", 1)
    return cells


def _paired_cell(e: Estimate, sign: str, digits: int) -> Cell:
    return estimate_cell(e, e.text(sign, digits), "from measured runs, paired over seeds")


def _predicted_cells(gaps: Mapping[str, Gap]) -> dict[str, Cell]:
    """The row at the paper's length: predicted and published gaps, and what the one says of the other."""
    cells: dict[str, Cell] = {}
    for key, gap in gaps.items():
        if (trend := gap.trend) is not None:
            text = f"{trend.predicted:+.2f} [{trend.low:+.2f}, {trend.high:+.2f}]"
            source = f"least squares through {trend.points} pairs at {trend.lengths} lengths, prediction interval"
            cells[f"gap_{key}"] = Cell(text, "derived", trend.predicted, trend.low, trend.high, trend.points, source)
        if gap.published is not None:
            cells[f"gap_{key}_published"] = Cell(f"{gap.published:+.2f}", "published", gap.published)
            cells["trend"] = Cell(str(gap.verdict) if gap.verdict else "not run")
        elif gap.verdict is not None:
            cells.setdefault("trend", Cell(str(gap.verdict)))
    return cells


def _rules(campaign: Campaign) -> tuple[str, ...]:
    return (
        "Length: share of the paper's 64,000 iterations; milestones and the indicator's clock in proportion, batch, "
        f"learning rates and weights unchanged ({length_text('1/64')} is 1,000 iterations, 20 evaluations).",
        f"Accuracies are means over the seeds there are, ± the half width of the {CONFIDENCE:.0%} Student t interval; "
        "best* = best on the test set over all evaluations (chosen on test data, so optimistic).",
        "Over X: difference of best* between two runs of the same seed, which share batches and initial weights; mean "
        "over seeds, ± its t interval. Savings are at equal iterations (@end) and paired likewise.",
        trend_rule(campaign.trend.tolerance),
    )
