"""``fractrain publish``: finished runs, their ledgers and the rendered tables go to wandb, each exactly once.

The run store is the truth; wandb gets a copy under the same id. What was sent where is remembered in ``published.json``
in the run's folder (for tables: in the wandb folder), so a second call sends only what is new or has changed.

History steps that wandb has already are never sent again: online wandb says how many it has; an offline run that
waits to be synced is replaced by its newer version, and after the sync a newer version brings only later steps. One
way to get steps twice is left: publishing a run offline, then online, and then syncing the old offline file as well.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, Protocol

import filelock

from fractrain.publish.wandb import ArtifactSpec, Mode, Payload, Tracker, WandbTracker
from fractrain.util.errors import ConfigError, StoreError, did_you_mean
from fractrain.util.files import atomic_write

Action = Literal["created", "updated", "skipped"]

DEFAULT_DIR = Path("results/wandb")
MEMORY = "published.json"
FORMAT_VERSION = 1  # part of every digest: raise it when what is sent changes
_FIGURES = frozenset({".svg", ".pdf", ".png"})


class Record(Protocol):
    """What is used of a stored run."""

    @property
    def run_id(self) -> str:
        """The run's id, and wandb's."""

    @property
    def path(self) -> Path:
        """The run's folder."""

    @property
    def config(self) -> Any:
        """A pydantic model."""

    @property
    def status(self) -> str:
        """Only runs that are ``done`` are published."""

    @property
    def summary(self) -> Mapping[str, Any] | None:
        """Accuracies, hashes, best epoch."""

    def metrics(self) -> Sequence[Mapping[str, Any]]:
        """One line per epoch, ascending."""

    def ledger(self) -> Any:
        """Counted work."""


class Store(Protocol):
    """What is used of the run store."""

    def records(self) -> Iterable[Record]:
        """All runs."""


@dataclass(frozen=True)
class Published:
    """Outcome for one run or table.

    Attributes:
        run_id: the run's id; ``table-NAME`` for a table.
        where: URL (online) or folder (offline) of the wandb run.
        action: ``created``, ``updated`` (its content had changed, or wandb had the run already) or ``skipped``.
    """

    run_id: str
    where: str
    action: Action


def publish(
    store: Store,
    project: str,
    entity: str | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
    run_ids: Sequence[str] | None = None,
    tables: Iterable[Path | str] = (),
    *,
    dir: Path | str = DEFAULT_DIR,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Published]:
    """Send finished runs and rendered tables to wandb.

    Args:
        store: the run store.
        project: wandb project.
        entity: wandb user or team; None means ``WANDB_ENTITY``, then the default of who is logged in.
        mode: ``auto`` takes ``WANDB_MODE`` and without it ``online``.
        run_ids: only these runs; None means all that are done.
        tables: rendered tables (files, or folders of files). Files that differ only in their ending are one artifact;
            a ``.csv`` among them also becomes a ``wandb.Table``.
        dir: where wandb keeps its files; offline runs come to lie in ``dir/PROJECT/wandb/``.
        force: send even what is remembered as sent.
        progress: takes one line per run; by default they go to stderr.

    Returns:
        One entry per run and table, in the order of the store.

    Raises:
        ConfigError: wrong mode or project name.
        StoreError: a run id or file is not there, a run is not done, a folder cannot be read or written, or another
            ``publish`` is at work in the same folder.
        MachineError: wandb is missing, nobody is logged in, or the server cannot be reached.
    """
    say = progress or _to_stderr
    real_mode = resolve_mode(mode)
    entity = entity or os.environ.get("WANDB_ENTITY") or None
    target = f"{real_mode}:{entity or ''}/{project}"
    items = [(run_payload(record), record.path / MEMORY) for record in _selected(store, run_ids, say)]
    tracker = WandbTracker(project, entity, real_mode, Path(dir) / project)
    items += [(payload, tracker.folder / MEMORY) for payload in table_payloads(tables)]
    results = []
    try:
        with filelock.FileLock(tracker.folder / ".publish.lock", timeout=0):
            for number, (payload, memory) in enumerate(items, start=1):
                result, note = _publish_one(tracker, payload, memory, target, force)
                say(f"[{number}/{len(items)}] {result.run_id}: {result.action}, {result.where}{note}")
                results.append(result)
    except filelock.Timeout as error:
        raise StoreError(f"another publish is at work in {tracker.folder}; wait, or choose another dir") from error
    if real_mode == "offline" and results:
        say(f"to send them: wandb sync {Path(dir) / project / 'wandb'}/offline-run-*")
    return results


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def resolve_mode(mode: str) -> Mode:
    """Return ``online`` or ``offline``; ``auto`` asks ``WANDB_MODE``.

    Raises:
        ConfigError: neither of them, or ``WANDB_MODE`` switches wandb off.
    """
    origin = "mode"
    if mode == "auto":
        origin, mode = "WANDB_MODE", os.environ.get("WANDB_MODE") or "online"
    if mode == "online":
        return "online"
    if mode in ("offline", "dryrun"):
        return "offline"
    raise ConfigError(f"{origin} is {mode!r}, publishing knows online and offline")


