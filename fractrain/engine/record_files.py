"""What the files of a run's folder hold: one schema each, checked whenever one is read.

``config.json`` is a :class:`fractrain.engine.config.RunConfig`, ``ledger.json`` is read by
:func:`fractrain.cost.ledger.read_ledger`; the others are here. Keys that a schema does not name are kept as they
are, so that records of later releases can be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import pydantic
from pydantic import Field

from fractrain.util.errors import StoreError
from fractrain.util.files import atomic_write, storing
from fractrain.util.schema import parse_json, read_json

Status = Literal["running", "done", "failed", "diverged", "interrupted"]

CONFIG: Final = "config.json"
ENVIRONMENT: Final = "environment.json"
METRICS: Final = "metrics.jsonl"
LEDGER: Final = "ledger.json"
STATUS: Final = "status.json"
SUMMARY: Final = "summary.json"
MANIFEST: Final = "manifest.json"
CHECKPOINT: Final = "checkpoint.pt"
RESULTS: Final = (METRICS, LEDGER, STATUS, SUMMARY)  # what numbers are read from

T = TypeVar("T")
_Count = Annotated[int, Field(ge=0)]
_Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Perplexity = Annotated[float, Field(ge=0)] | None  # infinite where the loss is beyond its exponential
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Open(pydantic.BaseModel):
    """Unknown keys are kept."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)


class StatusFile(_Open):
    """How far a run is; ``sealed``: it was finished by a release that writes a manifest."""

    status: Status
    message: str = ""
    sealed: bool = False


class SummaryFile(_Open):
    """The result of a finished run; percentages, perplexities per word, seconds."""

    run_id: str = ""
    epochs: _Count | None = None
    iterations: _Count | None = None
    seed: _Count | None = None
    best_test_epoch: _Count
    best_test_iteration: _Count | None = None
    best_val_epoch: _Count | None = None
    train_accuracy: _Percent = None
    test_accuracy_last: _Percent = None
    test_accuracy_best: _Percent = None
    test_accuracy_at_best_val: _Percent = None
    val_accuracy_best: _Percent = None
    trivial_accuracy: _Percent = None
    test_perplexity_last: _Perplexity = None
    test_perplexity_best: _Perplexity = None
    test_perplexity_at_best_val: _Perplexity = None
    val_perplexity_best: _Perplexity = None
    trivial_perplexity: _Perplexity = None
    train_loss: _Finite | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    step_seconds_median: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    weights_sha256: _Digest | None = None
    ledger_sha256: _Digest | None = None
    data_digest: str | None = None
    cost: dict[str, Any] = {}


class MetricsLine(_Open):
    """One evaluation."""

    epoch: _Count
    iteration: _Count | None = None
    lr: _Finite | None = None
    train_accuracy: _Percent = None
    val_accuracy: _Percent = None
    test_accuracy: _Percent = None
    train_perplexity: _Perplexity = None
    val_perplexity: _Perplexity = None
    test_perplexity: _Perplexity = None
    cp_percent: _Finite | None = None
    method: dict[str, float] = {}


class FileEntry(pydantic.BaseModel):
    """Digest and size of one file of a finished run."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    sha256: _Digest
    bytes: _Count


class Manifest(pydantic.BaseModel):
    """What a finished run's files were when it was finished.

    Attributes:
        format_version: of this file.
        run_id: the run.
        config_sha256: of the canonical JSON form of ``config.json``.
        files: every other file that belongs to the record, by name.
        sha256: of the canonical JSON form of all of the above.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    format_version: Literal[1] = 1
    run_id: str
    config_sha256: _Digest
    files: dict[str, FileEntry]
    sha256: _Digest | Literal[""] = ""


_STATUS: Final = pydantic.TypeAdapter(StatusFile)
_SUMMARY: Final = pydantic.TypeAdapter(SummaryFile)
_LINE: Final = pydantic.TypeAdapter(MetricsLine)
_MANIFEST: Final = pydantic.TypeAdapter(Manifest)
_OBJECT: Final = pydantic.TypeAdapter(dict[str, Any])


