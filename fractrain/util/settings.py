"""Settings that came after runs had been recorded: at their default, those runs keep their ids.

A setting that a method, a plugin or a recipe gains is marked where it is defined::

    class Settings(MethodSettings):
        bits: int = 8
        rounding: Literal["nearest", "stochastic"] = Field("nearest", json_schema_extra=ADDED)

A run with ``rounding="nearest"`` then has the id that it had before there was the setting. The default must be what
runs did before; whoever changes it later raises the method's ``version``, as for every change of results.
"""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

import pydantic

from fractrain.util.errors import ConfigError, did_you_mean

S = TypeVar("S", bound=pydantic.BaseModel)

LARGEST: Final = 2**31 - 1  # what a number of steps, layers, elements or bits has sense up to
ADDED: Final[dict[str, Any]] = {"added": True}


def configured(kind: type[S], given: Mapping[str, Any], owner: str, removed: Collection[str] = ()) -> S:
    """Return settings by name.

    Args:
        given: what is not to be as by default.
        owner: whose they are, for messages: ``method 'dfq'``.
        removed: names that were settings once; the class says what became of them.

    Raises:
        ConfigError: an unknown setting, or a value of the wrong type or out of range; one line.
    """
    known = list(kind.model_fields)
    if unknown := next((key for key in given if key not in known and key not in removed), None):
        near = did_you_mean(unknown, known)
        raise ConfigError(f"{owner} has no setting {unknown!r}{near}; it has: {', '.join(known) or 'none'}")
    try:
        return kind(**given)
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        detail = f"setting {where} = {first['input']!r}: " if where else ""
        raise ConfigError(f"{owner}: {detail}{first['msg'].removeprefix('Value error, ')}") from problem


def check_sizes(settings: pydantic.BaseModel) -> None:
    """Refuse whole numbers beyond any sense, which libraries would answer with an overflow.

    Raises:
        ValueError: there is one.
    """
    for name, value in settings:
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int) and abs(number) > LARGEST:
                raise ValueError(f"{name} goes up to {LARGEST:,}, got {name}={reprlib.repr(number)}")


def instead_of(name: str, value: Any) -> dict[str, Any]:
    """Mark a setting that took the place of another one: at its default, ids hold ``name`` with ``value`` as before."""
    return {**ADDED, "replaces": [name, value]}


def replaced_at_default(kind: type[pydantic.BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of earlier releases that fields of ``kind`` at their defaults replace, by name."""
    found = {}
    for name in added_at_default(kind, values):
        extra = kind.model_fields[name].json_schema_extra
        if isinstance(extra, dict) and isinstance(pair := extra.get("replaces"), list):
            found[str(pair[0])] = pair[1]
    return found


def added_at_default(kind: type[pydantic.BaseModel], values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the marked fields of ``kind`` that have their defaults in ``values``, sorted.

    Args:
        values: its values, as ``model_dump(mode="json")`` gives them.
    """
    return tuple(name for name, default in _added(kind).items() if name in values and values[name] == default)


@functools.cache
def _added(kind: type[pydantic.BaseModel]) -> Mapping[str, Any]:
    """Marked fields and their defaults as JSON has them, by name; kept, for a table asks thousands of times."""
    found = {}
    for name, field in sorted(kind.model_fields.items()):
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("added"):
            default = field.get_default(call_default_factory=True)
            found[name] = pydantic.TypeAdapter(Any).dump_python(default, mode="json")
    return found
