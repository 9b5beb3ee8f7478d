"""CSV that a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Final

_FORMULA: Final = ("=", "+", "-", "@")
_NUMBERS: Final = re.compile(r"[+-]\d[\w., ±~%+-]*")  # no call, no reference to another program


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Return lines of cells as CSV; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([_shown(cell) for cell in line] for line in lines)
    return stream.getvalue()


def _shown(cell: object) -> object:
    """The cell; numbers with a sign stay as they are, with what follows them."""
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _NUMBERS.fullmatch(text) else text
