"""Tables and figures in all their formats: what a name stands for decides, callers need not know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fractrain.engine.length import stem as file_stem
from fractrain.report import render as tables
from fractrain.report.build import build_table
from fractrain.report.draw import draw, require_matplotlib
from fractrain.report.points import build_figure, points_csv
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


def text(
    spec: TableSpec,
    store: Store | None,
    profile: str,
    seeds: int | Sequence[int] | None = None,
    fmt: str = "md",
    sources: Sources | None = None,
) -> str:
    """Return a table or figure in one text format.

    Args:
        spec: from :func:`fractrain.report.spec.load_spec`; this and the rest as for
            :func:`fractrain.report.build.build_table`.
        store: the run store.
        profile: whose runs are shown.
        seeds: their seeds.
        fmt: ``md``, ``csv``, ``tex``, ``html``, ``json``; of a figure also ``svg``; its ``csv`` has a line per point.
        sources: configurations, costs and published rows.

    Raises:
        ConfigError: unknown profile or format, or ``svg`` of a plain table.
        MachineError: ``svg`` without matplotlib.
    """
    if fmt == "svg":
        return draw(build_figure(spec, store, profile, seeds, sources), "svg").decode()
    if fmt == "csv" and spec.figure is not None:
        return points_csv(build_figure(spec, store, profile, seeds, sources))
    return tables.render(build_table(spec, store, profile, seeds, sources), fmt)


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
    for fmt in tables.FORMATS:
        made = points_csv(figure) if fmt == "csv" else tables.render(figure.table, fmt)
        contents[f".{fmt}"] = made.encode()
    with storing(stem.parent):
        stem.parent.mkdir(parents=True, exist_ok=True)
    for ending, content in contents.items():
        atomic_write(stem.with_name(stem.name + ending), content)
    return figure.table, [stem.with_name(stem.name + ending) for ending in contents]
