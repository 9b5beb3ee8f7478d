"""``fractrain run``: one training run, from a name and a few options to a summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fractrain.commands.common import (
    PROFILES,
    NearestChoice,
    data_option,
    device_option,
    download_option,
    emit_json,
    json_option,
    options,
    plugin_option,
    results_option,
    say,
    stdout_to_stderr,
)

SHOWN = (
    ("last test accuracy", "test_accuracy_last", "{:.2f} %"),
    ("best test accuracy (paper protocol)", "test_accuracy_best", "{:.2f} %"),
    ("test accuracy at best validation", "test_accuracy_at_best_val", "{:.2f} %"),
    ("iterations", "iterations", "{:,}"),
    ("seconds", "seconds", "{:.1f}"),
)


@click.command("run", short_help="Train one model with one method.")
@options(
    click.option("--method", required=True, metavar="NAME", help="See `fractrain list methods`."),
    click.option("--model", required=True, metavar="NAME", help="See `fractrain list models`."),
    click.option("--dataset", required=True, metavar="NAME", help="See `fractrain list datasets`."),
    click.option(
        "--profile",
        type=NearestChoice(PROFILES),
        help="Length of training.  [default: smoke for an embedded data set, else paper]",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting of the method, or recipe.KEY=VALUE; may be repeated.",
    ),
    device_option,
    data_option,
    download_option,
    results_option,
    plugin_option,
    json_option,
)
def run_command(
    method: str,
    model: str,
    dataset: str,
    profile: str | None,
    seed: int,
    sets: tuple[str, ...],
    device: str,
    data_dir: Path | None,
    download: bool,
    results: Path,
    as_json: bool,
) -> None:
    """Train one model with one method; a finished run is shown at once, an interrupted one goes on."""
    from fractrain.engine.config import RunConfig, collect_sets
    from fractrain.engine.device import resolve_device
    from fractrain.engine.progress import make_progress
    from fractrain.engine.store import RunStore
    from fractrain.engine.trainer import Trainer

    settings, recipe = collect_sets(sets)
    config = RunConfig.create(
        method=method, model=model, dataset=dataset, profile=profile, seed=seed, settings=settings, recipe=recipe,
        origin="--set",
    )  # fmt: skip
    say(f"run {config.run_id}")
    with stdout_to_stderr():
        where = resolve_device(device)
        record = Trainer(config, RunStore(results), where, data_dir, make_progress(), download=download).run()
    _show(record, as_json)


def _show(record: Any, as_json: bool) -> None:
    summary = {"run_id": record.run_id, "status": record.status, **(record.summary or {})}
    if as_json:
        emit_json(summary)
        return
    click.echo(f"{record.run_id}: {record.status}")
    for title, key, form in SHOWN:
        if summary.get(key) is not None:
            click.echo(f"  {title}: {form.format(summary[key])}")
    click.echo(f"  folder: {record.path}")
