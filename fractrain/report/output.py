"""Tables and figures in all their formats: what a name stands for decides, callers need not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fractrain.engine.length import stem as file_stem
from fractrain.report import render as tables
from fractrain.report.build import build_table
from fractrain.report.draw import FORMATS, Look, draw, require_matplotlib
from fractrain.report.latex import narrow
from fractrain.report.points import FigureData, build_figure, only, points_csv
from fractrain.report.selection import selected
from fractrain.report.sources import Sources, Store
from fractrain.report.spec import TableSpec
from fractrain.report.values import Table
from fractrain.util.files import atomic_write, storing

DRAWN: Final = ("svg", "png")


def check(spec: TableSpec) -> None:
    """Find out before hours of training whether the result can be written.

    Raises:
        MachineError: it is a figure, and matplotlib is not installed.
    """
    if spec.figure is not None:
        require_matplotlib()


@dataclass(frozen=True)
class Wanted:
    """How a table or figure is written.

    Attributes:
        columns, rows: see :func:`fractrain.report.selection.selected`; empty: all. LaTeX of chosen columns fits one
            column of a page.
        panel: see :func:`fractrain.report.points.only`; empty: all.
        look: see :func:`fractrain.report.draw.draw`; ``paper`` also makes LaTeX fit one column.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    panel: str = ""
    look: Look = "page"


def content(
    spec: TableSpec,
    store: Store | None,
    profile: str,
    seeds: int | Sequence[int] | None = None,
    fmt: str = "md",
    sources: Sources | None = None,
    wanted: Wanted | None = None,
) -> bytes:
    """Return a table or figure in one format.

    Args:
        spec: from :func:`fractrain.report.spec.load_spec`; this and the rest as for
            :func:`fractrain.report.build.build_table`.
        store: the run store.
        profile: whose runs are shown.
        seeds: their seeds.
        fmt: ``md``, ``csv``, ``tex``, ``html``, ``json``; of a figure also ``svg``, ``png`` and ``pdf``; its ``csv``
            has a line per point, its ``html`` begins with the drawing.
        sources: configurations, costs and published rows.
        wanted: what of it, and in which style; None: all, for a page.

    Raises:
        ConfigError: unknown profile, format, column or panel, or a drawing of a plain table.
        MachineError: a drawing without matplotlib.
    """
    wanted = wanted or Wanted()
    if fmt in FORMATS:
        figure = build_figure(spec, store, profile, seeds, sources)
        return draw(only(figure, wanted.panel) if wanted.panel else figure, fmt, wanted.look)
    if spec.figure is not None and fmt in ("csv", "html", "md") and not (wanted.columns or wanted.rows):
        return _figure_text(build_figure(spec, store, profile, seeds, sources), fmt).encode()
    table = selected(build_table(spec, store, profile, seeds, sources), wanted.columns, wanted.rows)
    if fmt == "tex" and (wanted.columns or wanted.look == "paper"):
        return narrow(table).encode()
    return tables.render(table, fmt).encode()


def text(
    spec: TableSpec,
    store: Store | None,
    profile: str,
    seeds: int | Sequence[int] | None = None,
    fmt: str = "md",
    sources: Sources | None = None,
) -> str:
    """:func:`content` of a text format (``svg`` is one)."""
    return content(spec, store, profile, seeds, fmt, sources).decode()


def _figure_text(figure: FigureData, fmt: str) -> str:
    """A figure in a text format: its points, or the table behind it below the drawing."""
    if fmt == "csv":
        return points_csv(figure)
    if fmt == "html":
        drawn = draw(figure, "svg").decode()
        return tables.html(figure.table, drawn[drawn.index("<svg") :])
    made = tables.render(figure.table, fmt)
    if fmt == "md":
        name = f"{figure.table.name}-{file_stem(figure.table.profile)}.svg"
        head, _, rest = made.partition("\n\n")
        return f"{head}\n\n![{figure.title}]({name})\n\n{rest}"
    return made


def write(
    spec: TableSpec,
    store: Store | None,
    profile: str,
    folder: Path | str,
    seeds: int | Sequence[int] | None = None,
    sources: Sources | None = None,
) -> tuple[Table, list[Path]]:
    """Write ``<name>-<profile>.<format>`` in every format, each file at once or not at all; a figure also as drawings.

    Args:
        spec: as for :func:`text`, and so are the others.
        store: the run store.
        profile: whose runs are shown.
        folder: where to; made if it is not there.
        seeds: their seeds.
        sources: configurations, costs and published rows.

    Returns:
        The table (of a figure: the one behind it) and the files.

    Raises:
        StoreError: the folder cannot be written.
        MachineError: a figure, and matplotlib is not installed.
    """
    if spec.figure is None:
        table = build_table(spec, store, profile, seeds, sources)
        return table, tables.write_all(table, folder)
    figure = build_figure(spec, store, profile, seeds, sources)
    stem = Path(folder) / f"{figure.table.name}-{file_stem(figure.table.profile)}"
    contents = {f".{fmt}": draw(figure, fmt) for fmt in DRAWN}
    contents |= {f".{fmt}": _figure_text(figure, fmt).encode() for fmt in tables.FORMATS}
    with storing(stem.parent):
        stem.parent.mkdir(parents=True, exist_ok=True)
    for ending, content in contents.items():
        atomic_write(stem.with_name(stem.name + ending), content)
    return figure.table, [stem.with_name(stem.name + ending) for ending in contents]
