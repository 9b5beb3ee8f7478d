"""Trials of many runs, each kind once: what cannot make a difference to the time of a step is not tried twice.

Runs are *alike* when method, network, input and batch are the same, however they are set: their steps do the same
products, at other bit-widths. Of more than two settings of such a family the two extremes are tried, those with the
smallest and the largest numbers in them; if their steps take the same time within ``AGREE``, the settings between them
get the mean of both, otherwise each is tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fractrain.engine.config import RunConfig
from fractrain.engine.registries import Registries
from fractrain.plan.calibrate import RunEstimate, Trial, forecast, parameters
from fractrain.util.errors import FractrainError

AGREE: Final = 1.25
# What of a recipe a step's time depends on; lengths, rates and milestones it does not.
_RECIPE: Final = {"batch_size", "optimizer", "clip_norm", "augment", "deterministic", "sync_ranges", "sync_batch_norm"}

Attempt = Callable[[RunConfig], Trial]


@dataclass(frozen=True)
class Trials:
    """What was found.

    Attributes:
        estimates: by run id, what the run will take, or why that cannot be told.
        tried: how many runs were tried.
        kinds: how many there are, runs that differ by their seed alone counted as one.
    """

    estimates: dict[str, RunEstimate | str]
    tried: int
    kinds: int


def try_all(
    configs: Sequence[RunConfig], attempt: Attempt, rates: Mapping[str, float], done: Callable[[int, int], None],
    complain: Callable[[str], None],
) -> Trials:  # fmt: skip
    """Try each kind of run once.

    Args:
        attempt: measures a few steps of one.
        rates: by data set, images per second that are read while training.
        done: told how many settings of families are finished, and how many there are.
        complain: told, in a line, of a run of which no time can be told.
    """
    families: dict[str, dict[str, list[RunConfig]]] = {}
    for config in configs:
        families.setdefault(_family(config), {}).setdefault(_key(settings=config.settings), []).append(config)
    total, behind = sum(map(len, families.values())), 0
    done(behind, total)
    estimates: dict[str, RunEstimate | str] = {}
    count, tried = _Parameters(), 0
    # Large networks first: the time left is then told too long in the beginning, not too short.
    for family in sorted(families.values(), key=lambda family: -count.of(next(iter(family.values()))[0])):
        measured: dict[int, Trial | str] = {}
        members = sorted(family.values(), key=lambda same: _size(same[0].settings))
        last = len(members) - 1
        for number in (*dict.fromkeys((0, last)), *range(1, last)):
            if 0 < number < last and _agree(measured[0], measured[last]):
                break
            config = members[number][0]
            try:
                measured[number] = attempt(config)
            except FractrainError as error:  # the run itself would stop here too, with the same line
                measured[number] = str(error)
                complain(f"{config.run_id}: no time can be told: {error}")
            done(behind + len(measured), total)
        tried, behind = tried + len(measured), behind + len(members)
        done(behind, total)
        estimates |= _assign_trials(members, measured, rates, count)
    return Trials(estimates, tried, len({_kind(config) for config in configs}))


def _assign_trials(
    members: Sequence[Sequence[RunConfig]],
    measured: Mapping[int, Trial | str],
    rates: Mapping[str, float],
    count: _Parameters,
) -> dict[str, RunEstimate | str]:
    """Give each run of a family the trial of its settings, or the mean of first and last."""
    found: dict[str, RunEstimate | str] = {}
    for number, same in enumerate(members):
        own = [number] if number in measured else [0, len(members) - 1]
        tried = tuple(members[one][0].run_id for one in own)
        trial = _mean([measured[one] for one in own])
        by_kind: dict[str, RunEstimate | str] = {}
        for config in same:
            kind = _kind(config)
            if isinstance(trial, str):
                by_kind[kind] = trial
            elif kind not in by_kind:
                estimate = forecast(config, trial, count.of(config), rates.get(config.dataset))
                by_kind[kind] = replace(estimate, tried=tried)
            found[config.run_id] = by_kind[kind]
    return found


class _Parameters:
    """Sizes of plain models, each counted once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], int] = {}

    def of(self, config: RunConfig) -> int:
        """Return the number of parameters of a run's plain model."""
        key = (config.model, config.dataset, config.setting)
        if key not in self._known:
            self._known[key] = parameters(config)
        return self._known[key]


def _mean(found: Sequence[Trial | str]) -> Trial | str:
    """The mean of trials; of one alone that may have failed, its error."""
    trials = [trial for trial in found if isinstance(trial, Trial)]
    if not trials:
        return str(found[0])
    return replace(
        trials[0],
        step_s=sum(trial.step_s for trial in trials) / len(trials),
        evaluation_s=sum(trial.evaluation_s for trial in trials) / len(trials),
        disk_bytes=max(trial.disk_bytes for trial in trials),
    )


def _agree(first: Trial | str, last: Trial | str) -> bool:
    if isinstance(first, str) or isinstance(last, str):
        return False
    return max(first.step_s, last.step_s) <= AGREE * min(first.step_s, last.step_s)


def _family(config: RunConfig) -> str:
    info: Any = Registries().for_setting(config.setting, config.seed).dataset_info(config.dataset)
    text = getattr(info, "kind", "image") == "text"
    return _key(
        method=config.method, version=config.method_version, model=config.model, shape=info.shape,
        words=info.classes if text else 0,  # of an image's classes only the last, small layer knows
        recipe=config.recipe.model_dump(mode="json", include=_RECIPE),
        augment=getattr(info, "augment", False),
    )  # fmt: skip


def _size(value: Any) -> float:
    """Sum of the numbers in settings: a measure of width by which extremes are told."""
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return float(value) if isinstance(value, int | float) else 0.0


def _kind(config: RunConfig) -> str:
    """Equal for runs that differ by their seed alone."""
    return _key(**{**config.model_dump(mode="json", exclude={"source"}), "seed": 0})


def _key(**values: Any) -> str:
    return json.dumps(values, sort_keys=True)
