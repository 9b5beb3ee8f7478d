"""Checks of settings: wrong ones are refused in one clear line, right ones change something."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import annotated_types
import pydantic

from fractrain.methods.base import Method, Variation
from fractrain.testing.report import ContractViolation, NotApplicable
from fractrain.testing.subject import Subject, effect
from fractrain.util.errors import ConfigError

WIDTH = re.compile(r"(^|_)(bits?|widths?)($|_)")
UNKNOWN = "no_such_setting"


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


def settings_validated(subject: Subject) -> str:
    """An unknown setting, a wrong type and a value out of range are each refused with one line."""
    subject.config(subject.settings)  # the settings it is tested with are fine
    tried = 0
    for name, value in _invalid_values(subject):
        tried += 1
        _refused(subject, name, value)
    return f"{tried} wrong values refused"


def _invalid_values(subject: Subject) -> Iterator[tuple[str, Any]]:
    """Pairs (setting, value that must be refused)."""
    yield UNKNOWN, 1
    kind = subject.kind
    widths = width_settings(kind, subject.settings)
    for name, field in kind.Settings.model_fields.items():
        value = current(kind, subject.settings, name)
        yield name, {"not": ["a", "value"]}
        if literal_choices(field.annotation):
            yield name, "no-such-choice"
        elif isinstance(value, bool | int | float | tuple | list):
            yield name, "not-a-value"
        if isinstance(value, float):
            yield name, float("nan")
        for bound in field.metadata:
            yield from ((name, v) for v in _out_of_bounds(bound, value))
        if name in widths:
            for width in (-1, 1000):
                yield name, type(value)([width] * len(value)) if isinstance(value, tuple | list) else width


def _out_of_bounds(bound: Any, value: Any) -> Iterator[Any]:
    """Values on the wrong side of a declared bound, for a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(bound, annotated_types.Ge) and isinstance(bound.ge, int | float):
        yield bound.ge - 1
    elif isinstance(bound, annotated_types.Gt):
        yield bound.gt
    elif isinstance(bound, annotated_types.Le) and isinstance(bound.le, int | float):
        yield bound.le + 1
    elif isinstance(bound, annotated_types.Lt):
        yield bound.lt


def _refused(subject: Subject, name: str, value: Any) -> None:
    """Both ways to a method, a run's config and the registry, refuse the setting."""
    settings = {**subject.settings, name: value}
    shown = f"{name}={value!r}"
    try:
        subject.config(settings)
        subject.prepared(settings)
    except ConfigError as error:
        if "\n" in str(error) or name not in str(error):
            raise ContractViolation(f"{shown} is refused, but not in one line that names it: {str(error)!r}") from error
    except Exception as error:
        raise ContractViolation(
            f"{shown} raises {type(error).__name__} instead of ConfigError: validate it in Settings"
        ) from error
    else:
        raise ContractViolation(f"{shown} is accepted: give the setting a type and bounds, Field(ge=..., le=...)")


def settings_act(subject: Subject) -> str:
    """Every declared setting changes weights, metrics or ledger, or the author says why it cannot so soon."""
    kind = subject.kind
    fields = list(kind.Settings.model_fields)
    if not fields:
        raise NotApplicable("it has no settings")
    excused = [*kind.contract_inert.items(), *kind.contract_costless.items()]
    for name in (*dict(excused), *kind.contract_variations, *kind.contract_settings):
        if name not in fields:
            raise ContractViolation(f"a contract_... attribute names {name!r}, which is no setting")
    bare = [name for name, reason in excused if not str(reason).strip()]
    if bare:
        raise ContractViolation(f"contract_inert or contract_costless gives no reason for {', '.join(bare)}")
    known: dict[str, dict[str, str]] = {}
    dead = [name for name in fields if name not in kind.contract_inert and not _acts(subject, name, known)]
    if dead:
        raise ContractViolation(
            f"nothing changes with {', '.join(dead)}: use the setting, drop it, or declare it (contract_variations, or "
            "contract_inert with a reason)"
        )
    inert = f", {len(kind.contract_inert)} declared inert" if kind.contract_inert else ""
    return f"{len(fields) - len(kind.contract_inert)} settings act{inert}"


def _acts(subject: Subject, name: str, known: dict[str, dict[str, str]]) -> bool:
    given = variation(subject.kind, name)
    base = {**subject.eager_settings, **(given.given if given else {})}
    base.pop(name, None)
    if name in subject.settings:  # the caller's choice is what is varied
        base[name] = subject.settings[name]
    values = [given.value] if given else list(other_values(subject.kind, base, name))[:3]
    if not values:
        raise ContractViolation(
            f"no other valid value for {name} = {current(subject.kind, base, name)!r} was found: "
            "give one in contract_variations"
        )
    plain = _effect(subject, base, known)
    return any(_effect(subject, {**base, name: value}, known) != plain for value in values)


def _effect(subject: Subject, settings: Mapping[str, Any], known: dict[str, dict[str, str]]) -> dict[str, str]:
    key = repr(sorted(settings.items()))
    if key not in known:
        known[key] = effect(subject.trained(subject.config(settings, steps=6, period=1)))
    return known[key]
