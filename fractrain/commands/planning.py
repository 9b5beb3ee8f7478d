"""``fractrain plan``: what a table still needs to run, and how long that takes on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import (
    data_option,
    device_option,
    emit_json,
    json_option,
    options,
    plugin_option,
    profile_option,
    results_option,
    stdout_to_stderr,
)
from fractrain.commands.executing import executor_option
from fractrain.engine.length import MAX_SEEDS
from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:
    from fractrain.commands.forecast import Forecast
    from fractrain.plan.calibrate import RunEstimate
    from fractrain.report.campaign import Campaign
    from fractrain.report.grid import PlannedRun
    from fractrain.report.spec import TableSpec

SOURCE_KEYS = ("method", "model", "dataset", "profile", "setting", "seed")

name_argument = click.argument("table")
names_argument = click.argument("tables", nargs=-1, required=True, metavar="TABLE...")


class NumberOfSeeds(click.IntRange):
    """A number of seeds, for which a seed is easily taken."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number if it is one within the bounds."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(
                f"{value} is not a number of seeds from {self.min} to {self.max} (N means the seeds 0 to N-1; one "
                "certain seed: `fractrain run --seed`)", param, ctx,
            )  # fmt: skip


add_option = click.option(
    "--add", "added", multiple=True, metavar="METHOD",
    help="One more row: any method there is, yours by --plugin FILE.py, with settings as METHOD:KEY=VALUE:KEY=VALUE; "
    "may be repeated.",
)  # fmt: skip
against_option = click.option(
    "--against", default="", metavar="ROW", help="Key of the row that added ones are set against, for example sbm."
)
seeds_option = click.option(
    "--seeds", type=NumberOfSeeds(1, MAX_SEEDS), metavar="N",
    help="Number of seeds: 0 to N-1.  [default: the table's for the profile]",
)  # fmt: skip