def run_payload(record: Record) -> Payload:
    """Return what is sent for a finished run; paths, host and home names in it are left out.

    Raises:
        StoreError: the run's folder is incomplete.
    """
    config = public(record.config.model_dump(mode="json"))
    words = [str(config[key]) for key in ("method", "model", "dataset", "profile")]
    return Payload(
        id=record.run_id,
        name=" ".join([*words, f"seed {config['seed']}"]),
        job_type="train",
        group=" ".join(words),
        tags=tuple(words),
        config=config,
        history=_history(record.metrics()),
        summary=_summary(record),
        artifacts=(ArtifactSpec(f"ledger-{record.run_id}", "ledger", (record.path / "ledger.json",)),),
    )


def table_payloads(tables: Iterable[Path | str]) -> list[Payload]:
    """Return one payload per rendered table or figure, files grouped by their name without the ending.

    Raises:
        StoreError: a file is not there, or a CSV file is not a table.
    """
    groups: dict[str, list[Path]] = {}
    for path in map(Path, tables):
        if not path.exists():
            raise StoreError(f"table {path} is not there; render it with `fractrain table NAME`")
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file() and not file.name.startswith((".", "README")):
                groups.setdefault(file.stem, []).append(file)
    return [_table_payload(stem, tuple(sorted(set(files)))) for stem, files in sorted(groups.items())]


def public(value: Any) -> Any:
    """Return ``value`` as plain JSON-able data, without entries that name a path, the host or the user's home."""
    if isinstance(value, Mapping):
        return {str(key): public(item) for key, item in value.items() if not _private(item)}
    if isinstance(value, list | tuple):
        return [public(item) for item in value if not _private(item)]
    return value


def _private(value: Any) -> bool:
    if isinstance(value, Path):
        return True
    if not isinstance(value, str):
        return False
    if value.startswith("~") or Path(value).is_absolute() or PureWindowsPath(value).is_absolute():
        return True
    home, host = str(Path.home()), socket.gethostname()
    return (len(home) > 1 and home in value) or (bool(host) and bool(re.search(rf"\b{re.escape(host)}\b", value)))


def _summary(record: Record) -> dict[str, Any]:
    """The run's own summary, the cost figures of its ledger (MACs, cp, BitOPs ... ``@best`` and ``@end``), its hash."""
    from fractrain.cost.metrics import summarize  # loads torch

    summary = {key: value for key, value in public(record.summary or {}).items() if key != "cost"}
    best_epoch = summary.get("best_test_epoch")  # published costs count to the best test accuracy
    if best_epoch is None:
        raise StoreError(f"{record.path / 'summary.json'}: no best_test_epoch; delete the run's folder to run it again")
    ledger = record.ledger()
    cost = summarize(ledger, best_epoch=int(best_epoch)).as_dict()
    known = {key: value for key, value in cost.items() if value is not None and value != ""}
    return {"ledger_sha256": ledger.digest(), **known, **summary}


