"""Reading the record of one run, and saying whether it can be trusted.

A finished run has a manifest (:mod:`fractrain.engine.record_files`). A record whose files agree with it is *verified*;
one of an earlier release, which has none, is *unverified*: of it only the ledger's digest, the number of epochs and the
types of all values are checked. A record that fails is *damaged*: it has no summary, and its message names the file.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from fractrain.engine import record_files as files
from fractrain.engine.config import RunConfig
from fractrain.engine.record_files import FileDamaged, Status, check_manifest
from fractrain.util.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from fractrain.cost.ledger import Ledger

RecordStatus = Status | Literal["damaged"]
FORCE: Final = "start it from the beginning with `fractrain run --force`"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """What the store holds of one run.

    Attributes:
        status: ``running`` also stands for a run that was killed; the same command goes on with it. ``damaged``: its
            files are not what was written.
        summary: the result; None unless the status is ``done``.
        environment: versions and machine of the last start; those of earlier starts under ``earlier``.
        message: one line on why it is not done, or on what is damaged; else empty.
        verified: the status is ``done`` and all files that numbers are read from agree with the manifest.
        known_config: what was run; None where ``config.json`` is damaged.
    """

    run_id: str
    path: Path
    status: RecordStatus
    summary: dict[str, Any] | None
    environment: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    verified: bool = False
    known_config: RunConfig | None = None

    @property
    def config(self) -> RunConfig:
        """What was run.

        Raises:
            StoreError: ``config.json`` is damaged.
        """
        if self.known_config is None:
            raise StoreError(f"{self.path}: {self.message}")
        return self.known_config

    def undamaged(self) -> RunRecord:
        """Return the record itself, whatever its status but one.

        Raises:
            StoreError: it is damaged; one line.
        """
        if self.status == "damaged":
            raise StoreError(f"{self.path}: {self.message}")
        return self

    def metrics(self) -> list[dict[str, Any]]:
        """Return one line per epoch, ascending. A resumed run repeats lines: the last one of an epoch counts.

        Raises:
            StoreError: the file is damaged.
        """
        return files.read_metrics(self.path / files.METRICS)

    def ledger(self) -> Ledger:
        """Return the run's ledger.

        Raises:
            StoreError: there is none, or it cannot be read.
        """
        from fractrain.cost.ledger import read_ledger

        path = self.path / files.LEDGER
        try:
            return read_ledger(files.read_bytes(path))
        except ValueError as error:
            raise FileDamaged(path, f"is damaged ({error})") from error


def read_record(folder: Path) -> RunRecord:
    """Read the record in a run's folder and check it; whatever the files hold, there is an answer.

    Args:
        folder: a run's folder, named as the run.

    Returns:
        The record; its status is ``damaged`` where its numbers cannot be trusted.
    """
    config = None
    try:
        config = read_config(folder)
        return _read(folder, config)
    except StoreError as error:
        fault = f"{error.name} {error.reason}" if isinstance(error, FileDamaged) else str(error)
        message = f"record damaged: {fault}; {_remedy(folder, error)}"
        return RunRecord(folder.name, folder, "damaged", None, message=message, known_config=config)


def read_config(folder: Path) -> RunConfig:
    """Return the config in a run's folder.

    Raises:
        StoreError: missing, damaged, or of another run.
    """
    path = folder / files.CONFIG
    content = files.read_bytes(path)
    try:
        config = RunConfig.from_json(content, str(path))
    except ConfigError as error:
        raise FileDamaged(path, f"is damaged ({str(error).removeprefix(f'{path}: ')})") from error
    if config.run_id != folder.name:
        raise FileDamaged(path, f"belongs to run {config.run_id}, not to this folder")
    return config


def _read(folder: Path, config: RunConfig) -> RunRecord:
    sealed = (folder / files.MANIFEST).exists() and not _begun_again(folder)
    wrong = check_manifest(folder, optional=(files.CHECKPOINT,)) if sealed else []
    for fault in wrong:
        if fault.name != files.ENVIRONMENT:
            raise fault
    status, message = _status(folder, sealed)
    environment, doubt = _environment(folder, wrong[0] if wrong else None)
    summary = None
    if status == "done":
        summary = files.read_summary(folder)
        _check_old(folder, summary)
    return RunRecord(folder.name, folder, status, summary, environment, message or doubt, sealed, config)


def _begun_again(folder: Path) -> bool:
    """Whether the manifest is that of an earlier result: the status is written first, then the manifest deleted."""
    try:
        return files.read_status(folder).status != "done"
    except FileDamaged:
        return False


def _status(folder: Path, sealed: bool) -> tuple[Status, str]:
    """Status and message of a run; one that lacks what only the end of a run writes goes on from its checkpoint."""
    try:
        found = files.read_status(folder)
    except FileDamaged as error:
        missing = error.reason == "is missing"
        finished = (folder / files.SUMMARY).exists() and not (missing and (folder / files.CHECKPOINT).exists())
        if sealed or finished:
            raise  # it may be done
        return "running", "" if missing else f"{error}; the run goes on without it and writes it anew"
    if found.status == "done" and found.sealed and not sealed:
        if not (folder / files.CHECKPOINT).exists():
            raise FileDamaged(folder / files.MANIFEST, "is missing")
        return "running", "stopped while its record was being written: the same command writes it"
    return found.status, found.message


def _environment(folder: Path, fault: FileDamaged | None) -> tuple[dict[str, Any], str]:
    """The environment, and what is wrong with it: no number depends on it."""
    try:
        if fault is not None:
            raise fault
        return files.read_environment(folder), ""
    except FileDamaged as error:
        if fault is None and error.reason == "is missing":
            return {}, ""
        _log.warning("%s; the result does not depend on it", error)
        return {}, f"{error}; the result does not depend on it"


def _check_old(folder: Path, summary: dict[str, Any]) -> None:
    """Compare what a summary says about other files with them: all that can be checked without a manifest."""
    epochs, digest, run_id = summary.get("epochs"), summary.get("ledger_sha256"), summary.get("run_id")
    if run_id and run_id != folder.name:
        raise FileDamaged(folder / files.SUMMARY, f"belongs to run {run_id}")
    if epochs is not None and len(files.read_metrics(folder / files.METRICS)) != epochs:
        raise FileDamaged(folder / files.METRICS, f"does not have the {epochs} epochs that summary.json counts")
    if epochs is not None and summary["best_test_epoch"] >= epochs:
        raise FileDamaged(folder / files.SUMMARY, f"has its best epoch beyond the {epochs} that there are")
    if digest and hashlib.sha256(files.read_bytes(folder / files.LEDGER)).hexdigest() != digest:
        raise FileDamaged(folder / files.LEDGER, "differs from its SHA-256 in summary.json")


def _remedy(folder: Path, error: StoreError) -> str:
    """What mends a damaged record and destroys nothing that is sound."""
    name = getattr(error, "name", "")
    if name == files.CONFIG and "belongs to" in str(error):
        return f"move {folder} away"
    if name == files.CONFIG:
        return f"delete {files.CONFIG} and give the run's command again: it is written anew"
    if not name:
        return "make it readable"
    if (folder / files.CHECKPOINT).exists():
        first = files.MANIFEST if (folder / files.MANIFEST).exists() else files.STATUS
        return f"delete {first} and give the run's command again: it writes the record anew from the last checkpoint"
    return f"restore it from a copy, or {FORCE}"