@click.command("plan", short_help="Show what a table still needs to run, and how long that takes.")
@options(
    names_argument, profile_option("smoke"), seeds_option, add_option,
    click.option("--no-times", is_flag=True, help="Do not try a few steps of each kind of run; list the runs alone."),
    click.option(
        "--gpus", type=click.IntRange(min=1), metavar="N", help="Also simulate all runs on a cluster of N such devices."
    ),
    click.option(
        "--losses", type=click.FloatRange(min=0), default=0.02, show_default=True, metavar="RATE",
        help="Runs that a device of the cluster loses per day (nodes, preemption); they go on from a checkpoint.",
    ),
    click.option(
        "--minutes", type=click.IntRange(min=0), metavar="N",
        help="Time limit of a job there, 0 for none.  [default: that of --executor: Slurm 1440, else none]",
    ),
    executor_option, device_option, data_option, results_option, plugin_option, json_option,
)  # fmt: skip
def plan_command(
    tables: tuple[str, ...], profile: str, seeds: int | None, added: tuple[str, ...], no_times: bool, gpus: int | None,
    losses: float, minutes: int | None, executor: str, device: str, data_dir: Path | None, results: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Show the runs of TABLE (figure, campaign): what is cached already, what would run, how long it takes, its disk.

    Several tables, or "all" of them, are shown as the one job that `fractrain reproduce` makes of them.

    Times come from a few training steps of each kind of run on random data of the right shape, on this machine, and
    from some seconds of reading photos where a data set is read while training. No data set is needed: what there is
    of them is looked for as `fractrain data status` does. Nothing is stored.
    """
    from fractrain.commands.forecast import make_forecast
    from fractrain.engine.length import length_text
    from fractrain.execute.on_slurm import SlurmResources
    from fractrain.plan.cluster import Cluster

    if gpus and no_times:
        raise ConfigError("--gpus simulates the times that --no-times leaves out: give one of them")
    if executor != "local" and not gpus:
        raise ConfigError(f"--executor {executor}: how large is that cluster? give --gpus N")
    limit = (SlurmResources().minutes if executor == "slurm" else 0) if minutes is None else minutes
    cluster = Cluster(gpus, losses, limit_s=60.0 * limit) if gpus else None
    log_line(f"{', '.join(tables)}, {length_text(profile)}: planning ...")
    campaign = plan_campaign_of(tables, profile, seeds, results, added)
    runs = campaign[1] if campaign else merge_plans(plan_tables(tables, profile, seeds, results, added))
    found = None if no_times else make_forecast(runs, device, data_dir, results, cluster)
    show_plan(runs, as_json, found)
    if found and not as_json:
        click.echo("\n".join(found.lines()))


def plan_runs(
    table: str, profile: str, seeds: int | None, results: Path, added: Sequence[str] = (), against: str = ""
) -> tuple[TableSpec, list[PlannedRun]]:
    """Return the table's specification and its runs, with what the store has of them."""
    from fractrain.engine.store import RunStore
    from fractrain.report.added_rows import with_added
    from fractrain.report.grid import plan
    from fractrain.report.spec import load_spec

    with stdout_to_stderr():
        spec = with_added(load_spec(table), added, against)
        return spec, plan(spec, profile, seeds, RunStore(results))


def plan_tables(
    given: Sequence[str], profile: str, seeds: int | None, results: Path, added: Sequence[str] = (), against: str = ""
) -> list[tuple[TableSpec, list[PlannedRun]]]:
    """Plan each table once; "all" stands for all there are."""
    from fractrain.report.spec import table_names

    names = dict.fromkeys(name for one in given for name in (table_names() if one == "all" else [one]))
    return [plan_runs(name, profile, seeds, results, added, against) for name in names]


def plan_campaign_of(
    given: Sequence[str], profile: str, seeds: int | None, results: Path, added: Sequence[str] = ()
) -> tuple[Campaign, list[PlannedRun]] | None:
    """The campaign that is named and its runs in order; None where tables are named.

    Raises:
        ConfigError: a campaign beside something else, or with a profile or seeds, which it has itself.
    """
    from fractrain.report.campaign import campaign_names, load_campaign, plan_campaign

    found = [name for name in given if name in campaign_names()]
    if not found:
        return None
    if len(given) > 1:
        raise ConfigError(f"{found[0]} is a campaign, a list of runs in its own order: name it alone")
    if added:
        raise ConfigError(f"{found[0]} is a campaign, a list of runs: --add goes with tables")
    if profile != "smoke" or seeds is not None:
        raise ConfigError(f"{found[0]} is a campaign, its lengths and seeds are in its file: leave yours out")
    from fractrain.engine.store import RunStore

    with stdout_to_stderr():
        campaign = load_campaign(found[0])
        return campaign, plan_campaign(campaign, RunStore(results))


def merge_plans(plans: Sequence[tuple[TableSpec, Sequence[PlannedRun]]]) -> list[PlannedRun]:
    """All runs, what several tables share once; what has no run (left out, incompatible) stays with each table."""
    seen: set[str] = set()
    kept = []
    for run in (run for _, planned in plans for run in planned):
        if run.run_id and run.run_id in seen:
            continue
        seen.add(run.run_id)
        kept.append(run)
    return kept


def show_plan(runs: Sequence[PlannedRun], as_json: bool, forecast: Forecast | None = None) -> None:
    """Print the plan, for people or as JSON.

    Args:
        forecast: what is left of them takes; None: that was not asked for.
    """
    from fractrain.report.grid import plan_text, source_runs

    if not as_json:
        click.echo(plan_text(runs))
        return
    found = forecast.estimates if forecast else {}
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
            **(forecast.as_dict() if forecast else {}),
        }
    )


def _estimate_json(found: RunEstimate | str | None) -> dict[str, Any]:
    if found is None or isinstance(found, str):
        return {"estimate": None, "estimate_error": found} if found else {}
    from dataclasses import asdict

    return {"estimate": {**asdict(found), "seconds": found.seconds, "bound": found.bound}}
