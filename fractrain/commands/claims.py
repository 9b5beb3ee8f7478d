"""``fractrain claims``: what the papers' abstracts claim, and what the records say of it today."""

from __future__ import annotations

from pathlib import Path

import click

from fractrain.commands.common import (
    choice_option,
    emit_json,
    json_option,
    options,
    plugin_option,
    results_option,
    stdout_to_stderr,
)
from fractrain.commands.evidence import evidence_option


@click.command("claims", short_help="List the papers' claims with today's verdicts.")
@options(
    choice_option(
        "--from", "origin", of=("evidence", "store"), default="evidence",
        help="The committed records (--evidence), or the run store.",
    ),
    evidence_option, results_option, plugin_option, json_option,
)  # fmt: skip
def claims_command(origin: str, evidence: Path, results: Path, as_json: bool) -> None:
    """List every claim of the FracTrain and DYNASTY abstracts with its verdict, computed from the records now.

    A claim is judged by runs of the length it needs. Where there are only shorter ones it is "not run", and what their
    trend says stands beside it: supports, contradicts or says nothing.
    """
    from fractrain.engine.store import RunStore
    from fractrain.report.claims import judge_claims, listing
    from fractrain.report.evidence import EvidenceStore

    with stdout_to_stderr():
        claims = judge_claims(EvidenceStore(evidence) if origin == "evidence" else RunStore(results))
    if as_json:
        emit_json({"claims": claims})
    else:
        click.echo(listing(claims))
