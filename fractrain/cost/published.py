"""The papers' own numbers, each with its source and the confidence with which it was read.

The rows live in ``results/published/published_rows.json`` of a source tree; a wheel ships that folder as
``fractrain/published/``. Their columns are explained in the README next to the file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fractrain.util.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    import pydantic

FILE_NAME = "published_rows.json"
FILTERS = ("paper", "table", "model", "dataset", "method", "precision", "metric")


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
def load(path: Path) -> tuple[PublishedRow, ...]:
    """Read all rows of the file at ``path`` (once per path and process).

    Raises:
        DataError: the file cannot be read, is not a JSON list of rows, or a row has wrong columns.
    """
    try:
        from fractrain.util.schema import read_json  # loads pydantic

        found: list[PublishedRow] = read_json(_rows_schema(), path.read_bytes())
        return tuple(found)
    except (OSError, ValueError) as error:
        raise DataError(f"published numbers at {path} cannot be read ({error}): restore the file") from error


@functools.cache
def _rows_schema() -> pydantic.TypeAdapter[list[PublishedRow]]:
    import pydantic

    return pydantic.TypeAdapter(list[PublishedRow])


def rows(
    *,
    paper: str | None = None,
    table: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    method: str | None = None,
    precision: str | None = None,
    metric: str | None = None,
    path: Path | None = None,
) -> tuple[PublishedRow, ...]:
    """Return the rows that match every given filter, in file order.

    Names are compared by their letters and digits only, without regard to case, so that registry names work:
    ``resnet38`` finds ``ResNet-38``. A paper or table is also found without what it has in parentheses: ``table2``.
    Precisions are compared without regard to spaces and case. A model, data set, method or precision that occurs
    nowhere gives an empty result, because users bring their own.

    Args:
        paper: short title, with or without venue; ``None`` matches everything, here and below.
        table: name of a table or figure, with or without what is in parentheses.
        model: model.
        dataset: data set.
        method: method as printed.
        precision: precision as printed.
        metric: column, for example ``acc_top1_%``, ``effective_MACs``, ``energy_kJ``, ``latency_min``.
        path: another file of rows.

    Raises:
        ConfigError: no paper, table or metric of that name exists in the data.
        DataError: the data cannot be read.
    """
    found: Sequence[PublishedRow] = load(path or data_path())
    wanted = (paper, table, model, dataset, method, precision, metric)
    everything = found
    for column, text in zip(FILTERS, wanted, strict=True):
        if text is None:
            continue
        matches = _matcher(column, text)
        if column in ("paper", "table", "metric") and not any(matches(getattr(r, column)) for r in everything):
            known = sorted({getattr(r, column) for r in everything})
            raise ConfigError(f"no published {column} {text!r}{did_you_mean(text, known)}; known: {'; '.join(known)}")
        found = [row for row in found if matches(getattr(row, column))]
    return tuple(found)


def _normal(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def _matcher(column: str, text: str) -> Callable[[str], bool]:
    """Return the comparison with ``text`` that suits a column."""
    if column == "precision":
        squeezed = "".join(text.casefold().split())
        return lambda value: "".join(value.casefold().split()) == squeezed
    wanted = _normal(text)
    if column in ("paper", "table"):
        return lambda value: wanted in (_normal(value), _normal(value.split("(")[0]))
    return lambda value: _normal(value) == wanted
