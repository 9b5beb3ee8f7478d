"""``fractrain plan``: what a table still needs to run, and how long that takes on this machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import (
    device_option,
    emit_json,
    json_option,
    options,
    plugin_option,
    profile_option,
    results_option,
    say,
    stdout_to_stderr,
)

if TYPE_CHECKING:
    from fractrain.engine.calibrate import Estimate
    from fractrain.engine.config import RunConfig
    from fractrain.report.grid import PlannedRun
    from fractrain.report.spec import TableSpec

SOURCE_KEYS = ("method", "model", "dataset", "profile", "setting", "seed")

name_argument = click.argument("table")
names_argument = click.argument("tables", nargs=-1, required=True, metavar="TABLE...")
seeds_option = click.option(
    "--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 0 to N-1.  [default: the table's for the profile]"
)


@click.command("plan", short_help="Show what a table still needs to run, and how long that takes.")
@options(
    names_argument,
    profile_option,
    seeds_option,
    click.option("--no-times", is_flag=True, help="Do not try a few steps of each kind of run; list the runs alone."),
    device_option,
    results_option,
    plugin_option,
    json_option,
)
def plan_command(
    tables: tuple[str, ...], profile: str, seeds: int | None, no_times: bool, device: str, results: Path, as_json: bool
) -> None:
    """Show the runs of TABLE (or figure): what is cached already, what would run, how long it takes, how much it keeps.

    Several tables, or "all" of them, are shown as the one job that `fractrain reproduce` makes of them.

    Times come from a few training steps of each kind of run on random data of the right shape, on this machine; no
    data set is needed and nothing is stored.
    """
    runs = merged(plan_tables(tables, profile, seeds, results))
    estimates = {} if no_times else _estimates(runs, device)
    show_plan(runs, as_json, estimates)
    if estimates and not as_json:
        click.echo("\n".join(_totals(runs, estimates, device)))


def plan_runs(table: str, profile: str, seeds: int | None, results: Path) -> tuple[TableSpec, list[PlannedRun]]:
    """Return the table's specification and its runs, with what the store has of them."""
    from fractrain.engine.store import RunStore
    from fractrain.report.grid import plan
    from fractrain.report.spec import load_spec

    with stdout_to_stderr():
        spec = load_spec(table)
        return spec, plan(spec, profile, seeds, RunStore(results))


def plan_tables(
    given: Sequence[str], profile: str, seeds: int | None, results: Path
) -> list[tuple[TableSpec, list[PlannedRun]]]:
    """Plan each table once; "all" stands for all there are."""
    from fractrain.report.spec import table_names

    names = dict.fromkeys(name for one in given for name in (table_names() if one == "all" else [one]))
    return [plan_runs(name, profile, seeds, results) for name in names]


def merged(plans: Sequence[tuple[TableSpec, Sequence[PlannedRun]]]) -> list[PlannedRun]:
    """All runs, what several tables share once; what has no run (left out, incompatible) stays with each table."""
    seen: set[str] = set()
    kept = []
    for run in (run for _, planned in plans for run in planned):
        if run.run_id and run.run_id in seen:
            continue
        seen.add(run.run_id)
        kept.append(run)
    return kept


def counts_text(runs: Sequence[PlannedRun]) -> str:
    """How many runs there are in each state, and how many source runs."""
    from fractrain.report import grid

    return grid.counts_text(runs)


def show_plan(runs: Sequence[PlannedRun], as_json: bool, estimates: dict[str, Estimate | str] | None = None) -> None:
    """Print the plan, for people or as JSON.

    Args:
        runs: the runs.
        as_json: which of the two.
        estimates: by run id, what is left of it will take, or why that cannot be told.
    """
    from fractrain.report.grid import plan_text, source_runs

    if not as_json:
        click.echo(plan_text(runs))
        return
    found = estimates or {}
    sources = source_runs(runs)
    emit_json(
        {
            "counts": dict(Counter(run.state for run in runs)),
            "source_counts": dict(Counter(source.state for source in sources)),
            "sources": [
                {"run_id": source.run_id, "state": source.state, "reason": source.reason}
                | {key: getattr(source.config, key) for key in SOURCE_KEYS}
                | {"source_of": list(source.targets)}
                | _estimate_json(found.get(source.run_id))
                for source in sources
            ],
            "runs": [
                {"run_id": run.run_id or None, "state": run.state, "reason": run.reason, "seed": run.seed}
                | run.request.model_dump(mode="json")
                | _estimate_json(found.get(run.run_id))
                for run in runs
            ],
        }
    )


