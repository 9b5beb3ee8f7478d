"""``fractrain run``: one training run, from a name and a few options to a summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fractrain.commands.common import (
    NearestChoice,
    data_option,
    device_option,
    download_option,
    emit_json,
    graphs_option,
    json_option,
    kernels_option,
    options,
    plugin_option,
    profile_option,
    results_option,
    say,
    stdout_to_stderr,
)
from fractrain.commands.tables import check_site

SETTINGS = ("standard", "adaptation", "fine-tuning")
SOURCE_KEYS = "source."
SHOWN = (
    ("last test accuracy", "test_accuracy_last", "{:.2f} %"),
    ("best test accuracy (paper protocol)", "test_accuracy_best", "{:.2f} %"),
    ("test accuracy at best validation", "test_accuracy_at_best_val", "{:.2f} %"),
    ("last test perplexity per word", "test_perplexity_last", "{:.2f}"),
    ("best test perplexity (paper protocol)", "test_perplexity_best", "{:.2f}"),
    ("test perplexity at best validation", "test_perplexity_at_best_val", "{:.2f}"),
    ("iterations", "iterations", "{:,}"),
    ("seconds", "seconds", "{:.1f}"),
)


@click.command("run", short_help="Train one model with one method.")
@options(
    click.option("--method", required=True, metavar="NAME", help="See `fractrain list methods`."),
    click.option("--model", required=True, metavar="NAME", help="See `fractrain list models`."),
    click.option("--dataset", required=True, metavar="NAME", help="See `fractrain list datasets`."),
    profile_option(None),
    click.option(
        "--setting",
        type=NearestChoice(SETTINGS),
        default="standard",
        show_default=True,
        help="adaptation, fine-tuning: go on from a run on the other half of classes or images (made if missing).",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting of the method, or recipe.KEY=VALUE (source.KEY=VALUE: of the source run); may be repeated.",
    ),
    click.option(
        "--preset",
        type=NearestChoice(("none", "paper")),
        default="none",
        show_default=True,
        help="paper: the settings the papers give for this model and data set, where they differ from the method's "
        "defaults (which are those for CIFAR's ResNets); --set goes before.",
    ),
    click.option(
        "--force",
        is_flag=True,
        help="Start from the beginning: what the store has of this run, its result too, is deleted; no other run is.",
    ),
    kernels_option,
    graphs_option,
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
    setting: str,
    seed: int,
    sets: tuple[str, ...],
    preset: str,
    force: bool,
    kernels: Any,
    graphs: Any,
    device: str,
    data_dir: Path | None,
    download: bool,
    results: Path,
    as_json: bool,
) -> None:
    """Train one model with one method; a finished run is shown at once, an interrupted one goes on."""
    from fractrain.distributed.ranks import connect
    from fractrain.engine.config import RunConfig, collect_sets
    from fractrain.engine.site import Site
    from fractrain.engine.store import RunStore
    from fractrain.engine.trainer import Trainer
    from fractrain.methods.presets import paper_settings
    from fractrain.util.progress import make_progress

    settings, recipe = collect_sets(text for text in sets if not text.startswith(SOURCE_KEYS))
    _, source = collect_sets(
        "recipe." + text.removeprefix(SOURCE_KEYS) for text in sets if text.startswith(SOURCE_KEYS)
    )
    if preset == "paper":
        settings = {**paper_settings(method, model, dataset), **settings}
    config = RunConfig.create(
        method=method, model=model, dataset=dataset, profile=profile, seed=seed, settings=settings, recipe=recipe,
        setting=setting, source_recipe=source, origin="--set",
    )  # fmt: skip
    with stdout_to_stderr(), connect(device) as ranks:
        if ranks.first:
            say(f"run {config.run_id}" + (f" on {ranks.world} processes" if ranks.several else ""))
        site = Site(results, device, data_dir, download, kernels=kernels, graphs=graphs)
        if not ranks.several:  # before anything is written; several processes find out together
            found = RunStore(results).get(config.run_id)
            if found is None or found.status != "done":
                check_site([config], site)
        record = Trainer(config, site, make_progress(), ranks=ranks, fresh=force).run()
    if ranks.first:
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
