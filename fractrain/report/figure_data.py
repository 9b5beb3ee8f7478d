"""The points of a figure: published ones as their source has them, measured ones from the same cells as the table.

What is comparable shares a panel: only a complete row of the profile ``paper`` on the paper's own data set is put on
the axes of the published points. Anything else has panels of its own, with its own axes and its profile in the title.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from fractrain.cost.published import PublishedRow
from fractrain.engine.length import Profile, check_profile, length_text
from fractrain.report.build import build_table
from fractrain.report.csv_cells import csv_text
from fractrain.report.rows import EMPTY, data_label
from fractrain.report.sources import Sources, Store, default_sources
from fractrain.report.spec import FigureSpec, Pair, Series, TableSpec
from fractrain.report.values import Row, Table
from fractrain.util.errors import ConfigError

ACCURACY, MACS = "acc_top1_%", "effective_MACs"


@dataclass(frozen=True)
class PlotPoint:
    """One point: accuracy (best on test, percent) against effective MACs up to the epoch of best accuracy.

    Attributes:
        model, dataset: as the paper names them.
        data: data set of the run where it is another one, else the same as ``dataset``.
        series: key of the series.
        tag: short text beside the point; may be empty.
        kind: ``published`` or ``measured``.
        accuracy_low, accuracy_high: 95 % interval over seeds, where there is one.
        n: number of seeds of a measured point.
        confidence_macs, confidence_accuracy: how the published numbers were read.
        source: citation, or ids of the runs.
        note: a known problem with the published point.
    """

    model: str
    dataset: str
    data: str
    series: str
    tag: str
    precision: str
    kind: Literal["published", "measured"]
    macs: float
    accuracy: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    n: int | None = None
    confidence_macs: str = ""
    confidence_accuracy: str = ""
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        kind: ``published`` (measured points of the same task may be on it), or ``measured`` (nothing else is).
        title, subtitle: what is shown, and where the numbers come from.
        points: what is drawn; a panel without any is not.
    """

    kind: Literal["published", "measured"]
    title: str
    subtitle: str
    points: tuple[PlotPoint, ...]


@dataclass(frozen=True)
class FigureData:
    """A finished figure, independent of any format: the table behind it, and the panels in pairs of rows.

    Attributes:
        title: names the profile as soon as anything measured is drawn.
        published: one panel per model/data pair.
        measured: one panel per pair, in the same order; empty where measured points are on the published panels, or
            where there are none.
        warning: one sentence where measured panels must not be compared with published ones; else empty.
    """

    table: Table
    title: str
    drawing: FigureSpec
    published: tuple[Panel, ...]
    measured: tuple[Panel, ...]
    warning: str
    remarks: tuple[str, ...]

    @property
    def points(self) -> tuple[PlotPoint, ...]:
        """All points that are drawn."""
        return tuple(point for panel in (*self.published, *self.measured) for point in panel.points)


def build_figure(
    spec: TableSpec, store: Store | None, profile: str, seeds: int | Sequence[int] | None = None,
    sources: Sources | None = None,
) -> FigureData:  # fmt: skip
    """Build one figure; arguments as of :func:`fractrain.report.build.build_table`.

    Raises:
        ConfigError: unknown profile, or the specification is that of a plain table.
    """
    if spec.figure is None:
        raise ConfigError(f"{spec.name} is a table, not a figure: it has no [figure] section")
    known = check_profile(profile)
    sources = sources or default_sources()
    table = build_table(spec, store, known, seeds, sources)
    rows = iter([row for row in table.rows if row.kind == "method"])
    below, panels = known != "paper", []
    for pair in spec.pairs:
        built = [next(rows) for _ in spec.rows_of(pair)]
        panels.append((pair, built, list(_measured(spec, pair, built, known))))
    apart = [below or spec.dataset(pair, known) != pair.dataset for pair, _, _ in panels]
    published, measured = [], []
    for (pair, _, own), separate in zip(panels, apart, strict=True):
        theirs = tuple(_published(spec, spec.figure, pair, sources.published))
        published.append(_published_panel(pair, theirs, () if separate else tuple(own)))
        title = f"{pair.model_label}, {data_label(pair, spec.dataset(pair, known))}"
        subtitle = f"measured, {length_text(known)}; not comparable with published"
        measured.append(Panel("measured", title, subtitle, tuple(own) if separate else ()))
    shown = any(panel.points for panel in measured)
    return FigureData(
        table=table, title=table.title if any(own for _, _, own in panels) else spec.title, drawing=spec.figure,
        published=tuple(published), measured=tuple(measured) if shown else (),
        warning=_warning(table) if shown else "", remarks=tuple(_remarks(table)),
    )  # fmt: skip


# -- points ------------------------------------------------------------------------------------------------------------


def _published(spec: TableSpec, drawing: FigureSpec, pair: Pair, rows: Sequence[PublishedRow]) -> Iterator[PlotPoint]:
    """Every published point of a pair, series by series, in the order of the published rows."""
    for series in drawing.series:
        wanted = (pair.model_label, pair.dataset_label, series.published)
        own = [r for r in rows if r.table in drawing.tables and (r.model, r.dataset, r.method) == wanted]
        for key in dict.fromkeys((r.table, r.precision) for r in own):
            cell = {r.metric: r for r in own if (r.table, r.precision) == key}
            if ACCURACY in cell and MACS in cell:
                yield _published_point(spec, pair, series, cell[MACS], cell[ACCURACY])


