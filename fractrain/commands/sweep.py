"""``fractrain sweep``: the runs of a grid or a search over methods and settings, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.choose import SETTINGS, chosen_config
from fractrain.commands.common import (
    choice_option,
    emit_json,
    json_option,
    options,
    plugin_option,
    profile_option,
    site_options,
    stdout_to_stderr,
)  # fmt: skip
from fractrain.commands.executing import (
    Execution,
    chosen_execution,
    execute,
    executor_option,
    jobs_option,
    resources_option,
)  # fmt: skip
from fractrain.commands.planning import NumberOfSeeds
from fractrain.engine.length import MAX_SEEDS
from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from fractrain.engine.config import RunConfig
    from fractrain.engine.index import RunEntry
    from fractrain.engine.site import Site
    from fractrain.execute.jobs import Outcome
    from fractrain.execute.search import Axis, SweepPoint
    from fractrain.report.quantities import Quantity
    from fractrain.report.stats import Estimate

SHOWN = ("accuracy_last", "accuracy_best_val", "perplexity_last", "perplexity_best_val", "cost_end", "cp_end")


@dataclass
class Sweep:
    """What is run of each point, and where.

    Attributes:
        fixed: ``--set`` of every run.
        chosen: model, data set and what else :func:`fractrain.commands.choose.chosen_config` takes.
        seeds: of each point.
        objectives: what decides which point is best.
        outcomes: how the runs ended that were not done before.
    """

    fixed: Sequence[str]
    chosen: Mapping[str, Any]
    seeds: int
    site: Site
    how: Execution
    objectives: Sequence[Quantity]
    outcomes: list[Outcome] = field(default_factory=list)

    def configs(self, point: SweepPoint) -> list[RunConfig]:
        """The runs of a point, the same ones as those of ``fractrain run --set``."""
        sets = [*self.fixed, *(f"{key}={json.dumps(value)}" for key, value in point.sets)]
        return [chosen_config(method=point.method, sets=sets, seed=seed, **self.chosen) for seed in range(self.seeds)]

    def run(self, points: Sequence[SweepPoint]) -> list[Sequence[float] | None]:
        """Execute what is missing; return each point's objectives, means over the seeds."""
        from fractrain.engine.store import RunStore

        store, todo = RunStore(self.site.store), {}
        with stdout_to_stderr():
            for config in (config for point in points for config in self.configs(point)):
                record = store.get(config.run_id)
                if record is None or record.status != "done":
                    todo[config.run_id] = config
        self.outcomes += execute(list(todo.values()), self.site, self.how)
        found = self.entries()
        values = [[self.value(point, quantity, found) for quantity in self.objectives] for point in points]
        return [None if any(v is None for v in row) else [v.mean for v in row if v] for row in values]

    def entries(self) -> dict[str, RunEntry]:
        """What the store has, by run id."""
        from fractrain.engine.index import read_index
        from fractrain.engine.store import RunStore

        with stdout_to_stderr():
            return {entry.run_id: entry for entry in read_index(RunStore(self.site.store))}

    def value(self, point: SweepPoint, quantity: Quantity, found: Mapping[str, RunEntry]) -> Estimate | None:
        """Mean and interval of a quantity over the seeds; None while one is missing."""
        from fractrain.report.stats import estimate

        entries = [found.get(config.run_id) for config in self.configs(point)]
        values = [quantity.read(e.summary or {}) for e in entries if e is not None]
        numbers = [value for value in values if value is not None]
        return estimate(numbers) if len(numbers) == self.seeds else None


@click.command("sweep", short_help="Run a grid or a search over methods and settings.")
@options(
    click.option("--method", "methods", multiple=True, required=True, metavar="NAME", help="May be repeated."),
    click.option("--model", required=True, metavar="NAME", help="See `fractrain list models`."),
    click.option("--dataset", required=True, metavar="NAME", help="See `fractrain list datasets`."),
    profile_option(None),
    choice_option("--setting", of=SETTINGS, default="standard"),
    click.option(
        "--seeds", type=NumberOfSeeds(1, MAX_SEEDS), default=1, show_default=True, metavar="N", help="Of each point."
    ),
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="The same in every run, as for `run`."),
    choice_option("--preset", of=("none", "paper"), default="none", help="As for `run`."),
    click.option(
        "--grid", "grids", multiple=True, metavar="[METHOD:]KEY=A,B,...",
        help="Values of a setting or of recipe.KEY; for one method alone with its name before. May be repeated: every "
        "combination is run.",
    ),
    click.option(
        "--range", "ranges", multiple=True, metavar="[METHOD:]KEY=LOW..HIGH[:log]",
        help="What a search (--trials) chooses a number from.",
    ),
    click.option(
        "--trials", type=click.IntRange(1, 100_000), metavar="N",
        help="Search: so many proposals of optuna's TPE sampler instead of the whole grid.",
    ),
    click.option(
        "--batch", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
        help="Search: proposals made at once, whose runs are executed together.",
    ),
    click.option(
        "--optimize", "wanted", multiple=True, metavar="QUANTITY",
        help="What decides: a quantity of `fractrain.results()`; two or more: all points that no other beats. "
        "[default: accuracy_val, of a language model perplexity_val: the test set must not choose]",
    ),
    click.option("--dry-run", is_flag=True, help="Show the points of a grid and stop."),
    jobs_option, executor_option, resources_option, site_options, plugin_option, json_option,
)  # fmt: skip
def sweep_command(
    methods: tuple[str, ...], sets: tuple[str, ...], grids: tuple[str, ...], ranges: tuple[str, ...], seeds: int,
    trials: int | None, batch: int, wanted: tuple[str, ...], dry_run: bool, jobs: int | None, executor: str,
    resources: tuple[str, ...], site: Site, as_json: bool, **chosen: Any,
) -> int:  # fmt: skip
    """Run methods with varied settings; runs are those of `fractrain run`, so none is made twice.

    A sweep that was interrupted goes on with the same command; with more values, seeds or trials it is extended. A run
    that fails ends alone; exit code 1 at the end.
    """
    from fractrain.execute.search import grid, parse_grid, parse_range, search_points

    axes = [*map(parse_grid, grids), *map(parse_range, ranges)]
    methods = tuple(dict.fromkeys(methods))
    how = chosen_execution(executor, resources, jobs)
    objectives = _objectives(wanted, chosen["dataset"])
    sweep = Sweep(sets, chosen, seeds, site, how, objectives)
    if trials is None:
        points = grid(methods, axes)
        with stdout_to_stderr():  # every wrong key or value before the first run
            runs = sum(len(sweep.configs(point)) for point in points)
        log_line(f"{len(points)} points, {runs} runs")
        if not dry_run:
            sweep.run(points)
    else:
        if dry_run:
            raise ConfigError("--dry-run shows a grid: which points a search proposes depends on its results")
        directions = ["maximize" if quantity.better == "more" else "minimize" for quantity in objectives]
        points = search_points(methods, axes, sweep.run, directions, trials, batch)  # type: ignore[arg-type]
    _show(sweep, list(dict.fromkeys(points)), axes, as_json)
    return 1 if any(outcome.status != "done" for outcome in sweep.outcomes) else 0


