"""The papers' own numbers, each with its source and the confidence with which it was read.

The rows live in ``results/published/published_rows.json`` of a source tree; a wheel ships that folder as
``fractrain/published/``. Their columns are explained in the README next to the file.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fractrain.util.errors import DataError

FILE_NAME = "published_rows.json"


@dataclass(frozen=True)
class PublishedRow:
    """One published number and where it belongs.

    Attributes:
        paper: short title with venue and identifier.
        table: table or figure it stands in.
        model, dataset, setting, method, precision: coordinates of the cell, as the paper writes them.
        metric: name of the column, with its unit.
        value: the number, or the text when the paper prints a range or a phrase. Unit: see the metric.
        source: document (and figure or script) it was taken from.
        confidence: how it was read, for example ``transcribed``; the README of the data lists all values.
        note: a known problem with the number (misprint, doubtful reading); empty if none is known.
    """

    paper: str
    table: str
    model: str
    dataset: str
    setting: str
    method: str
    precision: str
    metric: str
    value: int | float | str
    source: str
    confidence: str
    note: str = ""
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


def data_path(package: Path | None = None) -> Path:
    """Return where the rows are: inside the installed package, else in the source tree around it.

    Args:
        package: folder of the ``fractrain`` package; ``None`` means the one this module was imported from.

    Raises:
        DataError: the file is in neither place.
    """
    package = package or Path(__file__).resolve().parents[1]
    candidates = (package / "published" / FILE_NAME, package.parent / "results" / "published" / FILE_NAME)
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(
        f"published numbers not found at {candidates[0]} or {candidates[1]}: reinstall fractrain or restore the file"
    )


@functools.cache
def load_rows(path: Path) -> tuple[PublishedRow, ...]:
    """Read all rows of the file at ``path`` (once per path and process).

    Raises:
        DataError: the file cannot be read, is not a JSON list of rows, or a row has wrong columns.
    """
    try:
        import pydantic  # takes its time, and most commands read no rows

        from fractrain.util.schema import read_json

        return tuple(read_json(pydantic.TypeAdapter(list[PublishedRow]), path.read_bytes()))
    except (OSError, ValueError) as error:
        raise DataError(f"published numbers at {path} cannot be read ({error}): restore the file") from error


def rows() -> tuple[PublishedRow, ...]:
    """Return all rows, in file order.

    Raises:
        DataError: the data cannot be read.
    """
    return load_rows(data_path())
