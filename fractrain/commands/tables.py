"""``fractrain reproduce`` and ``table``: running what is missing of a table, printing it."""

from __future__ import annotations

import dataclasses
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import (
    choice_option,
    emit_json,
    folder_option,
    json_option,
    options,
    plugin_option,
    profile_option,
    results_option,
    show,
    site_options,
    stdout_to_stderr,
)
from fractrain.commands.evidence import evidence_option, origin_option
from fractrain.commands.executing import (
    Execution,
    chosen_execution,
    execute,
    executor_option,
    jobs_at_once,
    jobs_option,
    resources_option,
)
from fractrain.commands.planning import (
    add_option,
    against_option,
    merge_plans,
    name_argument,
    names_argument,
    plan_campaign_of,
    plan_tables,
    seeds_option,
    show_plan,
)
from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError
from fractrain.util.files import try_folder

if TYPE_CHECKING:
    from fractrain.engine.site import Site
    from fractrain.engine.store import RunStore
    from fractrain.execute.jobs import Outcome
    from fractrain.report.campaign import Campaign
    from fractrain.report.draw import Look
    from fractrain.report.evidence import EvidenceStore
    from fractrain.report.grid import PlannedRun
    from fractrain.report.sources import Sources
    from fractrain.report.spec import TableSpec

FORMATS = ("md", "csv", "tex", "html", "json", "svg", "png", "pdf")
DRAWINGS = ("svg", "png", "pdf")
BINARY = ("png", "pdf")
DEFAULT_OUT = "results/tables"
DEFAULT_FIGURES = "results/figures"

out_option = folder_option(
    "--out", help=f"Where it is written in all formats.  [default: {DEFAULT_OUT}, figures: {DEFAULT_FIGURES}]"
)


@click.command("table", short_help="Print a table from the runs there are.")
@options(
    name_argument,
    choice_option(
        "--format", "form", of=FORMATS, default="md",
        help="svg, png, pdf: figures only; their csv has one line per point.",
    ),
    click.option(
        "--panel", default="", metavar="N|TEXT", help="Of a drawing: its N-th panel, or those with TEXT in the title."
    ),
    choice_option(
        "--style", "look", of=("page", "paper"), default="page",
        help="paper: as wide as a column of a paper, without a title inside; LaTeX likewise.",
    ),
    click.option(
        "--columns", default="", metavar="KEY,...", help="These columns alone, in this order (keys: those of the csv)."
    ),
    click.option(
        "--rows", multiple=True, metavar="TEXT", help="Rows alone with TEXT in model, data or label; may be repeated."
    ),
    click.option(
        "--hardware", metavar="NAME",
        help="Hardware model for energy and latency, with a preset or settings after colons.  [default: the table's]",
    ),
    origin_option, profile_option("smoke"), seeds_option, add_option, against_option, results_option, evidence_option,
    plugin_option,
)  # fmt: skip
def table_command(
    table: str, form: str, panel: str, look: Look, columns: str, rows: tuple[str, ...], hardware: str | None,
    origin: str, profile: str, seeds: int | None, added: tuple[str, ...], against: str, results: Path, evidence: Path,
) -> None:  # fmt: skip
    """Print TABLE (figure, campaign) from the runs there are; nothing is run."""
    from fractrain.cost.hardware import create
    from fractrain.engine.store import RunStore
    from fractrain.report import output, scaling_draw
    from fractrain.report.added_rows import with_added
    from fractrain.report.campaign import campaign_names, load_campaign
    from fractrain.report.evidence import EvidenceStore
    from fractrain.report.output import selected
    from fractrain.report.scaling import build_scaling
    from fractrain.report.spec import load_spec

    store = EvidenceStore(evidence) if origin == "evidence" else RunStore(results)
    wanted = output.Wanted(
        tuple(key.strip() for key in columns.split(",") if key.strip()), rows, panel, look, hardware is not None
    )
    if table in campaign_names():
        if added or against:
            raise ConfigError(f"{table} is a campaign, a list of runs: --add goes with tables")
        with stdout_to_stderr():
            campaign = load_campaign(table)
            if hardware is not None:
                campaign = campaign.model_copy(update={"hardware": create(hardware).title})
            if panel or look != "page":
                raise ConfigError(f"{table} is a campaign, whose figure has one form: leave out --panel and --style")
            scaling = build_scaling(campaign, store)
            scaling = dataclasses.replace(scaling, table=selected(scaling.table, wanted.columns, wanted.rows))
            content = scaling_draw.scaling_content(scaling, form)
        _put(content, form)
        return
    with stdout_to_stderr():
        spec = with_added(load_spec(table), added, against)
        if hardware is not None:
            spec = spec.model_copy(update={"hardware": create(hardware).title})
        if panel and (spec.figure is None or form not in DRAWINGS):
            raise ConfigError(f"--panel is for drawings of figures: --format {'|'.join(DRAWINGS)}")
        with _sources(store) as sources:
            content = output.table_content(spec, store, profile, seeds, form, sources, wanted)
    _put(content, form)


