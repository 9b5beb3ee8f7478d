"""The runs of a table, enumerated up front: what is planned, printed by a dry run and executed is one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal, NamedTuple

from fractrain.engine.config import RunConfig
from fractrain.engine.length import check_profile
from fractrain.engine.record import RunRecord
from fractrain.report.sources import NotInRelease, Sources, Store, default_sources
from fractrain.report.spec import Pair, RowSpec, RunRequest, TableSpec
from fractrain.util.errors import ConfigError, FractrainError, PluginError

State = Literal["cached", "to run", "no plugin", "no model", "no data", "incompatible", "left out"]
SourceState = Literal["cached", "to run", "not needed"]
_MOST: Final = 24  # characters of a setting's value


@dataclass(frozen=True)
class PlannedRun:
    """One run of a table.

    Attributes:
        config: the run's configuration; None where none can be made.
        state: ``cached`` (finished before), ``to run``, or why it cannot run: ``no plugin``; ``no model`` or
            ``no data`` (not in this release); ``incompatible``; ``left out`` of this profile.
        reason: why it cannot run, or how an earlier attempt ended.
        record: what the store has of it, in whatever status.
        source: the configuration of the run it starts from; None: it starts from scratch.
        source_record: what the store has of that run.
    """

    pair: Pair
    row: RowSpec
    seed: int
    request: RunRequest
    config: RunConfig | None
    state: State
    reason: str = ""
    record: RunRecord | None = None
    source: RunConfig | None = None
    source_record: RunRecord | None = None

    @property
    def run_id(self) -> str:
        """Id of the run; empty where no configuration can be made."""
        return self.config.run_id if self.config else ""


@dataclass(frozen=True)
class SourceRun:
    """A run that runs of the table start from: it is trained before them, and in no row of its own.

    Attributes:
        state: ``cached``; ``to run``; ``not needed``: not there, but all runs that start from it are finished.
        reason: how an earlier attempt ended.
        targets: ids of the runs that start from it, each once.
    """

    config: RunConfig
    state: SourceState
    reason: str
    targets: tuple[str, ...]

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self.config.run_id


def plan(
    spec: TableSpec, profile: str, seeds: int | Sequence[int] | None = None, store: Store | None = None,
    sources: Sources | None = None,
) -> list[PlannedRun]:  # fmt: skip
    """List every run of a table, pair by pair, row by row, seed by seed.

    Args:
        seeds: a number (then 0, 1, ...) or a list; default: the table's number for this profile.
        store: where finished runs are looked up; None: nothing is cached.

    Raises:
        ConfigError: unknown profile, no seed, or one twice.
    """
    known = check_profile(profile)
    sources = sources or default_sources()
    numbers = spec.seeds(known, seeds) if seeds is None or isinstance(seeds, int) else tuple(seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ConfigError(f"seeds must be one or more different numbers, got {list(numbers)}")
    runs: list[PlannedRun] = []
    for pair in spec.pairs:
        out = spec.left_out(pair, known)
        for row in spec.rows_of(pair):
            request = spec.request(pair, row, known)
            if out:
                why = f"the profile {known} of this table leaves this pair out"
                runs += [PlannedRun(pair, row, seed, request, None, "left out", why) for seed in numbers]
            else:
                runs += [planned_run(pair, row, seed, request, store, sources) for seed in numbers]
    return runs


def planned_run(
    pair: Pair, row: RowSpec, seed: int, request: RunRequest, store: Store | None, sources: Sources
) -> PlannedRun:
    """One run: its configuration, or why there is none, and what the store has of it."""
    try:
        config = sources.make_config(request, seed)
    except PluginError as error:
        return PlannedRun(pair, row, seed, request, None, "no plugin", str(error))
    except NotInRelease as error:
        return PlannedRun(pair, row, seed, request, None, error.state, str(error))
    except FractrainError as error:
        return PlannedRun(pair, row, seed, request, None, "incompatible", str(error))
    record = _record(store, config)
    state: State = "cached" if _is_done(record) else "to run"
    beside = _record(store, config.source)
    return PlannedRun(pair, row, seed, request, config, state, _ending(record), record, config.source, beside)


def _record(store: Store | None, config: RunConfig | None) -> RunRecord | None:
    return None if store is None or config is None else store.get(config.run_id)


def _is_done(record: RunRecord | None) -> bool:
    return record is not None and record.status == "done"


def _ending(record: RunRecord | None) -> str:
    """How an earlier attempt ended; empty where there was none, or the run is finished."""
    if record is None or record.status == "done":
        return ""
    return record.message if record.status == "damaged" else f"{record.status} before"


def source_runs(runs: Iterable[PlannedRun]) -> list[SourceRun]:
    """List the runs that others start from, each once, in the order they are first needed."""
    found: dict[str, list[PlannedRun]] = {}
    for run in runs:
        if run.source is not None:
            found.setdefault(run.source.run_id, []).append(run)
    return [_source_run(targets) for targets in found.values()]


def _source_run(targets: Sequence[PlannedRun]) -> SourceRun:
    """The source run that all of these start from."""
    config, record = targets[0].source, targets[0].source_record
    assert config is not None
    waiting = any(target.state == "to run" for target in targets)
    state: SourceState = "cached" if _is_done(record) else "to run" if waiting else "not needed"
    return SourceRun(config, state, _ending(record), tuple(dict.fromkeys(target.run_id for target in targets)))


def plan_text(runs: Sequence[PlannedRun]) -> str:
    """The plan for people: one line for the seeds of a row, those that others start from first, then the counts."""
    entries: list[tuple[_Entry, int, str]] = []
    for source in source_runs(runs):
        of = f"source of {len(source.targets)} run{'s' if len(source.targets) > 1 else ''}"
        c = source.config
        remark = ", ".join(filter(None, (of, source.reason)))
        entries.append(
            (_Entry(source.state, c.method, c.model, c.dataset, c.profile, c.setting, remark), c.seed, source.run_id)
        )
    for run in runs:
        r = run.request
        settings = tuple(f"{key}={_brief(value)}" for key, value in r.settings.items())
        entry = _Entry(run.state, r.method, r.model, r.dataset, r.profile, r.setting, run.reason, settings, run.row.key)
        entries.append((entry, run.seed, run.run_id))
    groups = [(entry, [(seed, run_id) for _, seed, run_id in same]) for entry, same in groupby(entries, lambda e: e[0])]
    columns = [(e.state, e.method, e.model, e.dataset, e.profile, _seeds([seed for seed, _ in s])) for e, s in groups]
    widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
    lines = []
    for (entry, same), column in zip(groups, columns, strict=True):
        aligned = " ".join(f"{text:<{width}}" for text, width in zip(column, widths, strict=True))
        setting = "" if entry.setting == "standard" else entry.setting
        ids = same[0][1] if len(same) == 1 else f"{len(same)} runs"
        remark = f"({entry.remark})" if entry.remark else ""
        lines.append("  ".join(filter(None, (aligned, setting, ids or "-", " ".join(entry.settings), remark))))
    return "\n".join([*lines, counts_text(runs)])


class _Entry(NamedTuple):
    """What the runs of one line have in common."""

    state: str
    method: str
    model: str
    dataset: str
    profile: str
    setting: str
    remark: str
    settings: tuple[str, ...] = ()
    row: str = ""


def _seeds(seeds: Sequence[int]) -> str:
    """``seed 0``, ``seeds 0-2`` or ``seeds 3, 7``."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"


def _brief(value: object) -> str:
    """A setting's value; of a long one the beginning."""
    text = str(value)
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."


def counts_text(runs: Sequence[PlannedRun]) -> str:
    """How many runs there are in each state; those that they start from are counted apart."""
    text = f"{len(runs)} runs: {_counts(run.state for run in runs)}"
    sources = source_runs(runs)
    return f"{text}; and {len(sources)} source runs: {_counts(s.state for s in sources)}" if sources else text


def _counts(states: Iterable[str]) -> str:
    return ", ".join(f"{number} {state}" for state, number in Counter(states).items())


def pending_runs(runs: Sequence[PlannedRun]) -> dict[str, RunConfig]:
    """Return what is still to be done, by run id: source runs, then runs."""
    sources = [source.config for source in source_runs(runs) if source.state == "to run"]
    configs = [*sources, *(run.config for run in runs if run.state == "to run")]
    return {config.run_id: config for config in configs if config is not None}
