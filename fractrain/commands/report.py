"""``fractrain report``: everything the run store holds as one HTML page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fractrain.commands.bench import DEFAULT_OUT as DEFAULT_BENCH
from fractrain.commands.common import (
    emit_json,
    folder_option,
    json_option,
    options,
    plugin_option,
    profile_option,
    results_option,
    stdout_to_stderr,
)
from fractrain.commands.evidence import evidence_option
from fractrain.util.console import log_line

if TYPE_CHECKING:
    from fractrain.engine.config import RunConfig
    from fractrain.engine.index import RunEntry
    from fractrain.engine.store import RunStore
    from fractrain.report.scaling import Scaling
    from fractrain.report.sources import Sources, Store
    from fractrain.report.spec import RunRequest, TableSpec
    from fractrain.report.values import Table

DEFAULT_OUT = "results/report"
PAGE = "index.html"
CAMPAIGN = "scaling"


@click.command("report", short_help="Write everything there is as one HTML page.")
@options(
    folder_option("--out", default=DEFAULT_OUT, help=f"Where {PAGE} is written."),
    click.option(
        "--table", "tables", multiple=True, metavar="NAME",
        help="A table to show, or a file of your own; may be repeated.  [default: all that have a finished run]",
    ),
    profile_option(None, "the most thorough that has any, for each table"),
    click.option("--hardware", default="", metavar="NAME", help="Model energy and latency of every run by it."),
    click.option(
        "--details", type=click.IntRange(min=0), default=12, show_default=True, metavar="N",
        help="Configurations, the latest, that are looked into: curves, precision, where the work goes.",
    ),
    evidence_option,
    folder_option("--bench", default=DEFAULT_BENCH, help="Records of `fractrain bench` to show, where there are any."),
    results_option, plugin_option, json_option,
)  # fmt: skip
def report_command(
    out: Path, tables: tuple[str, ...], profile: str | None, hardware: str, details: int, evidence: Path, bench: Path,
    results: Path, as_json: bool,
) -> None:  # fmt: skip
    """Write one self-contained HTML page of all runs in the run store: claims, costs, curves, precision, tables.

    Claims are judged by these runs and the committed records (--evidence) together.

    The page needs no network and works from disk. A store with thousands of runs shows the latest; it says so.
    """
    from fractrain.engine.index import read_index, without_collector
    from fractrain.engine.store import RunStore
    from fractrain.report.claims import judge_claims
    from fractrain.report.evidence import EvidenceStore
    from fractrain.report.known_configs import with_known
    from fractrain.report.page import build_page
    from fractrain.report.page_bench import read_benches
    from fractrain.report.sources import Remembering, Stores, cached_sources, default_sources
    from fractrain.util.files import atomic_write, try_folder

    try_folder(out)
    store = RunStore(results)
    log_line(f"reading {results} ...")
    with without_collector(), stdout_to_stderr(), with_known(default_sources(), store.root) as known:
        entries = read_index(store)
        sources = cached_sources(known)
        built = _tables(store, entries, tables, profile, sources)
        records = EvidenceStore(evidence)
        both = Remembering(Stores(store, records))
        kinds = {_kind(run) for run in entries} | {_kind(run) for run in records.configs()}
        claims = judge_claims(both, sources, may_have=lambda request: _kind(request) in kinds)
        scaling = _scaling(both, sources)
        page = build_page(store, built, hardware, details, entries, claims, scaling, read_benches(bench))
        atomic_write(out / PAGE, page.encode())
    if as_json:
        emit_json({"file": out / PAGE, "bytes": len(page.encode()), "tables": [table.name for table in built]})
    else:
        click.echo(f"{out / PAGE}  ({len(page.encode()) / 1e6:.2f} MB); open it in a browser")


def _kind(run: RunEntry | RunConfig | RunRequest) -> tuple[str, str, str, str]:
    """What tells cheaply that there is no run of a request."""
    return run.method, run.model, run.dataset, run.profile


def _scaling(store: Store, sources: Sources) -> Scaling | None:
    """The campaign of short runs, where one of them is done."""
    from fractrain.report.campaign import load_campaign
    from fractrain.report.scaling import build_scaling

    scaling = build_scaling(load_campaign(CAMPAIGN), store, sources)
    return scaling if any(run.state == "cached" for run in scaling.runs) else None


def _tables(
    store: RunStore, entries: Sequence[RunEntry], names: tuple[str, ...], profile: str | None, sources: Sources
) -> list[Table]:
    """The tables that were asked for, whole; else those with a finished run, fullest first, by the longest profile."""
    from fractrain.engine.length import longest_first
    from fractrain.report.build import build_table
    from fractrain.report.spec import load_spec, table_names

    done = [e for e in entries if e.summary is not None]
    wanted = [profile] if profile else longest_first({e.profile for e in done})
    if not wanted:
        return [build_table(load_spec(name), store, "smoke", sources=sources) for name in names]
    there = {_kind(e) for e in done}
    found = []
    for name in names or table_names():
        spec = load_spec(name)
        built = (build_table(spec, store, p, sources=sources) if names else _with_runs(spec, store, p, there, sources)
                 for p in wanted)  # fmt: skip
        found += list(itertools.islice((t for t in built if t is not None and (names or _measured(t))), 1))
    return found if names else sorted(found, key=_measured, reverse=True)


def _with_runs(
    spec: TableSpec, store: RunStore, profile: str, there: set[tuple[str, str, str, str]], sources: Sources
) -> Table | None:
    """A table without the pairs of which no finished run looks like one of its; None where no pair has any.

    That is cheap, and right where the answer is no: a pair that is left out has no measured number.
    """
    from fractrain.report.build import build_table

    pairs = [pair for pair in spec.pairs
             if any(_kind(spec.request(pair, row, profile)) in there for row in spec.rows_of(pair))]  # fmt: skip
    if not pairs:
        return None
    table = build_table(spec.model_copy(update={"pairs": tuple(pairs)}), store, profile, sources=sources)
    left = [f"{pair.model_label} on {pair.dataset_label}" for pair in spec.pairs if pair not in pairs]
    note = (f"Left out on this page, for nothing of it was run: {', '.join(left)} (--table {spec.name} shows all).",)
    return replace(table, notes=(*table.notes, *(note if left else ())))


def _measured(table: Table) -> int:
    """In how many rows a table has a measured number."""
    return sum(any(c.origin == "measured" and c.value is not None for c in row.cells.values()) for row in table.rows)
