"""``fractrain show``, ``compare``, ``diff`` and ``verify-runs``: what runs hold, where they differ, what is damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import emit_json, json_option, options, results_option, short, show, stdout_to_stderr

if TYPE_CHECKING:
    from fractrain.engine.record import RunRecord

MOST_PERIODS = 20


@click.command("show", short_help="Show what there is of a run.")
@options(click.argument("run_id"), results_option, json_option)
def show_command(run_id: str, results: Path, as_json: bool) -> None:
    """Show how RUN_ID (or the run that begins so) was made and ended: result, cost, curve, machine, files."""
    from fractrain.engine.store import RunStore

    record = RunStore(results).find(run_id)
    show(as_json, _document(record), "\n".join(_lines(record)))


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
    show(as_json, found, comparison_text(found))


# -- differences -------------------------------------------------------------------------------------------------------


MISSING = "-"
NOT_RESULT = ("run_id", "data_digest")  # told elsewhere
SECTIONS = ("config", "data", "environment", "result")


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, plain value) of nested mappings; lists are values."""
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from flatten(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries whose values differ: ``{"key", "a", "b"}``, with ``"change"`` = b - a for numbers.

    A key that one side lacks has ``None`` there and is named in ``"only"``.
    """
    a, b = dict(flatten(one)), dict(flatten(other))
    found = []
    for key in sorted(k for k in a.keys() | b.keys() if k):
        if key in a and key in b and a[key] == b[key]:
            continue
        entry: dict[str, Any] = {"key": key, "a": a.get(key), "b": b.get(key)}
        if key not in a or key not in b:
            entry["only"] = "b" if key in b else "a"
        elif all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a[key], b[key])):
            entry["change"] = b[key] - a[key]
        found.append(entry)
    return found


def compare(a: RunRecord, b: RunRecord) -> dict[str, Any]:
    """All differences between two runs, by section; ``same_result`` says whether the trained weights are equal."""
    views = [_views(record) for record in (a, b)]
    sections = {name: differences(views[0][name], views[1][name]) for name in SECTIONS}
    weights = [(record.summary or {}).get("weights_sha256") for record in (a, b)]
    same = None if None in weights else weights[0] == weights[1]
    return {"a": a.run_id, "b": b.run_id, "same_weights": same, **sections}


def _views(record: RunRecord) -> dict[str, dict[str, Any]]:
    summary = dict(record.summary or {})
    environment = {k: v for k, v in record.environment.items() if k != "earlier"}
    return {
        "config": record.config.model_dump(mode="json"),
        "data": {"digest": summary.get("data_digest")},
        "environment": environment,
        "result": {"status": record.status, **{k: v for k, v in summary.items() if k not in NOT_RESULT}},
    }


def _print_differences(found: dict[str, Any]) -> None:
    click.echo(f"a = {found['a']}\nb = {found['b']}")
    for section in SECTIONS:
        entries = found[section]
        click.echo(f"\n{section}: {'the same' if not entries else f'{len(entries)} differ'}")
        width = max((len(e["key"]) for e in entries), default=0)
        for entry in entries:
            a, b = (MISSING if entry.get("only", own) != own else short(entry[own]) for own in ("a", "b"))
            change = f"  ({entry['change']:+.6g})" if "change" in entry else ""
            click.echo(f"  {entry['key']:<{width}}  {a} -> {b}{change}")
    told = {True: "the trained weights are bit-identical", False: "the trained weights differ"}
    click.echo(f"\n{told.get(found['same_weights'], 'not both runs are done: no weights to compare')}")


@click.command("diff", short_help="Show what differs between two runs.")
@options(click.argument("run_a"), click.argument("run_b"), results_option, json_option)
def diff_command(run_a: str, run_b: str, results: Path, as_json: bool) -> None:
    """Show what differs between two runs in config, data, environment and result.

    RUN_A and RUN_B are run ids or the beginnings of run ids.
    """
    from fractrain.engine.store import RunStore

    store = RunStore(results)
    found = compare(store.find(run_a).undamaged(), store.find(run_b).undamaged())
    if as_json:
        emit_json(found)
    else:
        _print_differences(found)


# -- damage ------------------------------------------------------------------------------------------------------------


@click.command("verify-runs", short_help="Check the records of finished runs.")
@options(click.argument("run_ids", nargs=-1, metavar="[RUN_ID]..."), results_option, json_option)
def verify_runs_command(run_ids: tuple[str, ...], results: Path, as_json: bool) -> int:
    """Compare every file of finished runs, checkpoints too, with the SHA-256 in its manifest (all runs, or RUN_ID ...).

    verified: all agree. unverified: recorded by an earlier release, without a manifest; only the ledger's digest is
    known, and agrees. unfinished: nothing to check yet. damaged: the file is named, and what mends it. Exit code 1
    where one is damaged.
    """
    from fractrain.engine.store import RunStore
    from fractrain.util.progress import make_progress

    store, progress = RunStore(results), make_progress()
    with stdout_to_stderr():
        names = [store.find(text).run_id for text in run_ids] or store.ids()
        progress.start("verify-runs", len(names))
        found = []
        for number, name in enumerate(names, start=1):
            record = store.get(name)
            if record is not None:
                found.append(_verdict(record))
            progress.update(number)
        progress.close()
    if as_json:
        emit_json(found)
    else:
        _print_states(found, results)
    return 1 if any(one["state"] == "damaged" for one in found) else 0


def _verdict(record: RunRecord) -> dict[str, Any]:
    from fractrain.engine.record_files import check_manifest

    state, message = "unfinished", record.message or f"status {record.status}"
    if record.status == "damaged":
        state = "damaged"
    elif record.status == "done" and not record.verified:
        state, message = "unverified", "no manifest; the ledger's digest agrees with the summary"
    elif record.status == "done":
        wrong = check_manifest(record.path)
        state = "damaged" if wrong else "verified"
        message = "; ".join(f"{fault.name} {fault.reason}" for fault in wrong)
    return {"run_id": record.run_id, "state": state, "message": message}


def _print_states(found: list[dict[str, Any]], results: Path) -> None:
    for one in found:
        if one["state"] != "verified":
            click.echo(f"{one['run_id']}  {one['state']}: {one['message']}")
    counts = Counter(one["state"] for one in found)
    told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    click.echo(f"{len(found)} runs in {results}{': ' if told else ''}{told}")
