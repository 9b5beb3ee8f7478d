"""The last words after a table of smoke runs: what was shown, what was not, and what to run next, with its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fractrain.report.grid import PlannedRun, plan
from fractrain.report.sources import Sources
from fractrain.report.spec import TableSpec
from fractrain.report.values import Table
from fractrain.util.progress import duration

NEXT: Final = "1/64"  # of the paper's length: the shortest that the project's campaign runs


def closing(
    spec: TableSpec, table: Table, runs: Sequence[PlannedRun], jobs: int, sources: Sources | None = None
) -> tuple[str, ...]:
    """Three sentences; none for a table whose runs have no real data behind them.

    Args:
        table: of the profile ``smoke``.
        jobs: runs at the same time, now and next.
    """
    if not spec.rows:
        return ()
    rows = [row for row in table.rows if row.kind == "method" and row.text("verdict") in ("yes", "NO")]
    learned = sum(row.text("verdict") == "yes" for row in rows)
    used = sorted({r.request.dataset for r in runs if r.state == "cached"})
    done = sum(r.state == "cached" for r in runs)
    real = " and ".join(dict.fromkeys(pair.dataset_label for pair in spec.pairs))
    command = f"fractrain reproduce {spec.name} --length {NEXT} --seeds 1 --data-dir DIR"
    seconds = next_seconds(spec, runs, sources)
    here, there = _steps(runs), _steps(plan(spec, "paper", 1, None, sources))
    time = f"about {duration(seconds / jobs)} here at the speed of these runs" if seconds else "time: fractrain plan"
    return (
        f"Shown: {done} of {len(runs)} runs went to their end, and {learned} of {len(rows)} rows are better than a "
        f"predictor without learning on {', '.join(used) or 'no data'}.",
        f"Not shown: anything about the paper, whose numbers are of {real} and of runs of {there} steps; these had "
        f"{here}.",
        f"Next: {command} ({real}, the paper's protocol at {NEXT} of its length; {time}).",
    )


def _steps(runs: Sequence[PlannedRun]) -> str:
    """Lengths of runs: ``64,000`` or ``120 to 224``."""
    configs: list[Any] = [run.config for run in runs if run.config is not None]
    lengths = sorted({config.recipe.iterations for config in configs})
    return " to ".join(f"{n:,}" for n in dict.fromkeys(lengths[:1] + lengths[-1:])) or "no"


def next_seconds(spec: TableSpec, runs: Sequence[PlannedRun], sources: Sources | None = None) -> float | None:
    """Seconds that the table at length ``NEXT`` and one seed takes one run at a time, from the speed of finished runs.

    A row's seconds for a multiply-accumulate and sample, here, times those of its runs there; an evaluation counts a
    third of training on as many images. None where a row has no finished run, or a data set no size.
    """
    rates: dict[str, list[float]] = {}
    for run in runs:
        record: Any = run.record if run.state == "cached" else None
        macs = record.ledger().meta.get("forward_macs") if record else None
        step = record.summary.get("step_seconds_median") if record else None
        if macs and step:
            rates.setdefault(run.row.key, []).append(step / (macs * record.config.recipe.batch_size))
    total = 0.0
    for run in plan(spec, NEXT, 1, None, sources):
        if run.config is None:
            continue
        samples = _samples(run.config)
        if run.row.key not in rates or samples is None:
            return None
        total += samples * sum(rates[run.row.key]) / len(rates[run.row.key])
    return total


def _samples(config: Any) -> float | None:
    """Images times forward MACs that a run trains on; evaluations count a third. None where they are not known."""
    from fractrain.data import registry as datasets
    from fractrain.engine.schedule import Clock
    from fractrain.models import registry as models

    info, macs = datasets.info(config.dataset), models.info(config.model).forward_macs.get(config.dataset)
    if not macs or not info.train_size or not info.test_size:
        return None
    recipe = config.recipe
    periods = Clock.from_recipe(recipe, -(-info.train_size // recipe.batch_size)).periods
    images: float = recipe.iterations * recipe.batch_size + periods * info.test_size / 3
    return macs * images
