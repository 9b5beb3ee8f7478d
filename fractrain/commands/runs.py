"""``fractrain run``: one training run, from a few options to a summary; ``config show``: what it would be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fractrain.commands.choose import chosen_config, config_lines, run_options
from fractrain.commands.common import (
    NearestChoice,
    emit_json,
    folder_option,
    json_option,
    options,
    plugin_option,
    results_option,
    site_options,
    stdout_to_stderr,
)
from fractrain.commands.executing import check_site
from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError, FractrainError

if TYPE_CHECKING:
    from fractrain.engine.config import RunConfig
    from fractrain.engine.site import Site
    from fractrain.engine.store import RunRecord, RunStore
    from fractrain.engine.trainer import RunListener

SWEEP: Final = "WANDB_SWEEP_ID"  # set by wandb's agent


@click.command("run", short_help="Train one model with one method.")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@run_options()
@options(
    click.option(
        "--force", is_flag=True,
        help="Start from the beginning: what the store has of this run, its result too, is deleted; no other run is.",
    ),
    click.option("--dry-run", is_flag=True, help="Show the resolved configuration and what there is of the run; stop."),
    click.option(
        "--track", "trackers", multiple=True, type=NearestChoice(("wandb", "tensorboard")),
        help="Follow the run live there, under --track-dir; WANDB_MODE=offline needs no account; may be repeated.",
    ),
    click.option("--wandb", is_flag=True, help="Short for --track wandb."),
    folder_option(
        "--track-dir", default="results", help="Where trackers keep their files: DIR/wandb, DIR/tensorboard."
    ),
    click.option("--project", default="fractrain", show_default=True, metavar="NAME", help="wandb's project."),
    site_options, plugin_option, json_option,
)  # fmt: skip
def run_command(
    assignments: tuple[str, ...], force: bool, dry_run: bool, trackers: tuple[str, ...], wandb: bool, track_dir: Path,
    project: str, site: Site, as_json: bool, **chosen: Any,
) -> None:  # fmt: skip
    """Train one model with one method; a finished run is shown at once, an interrupted one goes on.

    KEY=VALUE is the same as --set KEY=VALUE; it is what a wandb sweep writes (docs/tracking.md).
    """
    from fractrain.distributed.ranks import connect
    from fractrain.engine.store import RunStore
    from fractrain.engine.trainer import Trainer
    from fractrain.util.progress import make_progress

    chosen["sets"] = (*chosen["sets"], *assignments)
    with stdout_to_stderr():
        config, store = chosen_config(**chosen), RunStore(site.store)
    if dry_run:
        _show_config(config, chosen, store, as_json)
        return
    with stdout_to_stderr(), connect(site.device) as ranks:
        if ranks.is_main:
            log_line(f"run {config.run_id}" + (f" on {ranks.world} processes" if ranks.is_distributed else ""))
        if not ranks.is_distributed:  # before anything is written; several processes find out together
            found = store.get(config.run_id)
            if found is None or found.status not in ("done", "damaged"):
                check_site([config], site)
        wanted = dict.fromkeys((*trackers, "wandb") if wandb else trackers)
        listeners: list[RunListener] = []
        if wanted and ranks.is_main:  # a missing library ends the command before anything is trained
            from fractrain.publish.live import make_listener

            listeners = [make_listener(kind, track_dir, project) for kind in wanted]
        if listeners and not force and SWEEP in os.environ and (done := store.get(config.run_id)) is not None:
            _tell_result(listeners, done)
        record = Trainer(config, site, make_progress(), ranks=ranks, fresh=force, listeners=listeners).run()
    if ranks.is_main:
        _show(record, as_json)


def _tell_result(listeners: Sequence[RunListener], record: RunRecord) -> None:
    """Send a finished run, which is not trained again: a sweep waits for the result of each point it proposed."""
    if record.status == "done":
        for listener in listeners:
            listener.begun(record.config, record.environment, record.metrics())
            listener.ended(record)


def _show(record: RunRecord, as_json: bool) -> None:
    from fractrain.report.run_text import result_lines

    if as_json:
        emit_json({"run_id": record.run_id, "status": record.status, **(record.summary or {})})
        return
    click.echo("\n".join([f"{record.run_id}: {record.status}", *result_lines(record), f"  folder: {record.path}"]))


@click.group("config", short_help="Show the configuration of a run.")
def config_group() -> None:
    """Configurations of runs."""


@config_group.command("show", short_help="Show every setting of a run, made or not.")
@click.argument("run_id", required=False)
@run_options(required=False)
@options(results_option, plugin_option, json_option)
def config_show_command(run_id: str | None, results: Path, as_json: bool, **chosen: Any) -> None:
    """Show every setting and recipe key of RUN_ID, or of the run that the options describe, and which are defaults.

    A RUN_ID may be the beginning of one. What is shown can be given to `fractrain run --set`.
    """
    from fractrain.engine.store import RunStore

    store = RunStore(results)
    given = [name for name in ("method", "model", "dataset") if chosen[name]]
    if run_id and given:
        raise ConfigError(f"give either a run id or --{given[0]}, not both")
    if not run_id and len(given) < 3:
        raise ConfigError("give the id of a run, or --method, --model and --dataset")
    with stdout_to_stderr():
        config = store.find(run_id).config if run_id else chosen_config(**chosen)
    if run_id:
        names = ("method", "model", "dataset", "profile", "setting", "seed")
        chosen = {name: getattr(config, name).removesuffix("-source") if name == "setting" else getattr(config, name)
                  for name in names}  # fmt: skip
    _show_config(config, chosen, store, as_json)


def _show_config(config: RunConfig, chosen: dict[str, Any], store: RunStore, as_json: bool) -> None:
    """Print a configuration and what the store has of it."""
    try:
        with stdout_to_stderr():
            usual = chosen_config(**{**chosen, "sets": (), "preset": "none"})
    except FractrainError:  # a setting without a default, or a plugin that is not there any more
        usual = None
    record = store.get(config.run_id)
    status = record.status if record else "not run yet"
    if as_json:
        emit_json({"run_id": config.run_id, "status": status, **config.model_dump(mode="json")})
    else:
        click.echo("\n".join([*config_lines(config, usual), f"in {store.root}: {status}"]))
