"""``fractrain verify-runs``: do the records of the run store hold what was written into them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import emit_json, json_option, options, results_option, stdout_to_stderr

if TYPE_CHECKING:
    from fractrain.engine.record import RunRecord


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
        _print(found, results)
    return 1 if any(one["state"] == "damaged" for one in found) else 0


def _verdict(record: RunRecord) -> dict[str, Any]:
    from fractrain.engine.manifest import check_manifest

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


def _print(found: list[dict[str, Any]], results: Path) -> None:
    for one in found:
        if one["state"] != "verified":
            click.echo(f"{one['run_id']}  {one['state']}: {one['message']}")
    counts = Counter(one["state"] for one in found)
    told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    click.echo(f"{len(found)} runs in {results}{': ' if told else ''}{told}")
