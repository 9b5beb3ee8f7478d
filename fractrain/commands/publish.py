"""``fractrain publish``: finished runs and rendered tables to wandb."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import click

from fractrain.commands.common import choice_option, emit_json, json_option, options, results_option, stdout_to_stderr


@click.command("publish", short_help="Send finished runs and tables to wandb.")
@options(
    click.argument("run_ids", nargs=-1, metavar="[RUN_ID]..."),
    click.option("--project", default="fractrain", show_default=True, help="The wandb project."),
    click.option("--entity", help="The wandb user or team.  [default: $WANDB_ENTITY, else who is logged in]"),
    choice_option(
        "--mode", of=["auto", "online", "offline"], default="auto",
        help="offline writes files that `wandb sync` sends later; auto follows $WANDB_MODE.",
    ),
    click.option(
        "--table", "tables", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
        help="A rendered table or figure, or a folder of them; may be repeated.  "
        "[default: results/tables and results/figures, where there]",
    ),
    click.option("--no-tables", is_flag=True, help="Send runs only."),
    click.option("--force", is_flag=True, help="Send again what was sent before."),
    results_option,
    json_option,
)  # fmt: skip
def publish_command(
    run_ids: tuple[str, ...], project: str, entity: str | None, mode: Literal["auto", "online", "offline"],
    tables: tuple[Path, ...], no_tables: bool, force: bool, results: Path, as_json: bool,
) -> int:  # fmt: skip
    """Send finished runs, their ledgers and the tables to wandb, each exactly once (all runs, or RUN_ID ...).

    RUN_ID may be the beginning of a run id. Exit code 1 where one could not be sent; the others are.
    """
    from fractrain.commands.tables import DEFAULT_FIGURES, DEFAULT_OUT
    from fractrain.engine.store import RunStore
    from fractrain.publish.publish import publish

    usual = [folder for folder in (Path(DEFAULT_OUT), Path(DEFAULT_FIGURES)) if folder.is_dir()]
    chosen = [] if no_tables else list(tables) or usual
    with stdout_to_stderr():
        sent = publish(RunStore(results), project, entity, mode, list(run_ids) or None, chosen, force=force)
    if as_json:
        emit_json(sent)
    elif not sent:
        click.echo("nothing to publish: no finished run in the run store")
    else:
        counts = Counter(one.action for one in sent)
        click.echo(", ".join(f"{number} {action}" for action, number in counts.items()))
    return 1 if any(one.action == "failed" for one in sent) else 0
