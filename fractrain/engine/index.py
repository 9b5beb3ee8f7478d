"""The index of a run store: what lists and reports need of thousands of runs, in one file instead of four per run.

``<root>/.index.json`` is a cache and nothing else: it may be deleted, and a store that cannot be written works without
it. An entry is used as long as the run's folder and the files of its record have the time stamps and sizes that it was
made with. So a refresh looks at every folder but opens the files of changed runs alone. The index holds its own digest:
one that was changed is made anew.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fractrain.engine.config import group_id
from fractrain.engine.record import RecordStatus
from fractrain.engine.record_files import CHECKPOINT, CONFIG, MANIFEST, SEALED, canonical
from fractrain.engine.store import RunRecord, RunStore
from fractrain.util.errors import FractrainError, StoreError
from fractrain.util.files import atomic_write, storing
from fractrain.util.schema import parse_json

INDEX_NAME: Final = ".index.json"
INDEX_VERSION: Final = 2
_FILES: Final = (CONFIG, MANIFEST, *(name for name in SEALED if name != CHECKPOINT))

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunEntry:
    """What the index holds of one run.

    Attributes:
        group: the same for runs that differ in nothing but the seed.
        status, message, time: how and when (ISO 8601, UTC) it ended; empty if that is not known.
        method, model, dataset, setting, profile, seed: of its configuration.
        method_version: likewise.
        settings: the method's settings, complete.
        recipe: length and optimizer settings.
        device: what it was trained on.
        summary: its result; None unless the status is ``done``.
    """

    run_id: str
    group: str
    status: RecordStatus
    message: str
    time: str
    method: str
    method_version: int
    model: str
    dataset: str
    setting: str
    profile: str
    seed: int
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    device: str
    summary: Mapping[str, Any] | None

    @classmethod
    def from_record(cls, record: RunRecord) -> RunEntry:
        """The entry of a stored run."""
        c = record.config
        values = c.model_dump(mode="json", include={"settings", "recipe"})
        return cls(
            run_id=record.run_id, group=group_id(c), status=record.status, message=record.message,
            time=_last_change(record.path), method=c.method, method_version=c.method_version, model=c.model,
            dataset=c.public_dataset, setting=c.setting, profile=c.profile, seed=c.seed, settings=values["settings"],
            recipe=values["recipe"], device=str(record.environment.get("gpu") or record.environment.get("cpu") or ""),
            summary=complete_summary(record),
        )  # fmt: skip


def complete_summary(record: RunRecord) -> dict[str, Any] | None:
    """Return the summary of a run; costs that a release of before did not write are computed from the ledger."""
    summary = record.summary
    if summary is None or "cost_percent@end" in (summary.get("cost") or {}):
        return summary
    from fractrain.cost.metrics import summarize

    try:
        return {**summary, "cost": summarize(record.ledger(), int(summary["best_test_epoch"])).as_dict()}
    except (FractrainError, KeyError) as error:
        _log.warning("%s: no costs: %s", record.run_id, error)
        return summary


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Look for no reference cycles inside the block: for work of seconds that makes millions of values and keeps them.

    Every full look visits all of them, which is a seventh of a report's time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@without_collector()
def read_index(store: RunStore) -> list[RunEntry]:
    """Return an entry for every run of the store, by id; what is not yet in its index is read and added.

    A damaged run has the status ``damaged`` and no summary; one whose configuration cannot be read is named in a
    warning and left out.
    """
    known = _load(store.root / INDEX_NAME)
    found: dict[str, tuple[list[int], RunEntry]] = {}
    changed = False
    for name, stamp in _stamps(store.root):
        if name in known and known[name][0] == stamp:
            found[name] = known[name]
            continue
        try:
            record = store.get(name)
        except StoreError as error:
            _log.warning("left out: %s", error)
            continue
        if record is not None and record.known_config is None:
            _log.warning("left out: %s: %s", record.path, record.message)
        elif record is not None:
            found[name] = (stamp, RunEntry.from_record(record))
            changed = True
    if changed or found.keys() != known.keys():
        _save(store.root / INDEX_NAME, found)
    return [entry for _, entry in found.values()]


def _stamps(root: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and time stamps of each folder of the store, by name."""
    if not root.is_dir():
        return
    with storing(root, "read"):
        folders = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    for name in folders:
        folder = f"{root}/{name}"  # text: joining paths takes longer than asking the file system
        try:
            own = os.stat(folder)
        except OSError:  # deleted since
            continue
        stamps = [own.st_mtime_ns]
        for file in _FILES:
            with contextlib.suppress(OSError):  # not there
                found = os.stat(f"{folder}/{file}")
                stamps += [found.st_mtime_ns, found.st_size]
        yield name, stamps


def _last_change(path: Path) -> str:
    try:
        return str(json.loads((path / "status.json").read_bytes()).get("time", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _load(path: Path) -> dict[str, tuple[list[int], RunEntry]]:
    """The index as it was left; empty where there is none that this release can read."""
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        header = parse_json(line)
        if header["version"] != INDEX_VERSION or header["sha256"] != hashlib.sha256(body).hexdigest():
            return {}
        return {name: (stamp, RunEntry(run_id=name, **entry)) for name, (stamp, entry) in json.loads(body).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _save(path: Path, found: Mapping[str, tuple[list[int], RunEntry]]) -> None:
    """Write a header line (version, SHA-256 of what follows) and the entries."""
    body = json.dumps({name: [stamp, _without_id(entry)] for name, (stamp, entry) in found.items()}).encode()
    header = canonical({"version": INDEX_VERSION, "sha256": hashlib.sha256(body).hexdigest()})
    try:
        atomic_write(path, header + b"\n" + body)
    except StoreError as error:  # a store that may only be read, or a full disk: slower, not wrong
        _log.debug("no index: %s", error)


def _without_id(entry: RunEntry) -> dict[str, Any]:
    values = asdict(entry)
    del values["run_id"]
    return values