def _estimate_json(found: Estimate | str | None) -> dict[str, Any]:
    if found is None or isinstance(found, str):
        return {"estimate": None, "estimate_error": found} if found else {}
    from dataclasses import asdict

    return {"estimate": {**asdict(found), "seconds": found.seconds}}


def _waiting(runs: Sequence[PlannedRun]) -> dict[str, RunConfig]:
    """What is still to be done, by run id: source runs, then runs."""
    from fractrain.engine.config import RunConfig
    from fractrain.report.grid import source_runs

    sources = [source.config for source in source_runs(runs) if source.state == "to run"]
    configs = [*sources, *(run.config for run in runs if run.state == "to run")]
    return {config.run_id: config for config in configs if isinstance(config, RunConfig)}


def _estimates(runs: Sequence[PlannedRun], device: str) -> dict[str, Estimate | str]:
    """Try each kind of run that is still to be done once: runs that differ by their seed alone take the same time."""
    from fractrain.engine.calibrate import estimate
    from fractrain.engine.device import resolve_device
    from fractrain.engine.progress import make_progress
    from fractrain.errors import FractrainError

    where = resolve_device(device)
    kinds: dict[str, list[RunConfig]] = {}
    for config in _waiting(runs).values():
        value = {**config.model_dump(mode="json", exclude={"source"}), "seed": 0}
        kinds.setdefault(json.dumps(value, sort_keys=True), []).append(config)
    found: dict[str, Estimate | str] = {}
    progress = make_progress()
    if kinds:
        progress.start("trying a few steps", len(kinds))
    for number, same in enumerate(kinds.values(), start=1):
        config = same[0]
        result: Estimate | str
        try:
            with stdout_to_stderr():
                result = estimate(config, where)
        except FractrainError as error:  # the run itself would stop here too, with the same line
            result = str(error)
            say(f"{config.run_id}: no time can be told: {error}")
        found |= dict.fromkeys((config.run_id for config in same), result)
        progress.update(number)
    progress.close()
    return found


def _totals(runs: Sequence[PlannedRun], estimates: dict[str, Estimate | str], device: str) -> list[str]:
    """Iterations, hours and disk of what is still to be done; one line per model, data set and setting; the sum."""
    from fractrain.engine.calibrate import Estimate
    from fractrain.engine.device import resolve_device
    from fractrain.engine.progress import duration

    kind = "GPU" if resolve_device(device).type == "cuda" else "CPU"
    groups: dict[str, list[Estimate]] = {}
    sources = 0
    for run_id, config in _waiting(runs).items():
        value = estimates.get(run_id)
        if isinstance(value, Estimate):
            part = "" if config.setting == "standard" else f", {config.setting}"
            groups.setdefault(f"{config.model} on {config.dataset}{part}", []).append(value)
            sources += config.setting.endswith("-source")
    if not groups:
        return ["nothing left to run"]
    lines = ["", f"Still to run, on this machine ({kind}), one run at a time:"]
    width = max(32, *map(len, groups))
    for name, group in groups.items():
        scaled = "" if all(e.trial_batch == e.batch for e in group) else (
            f"; tried with {group[0].trial_batch} of {group[0].batch} samples a step and scaled up"
        )  # fmt: skip
        lines.append(
            f"  {name:<{width}} {len(group):>4} runs  {sum(e.iterations for e in group):>12,} iterations  "
            f"{duration(sum(e.seconds for e in group)):>14}  steps of {_span([e.step_s for e in group])}{scaled}"
        )
    every = [e for group in groups.values() for e in group]
    hours = sum(e.seconds for e in every) / 3600
    some = f" ({sources} of them source runs)" if sources else ""
    disk = sum(e.disk_bytes for e in every) / 1e9
    lines.append(
        f"  in all: {len(every)} runs{some}, {sum(e.iterations for e in every):,} iterations, "
        f"{hours:,.1f} {kind}-hours, {disk:.2f} GB of checkpoints kept"
    )
    return lines


def _span(seconds: Sequence[float]) -> str:
    low, high = min(seconds), max(seconds)
    return f"{low:.3g} s" if high < 1.05 * low else f"{low:.3g} to {high:.3g} s"