def _history(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """One row per epoch, ascending."""
    return [(int(row["epoch"]), public(row)) for row in metrics]


def _table_payload(stem: str, files: tuple[Path, ...]) -> Payload:
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    for file in (f for f in files if f.suffix == ".csv"):
        with file.open(newline="", encoding="utf-8") as stream:
            columns, *rest = [tuple(line) for line in csv.reader(stream)] or [()]
        rows = tuple(rest)
        if any(len(row) != len(columns) for row in rows):
            raise StoreError(f"table {file}: rows of different length; render it again")
    kind = "figure" if not columns and any(f.suffix in _FIGURES for f in files) else "table"
    artifact = ArtifactSpec(stem, kind, files, columns, rows)
    return Payload(f"{kind}-{stem}", stem, kind, kind, (kind,), {kind: stem}, (), {"rows": len(rows)}, (artifact,))


def _selected(store: Store, run_ids: Sequence[str] | None, say: Callable[[str], None]) -> list[Record]:
    records = list(store.records())
    if run_ids is None:
        for record in (r for r in records if r.status != "done"):
            say(f"{record.run_id}: not published, its status is {record.status}")
        return [r for r in records if r.status == "done"]
    by_id = {r.run_id: r for r in records}
    for run_id in run_ids:
        if run_id not in by_id:
            raise StoreError(f"no run {run_id!r} in the run store{did_you_mean(run_id, by_id)}")
        if by_id[run_id].status != "done":
            raise StoreError(f"run {run_id} is {by_id[run_id].status}; only runs that are done are published")
    return [by_id[run_id] for run_id in dict.fromkeys(run_ids)]


def _publish_one(tracker: Tracker, payload: Payload, memory: Path, target: str, force: bool) -> tuple[Published, str]:
    """Send one payload unless it is there, and remember it; return the outcome and a note for the progress line."""
    remembered = _read_memory(memory)
    mode, place = target.split(":", 1)
    key = f"{target} {payload.id}"
    entry = remembered.get(key)
    digest = content_digest(payload)
    if entry and entry["digest"] == digest and not force:
        return Published(payload.id, entry["where"], "skipped"), ""
    first = 0
    if mode == "offline":
        online = remembered.get(f"online:{place} {payload.id}")
        first = max(online["steps"] if online else 0, _steps_synced(tracker, entry, payload.id))
    sent = tracker.send(payload, first)
    steps = 1 + max((step for step, _ in payload.history), default=-1)
    there = sent.steps_there
    remembered[key] = {"digest": digest, "where": sent.where, "steps": max(steps, there), "before": there}
    text = json.dumps({"version": FORMAT_VERSION, "targets": remembered}, indent=1, sort_keys=True) + "\n"
    atomic_write(memory, text.encode())
    action: Action = "updated" if entry or sent.resumed else "created"
    note = f" ({there} history steps were there and stay as they are)" if there else ""
    return Published(payload.id, sent.where, action), note


def _steps_synced(tracker: Tracker, entry: Mapping[str, Any] | None, run_id: str) -> int:
    """History steps that went out with offline runs: all of them once the last one waits no more."""
    if entry is None:
        return 0
    return int(entry["before"] if tracker.pending(run_id) else entry["steps"])


def content_digest(payload: Payload) -> str:
    """SHA-256 of everything that is sent, file contents included.

    Raises:
        StoreError: a file cannot be read.
    """
    parts: list[Any] = [FORMAT_VERSION, payload.config, payload.history, payload.summary, payload.name, payload.tags]
    for artifact in payload.artifacts:
        for file in artifact.files:
            try:
                parts.append([artifact.name, file.name, hashlib.sha256(file.read_bytes()).hexdigest()])
            except OSError as error:
                raise StoreError(f"cannot read {file}: {error.strerror}") from error
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _read_memory(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    kinds = {"digest": str, "where": str, "steps": int, "before": int}
    try:
        targets = json.loads(path.read_text(encoding="utf-8"))["targets"]
        return {key: {name: kind(entry[name]) for name, kind in kinds.items()} for key, entry in targets.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read; delete it and publish again") from error