class FileDamaged(StoreError):
    """One file of a record is missing or is not what was written.

    Attributes:
        name: the file's name.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.name, self.reason = path.name, reason


def canonical(value: Any) -> bytes:
    """Return the canonical JSON form: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read_bytes(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        FileDamaged: it is missing.
        StoreError: it cannot be read.
    """
    with storing(path, "read"):
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise FileDamaged(path, "is missing") from error


def read_status(folder: Path) -> StatusFile:
    """Return ``status.json``.

    Raises:
        FileDamaged: missing or damaged.
    """
    return _read(folder / STATUS, _STATUS)


def read_summary(folder: Path) -> dict[str, Any]:
    """Return ``summary.json``, checked, as it is in the file.

    Raises:
        FileDamaged: missing or damaged.
    """
    _read(folder / SUMMARY, _SUMMARY)
    return _read(folder / SUMMARY, _OBJECT)


def read_environment(folder: Path) -> dict[str, Any]:
    """Return ``environment.json``.

    Raises:
        FileDamaged: missing or damaged.
    """
    return _read(folder / ENVIRONMENT, _OBJECT)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the last line of each epoch in ``metrics.jsonl``, ascending; an unfinished last line is not a line.

    Raises:
        FileDamaged: a finished line is not what is written there.
    """
    with storing(path, "read"):
        content = path.read_bytes() if path.exists() else b""
    by_epoch: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            epoch = read_json(_LINE, line).epoch
            by_epoch[epoch] = read_json(_OBJECT, line)
        except ValueError as error:
            raise FileDamaged(path, f"line {number} is damaged ({error})") from error
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def metrics_bytes(lines: Sequence[dict[str, Any]]) -> bytes:
    """Return the content of ``metrics.jsonl``."""
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()


def _read(path: Path, kind: pydantic.TypeAdapter[T]) -> T:
    content = read_bytes(path)
    try:
        return read_json(kind, content)
    except ValueError as error:
        raise FileDamaged(path, f"is damaged ({error})") from error


# -- the manifest ------------------------------------------------------------------------------------------------------


SEALED: Final = (ENVIRONMENT, *RESULTS, CHECKPOINT)


def write_manifest(folder: Path) -> None:
    """Write the manifest of the files that ``folder`` holds now, atomically.

    Raises:
        StoreError: the operating system refused.
    """
    manifest = Manifest(
        run_id=folder.name,
        config_sha256=_config_sha256(folder),
        files={name: _entry(folder / name) for name in SEALED if (folder / name).exists()},
    )
    value = manifest.model_dump(mode="json") | {"sha256": _own_sha256(manifest)}
    atomic_write(folder / MANIFEST, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def check_manifest(folder: Path, optional: Collection[str] = ()) -> list[FileDamaged]:
    """Compare a finished run's files with its manifest; a checkpoint that is not there is no damage.

    Args:
        folder: the run's folder, with a manifest.
        optional: names of files that are not looked at.

    Returns:
        What differs, file by file; empty if nothing does.

    Raises:
        StoreError: a file cannot be read.
    """
    try:
        manifest = _read(folder / MANIFEST, _MANIFEST)
    except FileDamaged as error:
        return [error]
    path = folder / MANIFEST
    if manifest.sha256 != _own_sha256(manifest):
        return [FileDamaged(path, "is damaged (its own SHA-256 differs)")]
    if manifest.run_id != folder.name:
        return [FileDamaged(path, f"belongs to run {manifest.run_id}")]
    found = []
    for name, entry in sorted(manifest.files.items()):
        if name in optional or (name == CHECKPOINT and not (folder / name).exists()):
            continue
        if name not in SEALED:
            found.append(FileDamaged(path, f"names {name!r}, which is no file of a record"))
        elif not (folder / name).exists():
            found.append(FileDamaged(folder / name, "is missing"))
        elif _entry(folder / name) != entry:
            found.append(FileDamaged(folder / name, "differs from its SHA-256 in manifest.json"))
    for name in RESULTS:
        if name not in manifest.files:
            found.append(FileDamaged(path, f"does not name {name}"))
    if manifest.config_sha256 != _config_sha256(folder):
        found.append(FileDamaged(folder / CONFIG, "differs from its SHA-256 in manifest.json"))
    return found


def _entry(path: Path) -> FileEntry:
    with storing(path, "read"), path.open("rb") as file:
        return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _own_sha256(manifest: Manifest) -> str:
    return hashlib.sha256(canonical(manifest.model_dump(mode="json", exclude={"sha256"}))).hexdigest()


def _config_sha256(folder: Path) -> str:
    """Digest of the config's canonical form, so that another layout of the same values is no damage."""
    content = read_bytes(folder / CONFIG)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise FileDamaged(folder / CONFIG, f"is damaged ({error})") from error
    return hashlib.sha256(canonical(value)).hexdigest()
