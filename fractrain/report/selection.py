"""A part of a table: some of its columns and rows, for a paper's column or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fractrain.report.values import Column, Row, Table
from fractrain.util.errors import ConfigError, did_you_mean

LABEL = "label"


def selected(table: Table, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> Table:
    """Return a table with some columns and rows; smaller tables below it are left out as soon as any are chosen.

    Args:
        table: from :func:`fractrain.report.build.build_table`.
        columns: keys, in the order in which they shall stand; the label of the row stands before them. Empty: all.
        rows: words, one of which must be in the row's group (model and data) or label, whatever the case. Empty: all.

    Raises:
        ConfigError: no such column, or no row has any of the words.
    """
    if not columns and not rows:
        return table
    kept = tuple(row for row in table.rows if not rows or any(_has(row, word) for word in rows))
    if not kept:
        labels = dict.fromkeys(row.text(LABEL) for row in table.rows)
        raise ConfigError(f"{table.name}: no row has {' or '.join(map(repr, rows))}; rows: {', '.join(labels)}")
    return replace(table, columns=_columns(table, columns) if columns else table.columns, rows=kept, sections=())


def _has(row: Row, word: str) -> bool:
    return word.lower() in f"{row.group} {row.text(LABEL)}".lower()


def _columns(table: Table, keys: Sequence[str]) -> tuple[Column, ...]:
    there = {column.key: column for column in table.columns}
    for key in keys:
        if key not in there:
            raise ConfigError(
                f"{table.name} has no column {key!r}{did_you_mean(key, there)}; columns: {', '.join(there)}"
            )
    wanted = [LABEL, *keys] if LABEL in there and LABEL not in keys else list(keys)
    return tuple(replace(there[key], short=there[key].short or there[key].head) for key in wanted)
