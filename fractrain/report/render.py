"""Write a table as Markdown, CSV, LaTeX, HTML or JSON. All five come from the same cells; nothing is computed here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import jinja2
from tabulate import tabulate

from fractrain.engine.length import length_text, profile_slug
from fractrain.report.csv_cells import csv_text as cells_as_csv
from fractrain.report.latex import latex
from fractrain.report.values import Column, Part, Row, Section, Table
from fractrain.util.errors import ConfigError, did_you_mean
from fractrain.util.files import write_files

PARTS: Final[tuple[tuple[Part, str], ...]] = (
    ("accuracy", "Accuracy"),
    ("cost", "Cost of training, up to the epoch of best test accuracy unless marked @end"),
    ("all", "Accuracy and cost of training; cost is up to the epoch of best test accuracy unless marked @end"),
    ("errors", "Errors of number formats"),
)
_TAG: Final = re.compile(r"<(?=[A-Za-z/!?])")  # of a label's, which Markdown would take for HTML


def markdown(table: Table) -> str:
    """Return the compact layout: two thin tables for each pair, readable in a terminal."""
    lines = [f"# {table.title}", ""]
    if table.watermark:
        lines += [f"> **{table.watermark}**", ""]
    lines += [table.caption, ""]
    for part, heading in PARTS:
        columns = [c for c in table.columns if c.short and part in c.parts]
        if not columns:
            continue
        lines += [f"## {heading}", ""]
        for name, rows in table.groups().items():
            lines += [f"### {name}", "", _github(columns, rows), ""]
    for section in table.sections:
        lines += [f"## {section.title}", "", section.caption, ""]
        for name, rows in section.groups().items():
            lines += [f"### {name}", "", _github([c for c in section.columns if c.short], rows), ""]
    lines += ["## Notes", ""]
    lines += [f"- {text}" for text in (*table.notes, *table.rules, f"Source: {table.source}.")]
    lines.append(
        f"- {table.name} version {table.version}, {length_text(table.profile)}, {_seeds(table)}. "
        "pub. = published, model = modelled. All columns and intervals: the CSV, JSON and HTML forms."
    )
    lines += _runs(table)
    return _TAG.sub("&lt;", "\n".join(lines)) + "\n"


def _runs(table: Table) -> list[str]:
    """Which runs of the store the numbers come from, a line for each pair."""
    lines = []
    for name, rows in table.groups().items():
        made = [f"{row.text('method')}: {row.text('runs')}" for row in rows if row.text("runs") not in ("", "–")]
        lines += [f"- {name}: {'; '.join(made)}."] if made else []
    return ["", "## Runs", "", *lines] if lines else []


def _github(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    body = [[row.text(c.key).replace("|", "\\|") for c in columns] for row in rows]
    align = ["left" if not c.origin else "right" for c in columns]
    return tabulate(body, [c.short for c in columns], tablefmt="github", disable_numparse=True, colalign=align)


def _seeds(table: Table) -> str:
    return ("seed " if len(table.seeds) == 1 else "seeds ") + ", ".join(str(s) for s in table.seeds)


def csv_text(table: Table) -> str:
    """Return all columns with unrounded numbers: for each number its interval or range, n and origin beside it."""
    labels = [c.key for c in table.columns if c.head and not c.origin]
    numbers = [c.key for c in table.columns if c.origin]
    heads = ["table", "version", "profile", "row_kind", *labels]
    for key in numbers:
        heads += [key, f"{key}_low", f"{key}_high", f"{key}_n", f"{key}_origin", f"{key}_source", f"{key}_text"]
    lines: list[list[object]] = [list(heads)]
    for row in table.rows:
        line: list[object] = [table.name, table.version, table.profile, row.kind, *(row.text(k) for k in labels)]
        for key in numbers:
            c = row.cells[key]
            line += ["" if v is None else v for v in (c.value, c.low, c.high, c.n)] + [c.origin, c.source, c.text]
        lines.append(line)
    return cells_as_csv(lines)


def section_csv(table: Table, section: Section) -> str:
    """Return a section's columns, with unrounded number, origin and source beside each text."""
    heads: list[str] = []
    for c in section.columns:
        heads += [c.key, f"{c.key}_value", f"{c.key}_source"] if c.origin else [c.key]
    lines: list[list[object]] = [["table", "version", "profile", "group", *heads]]
    for row in section.rows:
        line: list[object] = [table.name, table.version, table.profile, row.group]
        for column in section.columns:
            cell = row.cells[column.key]
            line += [cell.text, "" if cell.value is None else cell.value, cell.source] if column.origin else [cell.text]
        lines.append(line)
    return cells_as_csv(lines)


def json_text(table: Table) -> str:
    """Return everything the table holds."""
    return json.dumps(table.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def html(table: Table, drawing: str = "") -> str:
    """Return one self-contained page, which begins with a drawing (an SVG element) where there is one."""
    parts = [(heading, [c for c in table.columns if c.head and part in c.parts]) for part, heading in PARTS]
    parts = [(heading, columns) for heading, columns in parts if columns]
    return template("table").render(table=table, parts=parts, seeds=_seeds(table), drawing=drawing)


def template(name: str) -> jinja2.Template:
    """Return one of the HTML templates beside this file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(f"{name}.html.j2")


FORMATS: Final[dict[str, Callable[[Table], str]]] = {
    "md": markdown, "csv": csv_text, "tex": latex, "html": html, "json": json_text,
}  # fmt: skip


def render(table: Table, fmt: str) -> str:
    """Write a table in one format.

    Args:
        fmt: ``md``, ``csv``, ``tex``, ``html`` or ``json``.

    Raises:
        ConfigError: unknown format.
    """
    if fmt not in FORMATS:
        raise ConfigError(f"unknown format {fmt!r}{did_you_mean(fmt, FORMATS)}; known: {', '.join(FORMATS)}")
    return FORMATS[fmt](table)


def write_all(table: Table, folder: Path | str) -> list[Path]:
    """Write ``<table>-<profile>.<format>`` in every format, each file at once or not at all.

    Returns:
        The files, in the order of :data:`FORMATS`; then a CSV file for each section.

    Raises:
        StoreError: the folder cannot be written.
    """
    stem = f"{folder}/{table.name}-{profile_slug(table.profile)}"
    contents = {Path(f"{stem}.{fmt}"): render(table, fmt).encode() for fmt in FORMATS}
    contents |= {Path(f"{stem}-{s.key}.csv"): section_csv(table, s).encode() for s in table.sections}
    return write_files(contents)