def _objectives(wanted: Sequence[str], dataset: str) -> list[Quantity]:
    from fractrain.data import registry
    from fractrain.report.quantities import BY_KEY

    known = [key for key, quantity in BY_KEY.items() if quantity.better and not quantity.modelled]
    for key in wanted:
        if key not in known:
            raise ConfigError(f"--optimize {key}{did_you_mean(key, known)}: choose from {', '.join(known)}")
    if wanted:
        return [BY_KEY[key] for key in dict.fromkeys(wanted)]
    text = registry.info(dataset).kind == "text"
    return [BY_KEY["perplexity_val" if text else "accuracy_val"]]


def best_points(values: Sequence[Sequence[float] | None], signs: Sequence[int]) -> list[int]:
    """Places of the points that no other one beats: as good in every objective, better in one.

    Args:
        values: objectives of each point, None where there are none.
        signs: 1 where more is better, -1 where less is.
    """
    scores = {i: [s * v for s, v in zip(signs, row, strict=True)] for i, row in enumerate(values) if row is not None}
    return [i for i, own in scores.items()
            if not any(all(o >= m for o, m in zip(other, own, strict=True)) and other != own
                       for other in scores.values())]  # fmt: skip


def _show(sweep: Sweep, points: Sequence[SweepPoint], axes: Sequence[Axis], as_json: bool) -> None:
    """Print a line or a JSON entry for each point, the best ones marked."""
    from fractrain.report.quantities import BY_KEY

    found = sweep.entries()
    keys = list(dict.fromkeys([*(quantity.key for quantity in sweep.objectives), *SHOWN]))
    numbers = [{key: sweep.value(point, BY_KEY[key], found) for key in keys} for point in points]
    targets = [[row[quantity.key] for quantity in sweep.objectives] for row in numbers]
    values = [None if None in row else [value.mean for value in row if value] for row in targets]
    best = best_points(values, [1 if quantity.better == "more" else -1 for quantity in sweep.objectives])
    if as_json:
        emit_json({
            "points": [
                {"method": point.method, "set": dict(point.sets), "best": place in best,
                 "run_ids": [config.run_id for config in sweep.configs(point)],
                 "quantities": {key: value for key, value in row.items() if value is not None}}
                for place, (point, row) in enumerate(zip(points, numbers, strict=True))
            ],
            "objectives": [quantity.key for quantity in sweep.objectives], "outcomes": sweep.outcomes,
        })  # fmt: skip
        return
    click.echo(_text(sweep, points, numbers, best, axes))


def _text(
    sweep: Sweep, points: Sequence[SweepPoint], numbers: Sequence[Mapping[str, Estimate | None]], best: Sequence[int],
    axes: Sequence[Axis],
) -> str:  # fmt: skip
    from tabulate import tabulate

    from fractrain.report.quantities import BY_KEY

    varied = list(dict.fromkeys(axis.key for axis in axes))
    there = [key for key in numbers[0] if any(row[key] for row in numbers)] if numbers else []
    lines = []
    for place, (point, row) in enumerate(zip(points, numbers, strict=True)):
        cells = [_number(BY_KEY[key], row[key]) for key in there]
        ids = [config.run_id for config in sweep.configs(point)]
        sets = dict(point.sets)
        lines.append(["*" if place in best else "", point.method, *(_plain(sets.get(key, "")) for key in varied),
                      *cells, ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"])  # fmt: skip
    heads = ["", "method", *varied, *(f"{key} [{BY_KEY[key].unit}]" for key in there), "run"]
    goal = " and ".join(f"{quantity.key}{' (most)' if quantity.better == 'more' else ' (least)'}"
                        for quantity in sweep.objectives)  # fmt: skip
    table = tabulate(lines, heads, tablefmt="simple", disable_numparse=True)
    return f"{table}\n* best by {goal}; means over {sweep.seeds} seed{'s' * (sweep.seeds > 1)}"


def _number(quantity: Quantity, value: Estimate | None) -> str:
    if value is None:
        return "-"
    return quantity.text(value.mean) + ("" if value.half_width is None else f" ± {value.half_width:.2g}")


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
