"""``fractrain evidence``: committed records of finished runs, and whether their numbers still hold; ``claims``."""

from __future__ import annotations

from pathlib import Path

import click

from fractrain.commands.common import (
    NearestGroup,
    choice_option,
    emit_json,
    folder_option,
    json_option,
    options,
    plugin_option,
    results_option,
    show,
    stdout_to_stderr,
)
from fractrain.util.console import log_line

DEFAULT_EVIDENCE = "results/evidence"

evidence_option = folder_option("--evidence", default=DEFAULT_EVIDENCE, help="The folder of committed records.")

origin_option = choice_option(
    "--from", "origin", of=("store", "evidence"), default="store",
    help="The run store, or the committed records (--evidence).",
)  # fmt: skip

root_option = folder_option("--root", default=".", help="Where README.md and results/ are.")


@click.group("evidence", cls=NearestGroup, short_help="Keep and check records of real runs.")
def evidence_group() -> None:
    """Keep records of finished runs (no weights) beside the code, and check every number in them."""


@evidence_group.command("add", short_help="Copy a finished run's record.")
@options(
    click.argument("runs", nargs=-1, required=True, metavar="RUN..."),
    click.option("--campaign", required=True, metavar="NAME", help="Folder of records that belong together."),
    results_option, evidence_option, json_option,
)  # fmt: skip
def add_command(runs: tuple[str, ...], campaign: str, results: Path, evidence: Path, as_json: bool) -> None:
    """Copy the records of RUNs (ids, or what is unique of them) from the run store to DIR/NAME/.

    A record is configuration, environment, metrics, ledger and summary, with digests. One that is there already is left
    as it is; nothing is copied unless all runs are finished.
    """
    from fractrain.engine.store import RunStore
    from fractrain.report.evidence import EvidenceStore, require_finished

    store = RunStore(results)
    records = [store.find(run) for run in runs]
    require_finished(records)
    folders = [EvidenceStore(evidence).add(record, campaign) for record in records]
    if as_json:
        emit_json({"campaign": campaign, "records": folders})
        return
    for folder in folders:
        click.echo(str(folder))


@evidence_group.command("verify", short_help="Recompute every committed number.")
@options(evidence_option, root_option, json_option)
def verify_command(evidence: Path, root: Path, as_json: bool) -> int:
    """Recompute every number of every record from its ledger and metrics, and the documents made of the records
    (results/tables/scaling.md, the README's section of results). Exit code 1 and a line for each difference.

    Not recomputed is what no record can show: digests of weights and data, memory, the trivial predictor.
    """
    from fractrain.report.documents import verify_documents
    from fractrain.report.evidence import EvidenceStore, verify

    store = EvidenceStore(evidence)
    records = list(store.folders())
    differences = [*verify(store), *verify_documents(store, root)]
    if as_json:
        emit_json({"records": len(records), "differences": differences})
    else:
        for line in differences:
            click.echo(line)
        log_line(f"{len(records)} records in {evidence}: {len(differences)} differences")
    return 1 if differences else 0


@evidence_group.command("write", short_help="Write the documents made from the records.")
@options(evidence_option, root_option)
def write_command(evidence: Path, root: Path) -> None:
    """Write the scaling table, its figure and the README's section of results from the records.

    To be called after `fractrain evidence add`, and whenever `fractrain evidence verify` names a document.
    """
    from fractrain.report.documents import write_documents
    from fractrain.report.evidence import EvidenceStore

    for file in write_documents(EvidenceStore(evidence), root):
        click.echo(str(file))


# -- claims ------------------------------------------------------------------------------------------------------------


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
    show(as_json, {"claims": claims}, listing(claims))
