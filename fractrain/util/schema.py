"""Reading JSON that somebody else may have changed: one call, and one line that says what is wrong and where."""

from __future__ import annotations

import reprlib
from typing import Any, TypeVar

import pydantic
from pydantic_core import from_json

T = TypeVar("T")


class Strict(pydantic.BaseModel):
    """A section of a specification: closed, unchangeable, no types converted."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


def read_json(kind: pydantic.TypeAdapter[T], content: bytes) -> T:
    """Return ``content`` as a value of the schema ``kind``.

    Numbers of any size, brackets nested to any depth and bytes that are no text are told apart from what the schema
    asks for without a traceback.

    Args:
        kind: the schema; its types are not converted into one another (``"8"`` is no number).
        content: UTF-8 text of one JSON value.

    Raises:
        ValueError: not JSON, or not of the schema; one line that names the key.
    """
    try:
        return kind.validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        raise ValueError(first_fault(error)) from error


def parse_json(text: str | bytes) -> Any:
    """Return any JSON value; unlike ``json.loads``, nesting too deep for Python is a ValueError as well.

    Raises:
        ValueError: not JSON; ``NaN`` and ``Infinity`` are not.
    """
    return from_json(text, allow_inf_nan=False)


def first_fault(error: pydantic.ValidationError) -> str:
    """Return the first problem of a validation error in one line: key, reason, the value (shortened)."""
    item = error.errors(include_url=False)[0]
    reason = " ".join(item["msg"].split())
    if item["type"] == "json_invalid":
        return f"not JSON: {reason.removeprefix('Invalid JSON: ')}"
    where = ".".join(str(part) for part in item["loc"])
    got = "" if item["type"] in ("missing", "value_error") else f", got {reprlib.repr(item['input'])}"
    return f"{where}: {reason[:1].lower()}{reason[1:]}{got}" if where else f"{reason}{got}"
