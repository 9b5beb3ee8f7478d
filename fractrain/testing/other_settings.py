"""Settings as data: other values for a setting, and which settings are widths."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from fractrain.methods.base import Method, Variation

WIDTH = re.compile(r"(^|_)(bits?|widths?)($|_)")


def current(kind: type[Method], settings: Mapping[str, Any], name: str) -> Any:
    """Value of a setting once defaults are filled in."""
    return getattr(kind.Settings(**settings), name)


def accepted(kind: type[Method], settings: Mapping[str, Any]) -> bool:
    """Whether the method takes these settings."""
    try:
        kind.Settings(**settings)
    except pydantic.ValidationError:
        return False
    return True


def variation(kind: type[Method], name: str) -> Variation | None:
    """The variation that the method's author gave for a setting, or None."""
    given = kind.contract_variations.get(name)
    return given if given is None or isinstance(given, Variation) else Variation(given)


def other_values(kind: type[Method], settings: Mapping[str, Any], name: str) -> Iterator[Any]:
    """Yield values different from the present one that the method accepts, likeliest to act first."""
    value = current(kind, settings, name)
    for candidate in _candidates(value, kind.Settings.model_fields[name].annotation):
        if candidate != value and accepted(kind, {**settings, name: candidate}):
            yield candidate


def _candidates(value: Any, annotation: Any) -> Iterator[Any]:
    choices = literal_choices(annotation)
    if choices:
        yield from choices
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value // 2, value + 1, value - 1, value * 4, value + 8)
    elif isinstance(value, float):
        yield from (value / 2, value * 2, value * 100, value / 100) if value else (1.0, 0.5, 100.0)
    elif isinstance(value, tuple | list) and value and all(isinstance(v, int | float) for v in value):
        for shift in (1, -1, 2, -2):
            yield type(value)(v + shift for v in value)
        for factor in (2, 4, 0.5):
            yield type(value)(type(v)(v * factor) for v in value)


def literal_choices(annotation: Any) -> tuple[Any, ...]:
    """Values of a ``Literal`` type, also inside a union; empty for other types."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return tuple(c for part in typing.get_args(annotation) for c in literal_choices(part))


def width_settings(kind: type[Method], settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings that hold bit-widths: called ``bits``, ``..._bits``, ``widths``, with integer values."""
    names = []
    for name in kind.Settings.model_fields:
        value = current(kind, settings, name)
        items = value if isinstance(value, tuple | list) else (value,)
        whole = bool(items) and all(isinstance(v, int) and not isinstance(v, bool) for v in items)
        if WIDTH.search(name) and whole:
            names.append(name)
    return names


def shifted(value: Any, by: int) -> Any:
    """A width, or every width of a sequence, moved by some bits."""
    return type(value)(v + by for v in value) if isinstance(value, tuple | list) else value + by
