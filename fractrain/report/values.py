"""What a table is made of: plain values that every output format is written from.

A cell holds the text that is shown and the numbers behind it, and says where they came from (idea 5 of the design:
published, measured, derived or not run). Formats only differ in layout; none computes or rounds anything again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Origin = Literal["", "published", "measured", "derived", "not run"]
RowKind = Literal["method", "improvement printed", "improvement recomputed", "section"]
Part = Literal["accuracy", "cost", "all", "errors"]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is shown, the same in every format.
        origin: where the numbers came from; empty for labels.
        value, low, high: unrounded number and its 95 % interval or range, in the unit of the column (of the row, for
            improvement rows); None where there is none.
        n: number of seeds behind a measured value.
        source: citation and confidence of a published value, or how a derived one was derived.
    """

    text: str = ""
    origin: Origin = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: name in CSV and JSON.
        head: full heading with unit and the direction that is better; empty: only in the compact layout.
        short: heading of the compact layout (terminal, LaTeX); empty: left out there.
        parts: which of the two tables show it, where the layout has two; ``all`` where it has one.
        origin: origin of the numbers in it; empty for a column of labels.
    """

    key: str
    head: str
    short: str = ""
    parts: tuple[Part, ...] = ()
    origin: Origin = ""


@dataclass(frozen=True)
class Row:
    """One row: its kind, the heading of the group it belongs to, and its cells by column key."""

    kind: RowKind
    group: str
    cells: Mapping[str, Cell]

    def text(self, key: str) -> str:
        """Text of one cell; empty where the row has none."""
        cell = self.cells.get(key)
        return cell.text if cell else ""


@dataclass(frozen=True)
class Section:
    """A smaller table below a table: other rows of the same runs.

    Attributes:
        key: name in JSON and in the name of its CSV file.
        title, caption: heading, and what it says.
        columns, rows: as of a table; every row has a cell for every column.
    """

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def groups(self) -> dict[str, list[Row]]:
        """Rows by group heading, in order."""
        return _grouped(self.rows)


@dataclass(frozen=True)
class Table:
    """A finished table, independent of any format.

    Attributes:
        name, version: which table specification this is.
        title: with the profile in it, so that no reduced run can pass for a reproduction.
        watermark: one sentence for reduced profiles; empty for the profile ``paper``.
        profile, seeds: what the measured columns were made with.
        notes: remarks on single rows and on the published numbers.
        rules: how columns, intervals and verdicts are defined; printed under the table.
        sections: smaller tables below it.
    """

    name: str
    version: int
    title: str
    caption: str
    source: str
    profile: str
    seeds: tuple[int, ...]
    watermark: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()

    def groups(self) -> dict[str, list[Row]]:
        """Rows by group heading, in order."""
        return _grouped(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON-able values."""
        sections = [{**asdict(s), "rows": _plain(s.rows)} for s in self.sections]
        return {**asdict(self), "rows": _plain(self.rows), "sections": sections}


def _grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return found


def _plain(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [{"kind": r.kind, "group": r.group, "cells": _cells(r)} for r in rows]


def _cells(row: Row) -> dict[str, Any]:
    return {key: {k: v for k, v in asdict(c).items() if v not in (None, "")} for key, c in row.cells.items()}


@dataclass(frozen=True)
class RunValues:
    """What one finished run contributes to a table.

    Attributes:
        values: its numbers by key of the quantity (:mod:`fractrain.report.quantities`); any may be absent.
        caveat: why energy and latency are an extrapolation; empty if they are not.
        not_priced: why the hardware model gives none; empty if it does.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    caveat: str = ""
    not_priced: str = ""


def macs_text(value: float) -> str:
    """Three significant digits, for example ``4.96e13``."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def fixed_text(value: float) -> str:
    """Two decimals, as the paper prints accuracy, energy and latency."""
    return f"{value:.2f}"


def fitted_text(value: float) -> str:
    """Four significant digits; small values keep theirs (a smoke run costs a thousandth of a paper run)."""
    return f"{value:.2f}" if abs(value) >= 100 else f"{value:#.4g}"


def whole_text(value: float) -> str:
    """A count, with commas."""
    return f"{value:,.0f}"
