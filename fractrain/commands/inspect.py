"""``fractrain show`` and ``compare``: what a run holds, and what two configurations have in common or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import emit_json, json_option, options, results_option, stdout_to_stderr

if TYPE_CHECKING:
    from fractrain.engine.store import RunRecord

MOST_PERIODS = 20


@click.command("show", short_help="Show what there is of a run.")
@options(click.argument("run_id"), results_option, json_option)
def show_command(run_id: str, results: Path, as_json: bool) -> None:
    """Show how RUN_ID (or the run that begins so) was made and ended: result, cost, curve, machine, files."""
    from fractrain.engine.store import RunStore

    record = RunStore(results).find(run_id)
    if as_json:
        emit_json(_document(record))
        return
    click.echo("\n".join(_lines(record)))


def _document(record: RunRecord) -> dict[str, Any]:
    return {
        "run_id": record.run_id, "status": record.status, "message": record.message,
        "config": record.config.model_dump(mode="json"), "summary": record.summary, "metrics": _metrics(record),
        "environment": record.environment, "folder": record.path, "files": _files(record),
    }  # fmt: skip


def _metrics(record: RunRecord) -> list[dict[str, Any]]:
    """The lines of the epochs; of a damaged record none, whose numbers may be others."""
    return [] if record.status == "damaged" else record.metrics()


def _files(record: RunRecord) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(record.path.iterdir()) if not file.name.startswith(".")}


def _lines(record: RunRecord) -> list[str]:
    from tabulate import tabulate

    from fractrain.commands.choose import config_lines
    from fractrain.report.run_text import result_lines

    lines = [f"{record.run_id}: {record.status}" + (f" ({record.message})" if record.message else "")]
    lines += [*result_lines(record), "", *config_lines(record.config, None)[1:], ""]
    metrics = _metrics(record)
    step = max(1, -(-len(metrics) // MOST_PERIODS))
    shown = [*metrics[:-1:step], *metrics[-1:]]
    keys = ("epoch", "iteration", "lr", "train_loss", "val_accuracy", "test_accuracy", "test_perplexity", "cp_percent")
    there = [key for key in keys if any(line.get(key) is not None for line in shown)]
    own = list(dict.fromkeys(key for line in shown for key in line.get("method") or {}))
    body = [[line.get(k) for k in there] + [(line.get("method") or {}).get(k) for k in own] for line in shown]
    if body:
        lines += [tabulate(body, [*there, *own], tablefmt="simple", floatfmt=".4g", missingval="-"), ""]
    e = record.environment
    git = e.get("git") or {}
    machine = ", ".join(str(e[key]) for key in ("gpu", "cpu", "platform", "python") if e.get(key))
    lines.append(f"made on {machine or 'an unknown machine'}; fractrain {e.get('fractrain', '?')}, "
                 f"torch {(e.get('packages') or {}).get('torch', '?')}, git {git.get('sha') or '?'}"
                 f"{', with changes that were not committed' if git.get('dirty') else ''}")  # fmt: skip
    lines.append(f"folder: {record.path} ({', '.join(f'{n} {size:,} B' for n, size in _files(record).items())})")
    return lines


@click.command("compare", short_help="Compare two configurations over their seeds.")
@options(
    click.argument("run_a"),
    click.argument("run_b"),
    click.option("--paired", is_flag=True, help="Pair runs of equal seed: only seeds that both have count."),
    results_option,
    json_option,
)
def compare_command(run_a: str, run_b: str, paired: bool, results: Path, as_json: bool) -> None:
    """Compare two configurations over all their finished seeds: differences, intervals and the test behind them.

    RUN_A and RUN_B are ids of runs (or beginnings): each stands for all runs that differ from it in nothing but the
    seed. Without --paired, seeds are independent samples (Welch).
    """
    from fractrain.engine.index import read_index
    from fractrain.engine.store import RunStore
    from fractrain.report.comparison import compare, comparison_text

    store = RunStore(results)
    with stdout_to_stderr():
        a, b = (store.find(text).config.run_id for text in (run_a, run_b))
        found = compare(read_index(store), a, b, paired)
    if as_json:
        emit_json(found)
    else:
        click.echo(comparison_text(found))
