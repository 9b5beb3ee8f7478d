"""``fractrain doctor``: what works here, what does not, and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fractrain.commands.common import data_option, emit_json, json_option, options, results_option, stdout_to_stderr

if TYPE_CHECKING:
    from fractrain.report.doctor import Check

MARKS = {"works": "ok", "limited": "--", "does not work": "NO"}


@click.command("doctor", short_help="Say what works on this machine and what does not.")
@options(data_option, results_option, json_option)
def doctor_command(data_dir: Path | None, results: Path, as_json: bool) -> int:
    """Check versions, device, data, disk: what works here, what does not, how to mend it.

    Exit code 1 when something is missing without which nothing can be trained.
    """
    from fractrain.report.doctor import examine

    checks: list[Check] = []
    pending = examine(data_dir, results)
    while True:
        with stdout_to_stderr():  # only the looking, so that each line can be shown at once
            check = next(pending, None)
        if check is None:
            break
        checks.append(check)
        if not as_json:
            _print(check)
    ok = not any(check.essential and check.state == "does not work" for check in checks)
    if as_json:
        emit_json({"ok": ok, "checks": checks})
    else:
        click.echo("training works here" if ok else "training does not work here: mend the lines marked NO")
    return 0 if ok else 1


def _print(check: Check) -> None:
    click.echo(f"{MARKS[check.state]}  {check.name:<15} {check.detail}")
    if check.mend:
        click.echo(f"{'':<20}{check.mend}")