def _published_point(spec: TableSpec, pair: Pair, series: Series, x: PublishedRow, y: PublishedRow) -> PlotPoint:
    tags = [row.tag for row in spec.rows if row.series == series.key and row.published
            and row.published.precision == y.precision]  # fmt: skip
    return PlotPoint(
        model=pair.model_label, dataset=pair.dataset_label, data=pair.dataset_label, series=series.key,
        tag=tags[0] if tags else "", precision=y.precision, kind="published", macs=float(x.value),
        accuracy=float(y.value), confidence_macs=x.confidence, confidence_accuracy=y.confidence,
        source=f"{y.paper}, {y.table}: {y.source}", note="; ".join(dict.fromkeys(filter(None, (x.note, y.note)))),
    )  # fmt: skip


def _measured(spec: TableSpec, pair: Pair, built: Sequence[Row], profile: Profile) -> Iterator[PlotPoint]:
    """The points of complete rows, from the cells of the table."""
    for row, made in zip(spec.rows_of(pair), built, strict=True):
        own, theirs, y = (made.cells.get(k, EMPTY) for k in ("macs_best", "macs_authors", "accuracy_best_test"))
        x = own if theirs.value is None else theirs  # in the unit of the published points, where that is known
        if not row.series or x.value is None or y.value is None:
            continue
        used = spec.dataset(pair, profile)
        yield PlotPoint(
            model=pair.model_label, dataset=pair.dataset_label,
            data=pair.dataset_label if used == pair.dataset else used, series=row.series, tag=row.tag,
            precision=row.precision, kind="measured", macs=x.value, accuracy=y.value, accuracy_low=y.low,
            accuracy_high=y.high, n=y.n, source=made.text("runs"),
        )  # fmt: skip


# -- panels ------------------------------------------------------------------------------------------------------------


def _warning(table: Table) -> str:
    """The watermark, of panels."""
    if table.profile == "smoke":
        return table.watermark.replace(": ", ": measured panels are of ", 1)
    return table.watermark.replace("columns", "panels")


def _published_panel(pair: Pair, points: tuple[PlotPoint, ...], own: tuple[PlotPoint, ...]) -> Panel:
    """Published points, with measured ones on the same axes where they are of the same task and length."""
    how = "published: " + (_confidence(points) if points else "no points")
    subtitle = f"{how}; filled: measured" if own else how
    return Panel("published", f"{pair.model_label}, {pair.dataset_label}", subtitle, (*points, *own))


def _confidence(points: Sequence[PlotPoint]) -> str:
    accuracy = " / ".join(dict.fromkeys(p.confidence_accuracy for p in points))
    macs = " / ".join(dict.fromkeys(p.confidence_macs for p in points))
    return accuracy if accuracy == macs else f"{accuracy}, MACs {macs}"


def select_panels(figure: FigureData, panel: str) -> FigureData:
    """Return the figure with some of its panels.

    Args:
        panel: a number, from 1, of the panels that have points in the order in which they are drawn; a title
            (``ResNet-38, CIFAR-10``); or a part of titles and subtitles (``measured``), whatever the case.

    Raises:
        ConfigError: no panel is meant.
    """
    there = [p for p in (*figure.published, *figure.measured) if p.points]
    names = [f"{p.title}; {p.subtitle}" for p in there]
    titled = [p for p in there if p.title.lower() == panel.lower()]
    meant = titled or [p for number, (p, name) in enumerate(zip(there, names, strict=True), 1)
             if panel == str(number) or (not panel.isdigit() and panel.lower() in name.lower())]  # fmt: skip
    if not meant:
        listed = "; ".join(f"{number}: {p.title} ({p.kind})" for number, p in enumerate(there, 1))
        raise ConfigError(f"{figure.table.name} has no panel {panel!r}: {listed or 'no panel has a point'}")
    return replace(
        figure, published=tuple(p for p in figure.published if p in meant),
        measured=tuple(p for p in figure.measured if p in meant),
    )  # fmt: skip


def _remarks(table: Table) -> Iterator[str]:
    """How many points were measured, and why others were not."""
    rows = [row for row in table.rows if row.kind == "method"]
    done = sum(row.cells["accuracy_best_test"].value is not None for row in rows)
    if done:
        seeds = "one seed" if len(table.seeds) == 1 else f"{len(table.seeds)} seeds, bars: 95 % interval over seeds"
        yield f"Measured: {done} of {len(rows)} points of {length_text(table.profile)}, {seeds}."
    else:
        yield f"Published points only: no point of {length_text(table.profile)} has been measured yet."
    yield from (note for note in table.notes if " was not run" in note)


# -- data --------------------------------------------------------------------------------------------------------------


def points_csv(figure: FigureData) -> str:
    """Return the points as drawn, one per line, with source and confidence."""
    lines: list[list[object]] = [["figure", "version", "profile", *(field.name for field in fields(PlotPoint))]]
    table = figure.table
    for point in figure.points:
        values = ("" if value is None else value for value in asdict(point).values())
        lines.append([table.name, table.version, table.profile, *values])
    return csv_text(lines)
