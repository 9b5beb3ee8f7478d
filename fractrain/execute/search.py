"""Points of a sweep: a grid, or the ones that a sampler of optuna (extra ``sweep``) proposes.

A search keeps nothing: it is seeded and told the results in order, so the same command proposes the same points again,
whose runs are in the store, and goes on behind them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fractrain.engine.config import parse_set
from fractrain.util.errors import ConfigError, needed
from fractrain.util.schema import parse_json

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Axis:
    """One setting that a sweep varies.

    Attributes:
        key: of the method's settings, or ``recipe.KEY``.
        method: the only method it is for; empty: all.
        values: what it takes; empty for a range.
        low, high: of a range, both included.
        log: proposals are spread evenly over its logarithm.
        whole: proposals are integers.
    """

    key: str
    method: str = ""
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class SweepPoint:
    """A method and what is set for it, as ``KEY=VALUE`` in the order of the axes."""

    method: str
    sets: tuple[tuple[str, Any], ...]


def parse_grid(text: str) -> Axis:
    """Read ``[METHOD:]KEY=VALUE,VALUE,...``; a value may be JSON, so that a list is one value.

    Raises:
        ConfigError: no key, or no value.
    """
    method, key, raw = _split("--grid", text, "KEY=VALUE,VALUE, for example target_cp=2,3")
    try:
        values = parse_json(f"[{raw}]")
    except ValueError:
        values = [parse_set(f"x={part.strip()}")[2] for part in raw.split(",")]
    if not values or len(values) != len({repr(value) for value in values}):
        raise ConfigError(f"--grid {text!r}: give one or more values, each once")
    return Axis(key, method, tuple(values))


def parse_range(text: str) -> Axis:
    """Read ``[METHOD:]KEY=LOW..HIGH[:log]``; two integers make a range of integers.

    Raises:
        ConfigError: not a range, or an empty one.
    """
    expected = "KEY=LOW..HIGH, or KEY=LOW..HIGH:log, for example recipe.lr=0.01..0.3:log"
    method, key, raw = _split("--range", text, expected)
    numbers, _, kind = raw.partition(":")
    low, dots, high = numbers.partition("..")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = 0.0, 0.0
    log = kind == "log"
    if not dots or kind not in ("", "log") or not ends[0] < ends[1] or (log and ends[0] <= 0):
        raise ConfigError(f"--range {text!r}: expected {expected}")
    whole = all(end.strip().lstrip("+-").isdigit() for end in (low, high))
    return Axis(key, method, (), *ends, log=log, whole=whole)


def _split(option: str, text: str, expected: str) -> tuple[str, str, str]:
    name, equals, raw = text.partition("=")
    method, colon, key = name.rpartition(":")
    if not equals or not key.strip() or not raw.strip() or (colon and not method):
        raise ConfigError(f"{option} {text!r}: expected {expected}")
    return method.strip(), key.strip(), raw.strip()


def grid(methods: Sequence[str], axes: Sequence[Axis]) -> list[SweepPoint]:
    """Every combination of the axes' values, method by method.

    Raises:
        ConfigError: an axis for another method, or a range, of which there is no list.
    """
    _check(methods, axes)
    for axis in axes:
        if not axis.values:
            raise ConfigError(
                f"--range {axis.key}: a grid needs values, --grid {axis.key}=A,B; --trials N searches ranges"
            )
    points = []
    for method in methods:
        own = _own(axes, method)
        for values in itertools.product(*(axis.values for axis in own)):
            points.append(SweepPoint(method, tuple((axis.key, value) for axis, value in zip(own, values, strict=True))))
    return points


def search_points(
    methods: Sequence[str], axes: Sequence[Axis],
    evaluate: Callable[[list[SweepPoint]], Iterable[Sequence[float] | None]], directions: Sequence[Direction],
    trials: int, batch: int = 1,
) -> list[SweepPoint]:  # fmt: skip
    """Evaluate ``trials`` proposals of optuna's TPE sampler; return them in order, a proposal made twice too.

    Args:
        evaluate: returns the objectives of each point, None where it has none.
        directions: of each objective.
        trials: number of proposals.
        batch: proposals that are made at once, so that their runs can be executed together; part of what makes two
            searches the same.

    Raises:
        ConfigError: an axis for another method.
        MachineError: optuna is missing.
    """
    _check(methods, axes)
    with needed("--trials needs optuna: pip install 'fractrain[sweep]'"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=list(directions), sampler=optuna.samplers.TPESampler(seed=0))
    points: list[SweepPoint] = []
    while len(points) < trials:
        asked = [study.ask() for _ in range(min(batch, trials - len(points)))]
        new = [_propose(trial, methods, axes) for trial in asked]
        for trial, values in zip(asked, evaluate(new), strict=True):
            failed = optuna.trial.TrialState.FAIL if values is None else None
            study.tell(trial, None if values is None else list(values), state=failed)
        points += new
    return points


def _propose(trial: Any, methods: Sequence[str], axes: Sequence[Axis]) -> SweepPoint:
    method = trial.suggest_categorical("method", list(methods)) if len(methods) > 1 else methods[0]
    return SweepPoint(method, tuple((axis.key, _suggest(trial, axis)) for axis in _own(axes, method)))


def _suggest(trial: Any, axis: Axis) -> Any:
    name = f"{axis.method}:{axis.key}"
    if axis.values:
        return axis.values[trial.suggest_categorical(name, list(range(len(axis.values))))]
    if axis.whole:
        return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
    proposed = float(f"{trial.suggest_float(name, axis.low, axis.high, log=axis.log):.4g}")  # ids that can be typed
    return min(max(proposed, axis.low), axis.high)


def _own(axes: Sequence[Axis], method: str) -> list[Axis]:
    return [axis for axis in axes if axis.method in ("", method)]


def _check(methods: Sequence[str], axes: Sequence[Axis]) -> None:
    for axis in axes:
        if axis.method and axis.method not in methods:
            raise ConfigError(f"{axis.method}:{axis.key}: this sweep has no method {axis.method!r}: add --method")
    for method in methods:
        keys = [axis.key for axis in _own(axes, method)]
        if twice := next((key for key in keys if keys.count(key) > 1), ""):
            raise ConfigError(f"{twice} is varied twice for {method}: give one axis for each setting")
