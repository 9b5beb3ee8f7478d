"""Tables and figures, whole or in part, in all formats: what a name stands for decides, callers need not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fractrain.engine.length import profile_slug as file_stem
from fractrain.report import render as tables
from fractrain.report.build import build_table
from fractrain.report.cost_figure import CostFigure, build_costs, costs_csv, draw_costs
from fractrain.report.draw import FORMATS, Look, draw
from fractrain.report.figure_data import FigureData, build_figure, points_csv, select_panels
from fractrain.report.latex import narrow
from fractrain.report.sources import Sources, Store
from fractrain.report.spec import TableSpec
from fractrain.report.values import Column, Table
from fractrain.util.errors import ConfigError, did_you_mean
from fractrain.util.files import write_files

DRAWN: Final = ("svg", "png")


@dataclass(frozen=True)
class Wanted:
    """How a table or figure is written.

    Attributes:
        columns, rows: see :func:`fractrain.report.output.selected`; empty: all. LaTeX of chosen columns fits one
            column of a page.
        panel: see :func:`fractrain.report.figure_data.select_panels`; empty: all.
        look: see :func:`fractrain.report.draw.draw`; ``paper`` also makes LaTeX fit one column.
        modelled: see :func:`fractrain.report.build.build_table`.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    panel: str = ""
    look: Look = "page"
    modelled: bool = False


def table_content(
    spec: TableSpec, store: Store | None, profile: str, seeds: int | Sequence[int] | None = None, fmt: str = "md",
    sources: Sources | None = None, wanted: Wanted | None = None,
) -> bytes:  # fmt: skip
    """Return a table or figure in one format.

    Args:
        spec: from :func:`fractrain.report.spec.load_spec`; this and the rest as for
            :func:`fractrain.report.build.build_table`.
        fmt: ``md``, ``csv``, ``tex``, ``html``, ``json``; of a figure also ``svg``, ``png`` and ``pdf``; its ``csv``
            has a line per point, its ``html`` begins with the drawing.
        wanted: what of it, and in which style; None: all, for a page.

    Raises:
        ConfigError: unknown profile, format, column or panel, or a drawing of a plain table.
        MachineError: a drawing without matplotlib.
    """
    wanted = wanted or Wanted()
    whole = not (wanted.columns or wanted.rows)
    if spec.costs is not None and (fmt in FORMATS or (fmt in ("csv", "html", "md") and whole)):
        if wanted.panel or wanted.look != "page":
            raise ConfigError(f"{spec.name} has one form: leave out --panel and --style")
        return _costs_content(build_costs(spec, store, profile, seeds, sources), fmt)
    if fmt in FORMATS:
        figure = build_figure(spec, store, profile, seeds, sources)
        return draw(select_panels(figure, wanted.panel) if wanted.panel else figure, fmt, wanted.look)
    if spec.figure is not None and fmt in ("csv", "html", "md") and whole:
        return _figure_text(build_figure(spec, store, profile, seeds, sources), fmt).encode()
    table = selected(build_table(spec, store, profile, seeds, sources, wanted.modelled), wanted.columns, wanted.rows)
    if fmt == "tex" and (wanted.columns or wanted.look == "paper"):
        return narrow(table).encode()
    return tables.render(table, fmt).encode()


def _costs_content(figure: CostFigure, fmt: str) -> bytes:
    """A figure of costs in one format."""
    if fmt in FORMATS:
        return draw_costs(figure, fmt)
    if fmt == "csv":
        return costs_csv(figure).encode()
    return _with_drawing(figure.table, fmt, lambda: draw_costs(figure, "svg"), figure.table.title).encode()


def _figure_text(figure: FigureData, fmt: str) -> str:
    """A figure in a text format: its points, or the table behind it below the drawing."""
    if fmt == "csv":
        return points_csv(figure)
    return _with_drawing(figure.table, fmt, lambda: draw(figure, "svg"), figure.title)


def _with_drawing(table: Table, fmt: str, make: Callable[[], bytes], title: str) -> str:
    """The table below its drawing, where the format has room for one."""
    if fmt == "html":
        drawn = make().decode()
        return tables.html(table, drawn[drawn.index("<svg") :])
    made = tables.render(table, fmt)
    if fmt == "md":
        name = f"{table.name}-{file_stem(table.profile)}.svg"
        head, _, rest = made.partition("\n\n")
        return f"{head}\n\n![{title}]({name})\n\n{rest}"
    return made


def write(
    spec: TableSpec, store: Store | None, profile: str, folder: Path | str, seeds: int | Sequence[int] | None = None,
    sources: Sources | None = None,
) -> tuple[Table, list[Path]]:  # fmt: skip
    """Write ``<name>-<profile>.<format>`` in every format, each file at once or not at all; a figure also as drawings.

    Args:
        spec: as for :func:`table_content`, and so are the others.
        folder: where to; made if it is not there.

    Returns:
        The table (of a figure: the one behind it) and the files.

    Raises:
        StoreError: the folder cannot be written.
        MachineError: a figure, and matplotlib is not installed.
    """
    if not spec.is_drawn:
        table = build_table(spec, store, profile, seeds, sources)
        return table, tables.write_all(table, folder)
    if spec.costs is not None:
        costs = build_costs(spec, store, profile, seeds, sources)
        table = costs.table
        contents = {fmt: _costs_content(costs, fmt) for fmt in (*FORMATS, *tables.FORMATS)}
    else:
        figure = build_figure(spec, store, profile, seeds, sources)
        table = figure.table
        contents = {fmt: draw(figure, fmt) for fmt in DRAWN}
        contents |= {fmt: _figure_text(figure, fmt).encode() for fmt in tables.FORMATS}
    stem = f"{folder}/{table.name}-{file_stem(table.profile)}"
    return table, write_files({Path(f"{stem}.{fmt}"): content for fmt, content in contents.items()})


LABEL = "label"


def selected(table: Table, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> Table:
    """Return a table with some columns and rows; smaller tables below it are left out as soon as any are chosen.

    Args:
        columns: keys, in the order in which they shall stand; the label of the row stands before them. Empty: all.
        rows: words, one of which must be in the row's group (model and data) or label, whatever the case. Empty: all.

    Raises:
        ConfigError: no such column, or no row has any of the words.
    """
    if not columns and not rows:
        return table
    named = ((row, f"{row.group} {row.text(LABEL)}".lower()) for row in table.rows)
    kept = tuple(row for row, name in named if not rows or any(word.lower() in name for word in rows))
    if not kept:
        labels = dict.fromkeys(row.text(LABEL) for row in table.rows)
        raise ConfigError(f"{table.name}: no row has {' or '.join(map(repr, rows))}; rows: {', '.join(labels)}")
    return replace(table, columns=_columns(table, columns) if columns else table.columns, rows=kept, sections=())


def _columns(table: Table, keys: Sequence[str]) -> tuple[Column, ...]:
    there = {column.key: column for column in table.columns}
    for key in keys:
        if key not in there:
            raise ConfigError(
                f"{table.name} has no column {key!r}{did_you_mean(key, there)}; columns: {', '.join(there)}"
            )
    wanted = [LABEL, *keys] if LABEL in there and LABEL not in keys else list(keys)
    return tuple(replace(there[key], short=there[key].short or there[key].head) for key in wanted)
