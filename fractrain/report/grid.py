"""The runs of a table, enumerated up front: what is planned, printed by a dry run and executed is one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fractrain.errors import ConfigError, FractrainError, PluginError
from fractrain.report.sources import Config, NotInRelease, Record, Sources, Store, default_sources
from fractrain.report.spec import Pair, RowSpec, RunRequest, TableSpec, check_profile

State = Literal["cached", "to run", "no plugin", "no model", "no data", "incompatible", "left out"]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a table.

    Attributes:
        pair, row: where it belongs in the table.
        seed: its seed.
        request: what is run.
        config: the run's configuration; None where none can be made.
        state: ``cached`` (finished before), ``to run``, or why it cannot run: ``no plugin``; ``no model`` or
            ``no data`` (not in this release); ``incompatible``; ``left out`` of this profile.
        reason: why it cannot run, or how an earlier attempt ended.
        record: what the store has of it, in whatever status.
    """

    pair: Pair
    row: RowSpec
    seed: int
    request: RunRequest
    config: Config | None
    state: State
    reason: str = ""
    record: Record | None = None

    @property
    def run_id(self) -> str:
        """Id of the run; empty where no configuration can be made."""
        return self.config.run_id if self.config else ""


def plan(
    spec: TableSpec,
    profile: str,
    seeds: int | Sequence[int] | None = None,
    store: Store | None = None,
    sources: Sources | None = None,
) -> list[PlannedRun]:
    """List every run of a table, pair by pair, row by row, seed by seed.

    Args:
        spec: the table.
        profile: ``smoke``, ``short`` or ``paper``.
        seeds: a number (then 0, 1, ...) or a list; default: the table's number for this profile.
        store: where finished runs are looked up; None: nothing is cached.
        sources: makes configurations; default: the engine's.

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
                runs += [_planned(pair, row, seed, request, store, sources) for seed in numbers]
    return runs


def _planned(
    pair: Pair, row: RowSpec, seed: int, request: RunRequest, store: Store | None, sources: Sources
) -> PlannedRun:
    try:
        config = sources.make_config(request, seed)
    except PluginError as error:
        return PlannedRun(pair, row, seed, request, None, "no plugin", str(error))
    except NotInRelease as error:
        return PlannedRun(pair, row, seed, request, None, error.state, str(error))
    except FractrainError as error:
        return PlannedRun(pair, row, seed, request, None, "incompatible", str(error))
    record = store.get(config.run_id) if store is not None else None
    if record is not None and record.status == "done":
        return PlannedRun(pair, row, seed, request, config, "cached", "", record)
    reason = "" if record is None else f"{record.status} before"
    return PlannedRun(pair, row, seed, request, config, "to run", reason, record)


def plan_text(runs: Sequence[PlannedRun]) -> str:
    """The plan for people: one line per run, then the counts."""
    lines = []
    for run in runs:
        r = run.request
        what = f"{r.method:<10} {r.model:<10} {r.dataset:<10} {r.profile:<6} seed {run.seed}"
        what += "" if r.setting == "standard" else f" {r.setting}"
        tail = f"  ({run.reason})" if run.reason else ""
        lines.append(f"{run.state:<12} {what}  {run.run_id or '-'}{tail}")
    counts = Counter(run.state for run in runs)
    lines.append(f"{len(runs)} runs: " + ", ".join(f"{n} {state}" for state, n in counts.items()))
    return "\n".join(lines)