def _sources(store: EvidenceStore | RunStore) -> AbstractContextManager[Sources]:
    """Where a table gets its numbers from; beside a run store configurations are kept."""
    from fractrain.engine.store import RunStore
    from fractrain.report.known_configs import with_known
    from fractrain.report.sources import default_sources

    return with_known(default_sources(), store.root) if isinstance(store, RunStore) else nullcontext(default_sources())


def _put(content: bytes, form: str) -> None:
    """Write a table to the standard output; what is no text only into a file.

    Raises:
        ConfigError: the standard output is a terminal.
    """
    if form not in BINARY:
        click.echo(content.decode().rstrip("\n"))
        return
    if sys.stdout.isatty():
        raise ConfigError(f"{form} is no text: send it into a file, for example > figure.{form}")
    sys.stdout.buffer.write(content)


@click.command("reproduce", short_help="Run what a table needs, then print it.")
@options(
    names_argument, profile_option("smoke"), seeds_option, add_option, against_option, jobs_option, executor_option,
    resources_option,
    click.option("--dry-run", is_flag=True, help="Show the plan and stop."),
    site_options, out_option, plugin_option, json_option,
)  # fmt: skip
def reproduce_command(
    tables: tuple[str, ...], profile: str, seeds: int | None, added: tuple[str, ...], against: str, jobs: int | None,
    executor: str, resources: tuple[str, ...], dry_run: bool, site: Site, out: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Run what is missing of TABLE (figure, campaign), then print it and write it to DIR in all formats.

    "scaling" is a campaign: a list of runs at several lengths, made one after the other in its order (more at a time
    with --jobs), so that it may be stopped and taken up again any time. It is written only where --out says.

    Several tables, or "all" of them, are run as one: what they share is run once, and all are written at the end;
    `fractrain table NAME` shows how far one is. Runs that are finished are never repeated; interrupted ones go on where
    they stopped. Exit code 1 when a run failed.
    """
    _refuse_torchrun()
    from fractrain.engine.length import length_text

    how = chosen_execution(executor, resources, jobs)
    campaign = plan_campaign_of(tables, profile, seeds, site.store, (*added, *filter(None, [against])))
    if campaign is not None:
        return _reproduce_campaign(*campaign, site, dataclasses.replace(how, jobs=jobs or 1), dry_run, out, as_json)
    log_line(f"{', '.join(tables)}, {length_text(profile)}: planning ...")
    from fractrain.report.draw import require_matplotlib
    from fractrain.report.grid import counts_text

    plans = plan_tables(tables, profile, seeds, site.store, added, against)
    runs = merge_plans(plans)
    if dry_run:
        show_plan(runs, as_json)
        return 0
    for spec, _ in plans:
        if spec.is_drawn:  # found out before hours of training
            require_matplotlib()
        try_folder(_folder(spec, out))
    log_line(counts_text(runs))
    outcomes = execute([run.config for run in runs if run.state == "to run"], site, how)
    documents = []
    for spec, planned in plans:
        ids = {run.run_id for run in planned}
        own = [outcome for outcome in outcomes if outcome.run_id in ids]
        documents.append(_finish(spec, profile, seeds, site, out, jobs, own, as_json))
    if as_json:
        emit_json(documents[0] if len(documents) == 1 else {"tables": documents})
    return 1 if any(outcome.status != "done" for outcome in outcomes) else 0


def _refuse_torchrun() -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(
            "`fractrain reproduce` starts processes of its own, one run each, and does not go with torchrun: leave it "
            "out, or use it with `-m fractrain run` for a single run on several GPUs"
        )


def _reproduce_campaign(
    campaign: Campaign, runs: list[PlannedRun], site: Site, how: Execution, dry_run: bool,
    out: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Run what is missing of a campaign, in its order; print its table, and write it and the figure where DIR is given.

    The committed files come from the committed records alone (`fractrain evidence write`).
    """
    from fractrain.engine.store import RunStore
    from fractrain.report import scaling_draw
    from fractrain.report.campaign import done_in_order
    from fractrain.report.draw import require_matplotlib
    from fractrain.report.grid import counts_text
    from fractrain.report.scaling import build_scaling

    if dry_run:
        show_plan(runs, as_json)
        return 0
    if out:
        require_matplotlib()
        try_folder(out)
    log_line(f"{campaign.name}: {counts_text(runs)}")
    outcomes = execute([run.config for run in runs if run.state == "to run"], site, how)
    with stdout_to_stderr():
        scaling = build_scaling(campaign, RunStore(site.store))
        files = scaling_draw.write(scaling, out, out) if out else []
        text = scaling_draw.scaling_content(scaling, "md").decode()
    finished = sum(run.state == "cached" for run in scaling.runs)
    show(as_json, {"table": scaling.table.as_dict(), "outcomes": outcomes, "files": files}, text.rstrip("\n"))
    first = done_in_order(scaling.runs)
    log_line(f"{campaign.name}: {finished} of {len(runs)} runs are done, the first {first} without a gap")
    if files:
        log_line(f"written: {', '.join(str(file) for file in files)}")
    log_line(f"to keep them: fractrain evidence add RUN... --campaign {campaign.name}, then fractrain evidence write")
    return 1 if any(outcome.status != "done" for outcome in outcomes) else 0


def _folder(spec: TableSpec, out: Path | None) -> Path:
    """Where a table is written."""
    return out or Path(DEFAULT_FIGURES if spec.is_drawn else DEFAULT_OUT)


def _finish(
    spec: TableSpec, profile: str, seeds: int | None, site: Site, out: Path | None, jobs: int | None,
    outcomes: list[Outcome], as_json: bool,
) -> dict[str, Any]:  # fmt: skip
    """Build the table from the store, write it, print it unless the document returned is to be printed instead."""
    from fractrain.engine.store import RunStore
    from fractrain.report.closing import closing
    from fractrain.report.grid import plan
    from fractrain.report.output import write
    from fractrain.report.render import render

    store = RunStore(site.store)
    with stdout_to_stderr():
        built, files = write(spec, store, profile, _folder(spec, out), seeds)
        text = render(built, "md")
        last: tuple[str, ...] = ()
        if profile == "smoke":
            runs = plan(spec, profile, seeds, store)
            last = closing(spec, built, runs, jobs_at_once(jobs, site.device))
    if not as_json:
        click.echo("\n".join([text, *last]).rstrip("\n"))
    log_line(f"written: {', '.join(str(file) for file in files)}")
    return {"table": built.as_dict(), "outcomes": outcomes, "files": files, **({"closing": last} if last else {})}
