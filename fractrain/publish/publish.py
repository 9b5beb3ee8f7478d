"""``fractrain publish``: finished runs, their ledgers and the rendered tables go to wandb, each exactly once.

The run store is the truth; wandb gets a copy under the same id. What was sent where is remembered in ``published.json``
in the run's folder (for tables: in the wandb folder), so a second call sends only what is new or has changed.

History steps that wandb has already are never sent again: online wandb says how many it has; an offline run that
waits to be synced is replaced by its newer version, and after the sync a newer version brings only later steps. One
way to get steps twice is left: publishing a run offline, then online, and then syncing the old offline file as well.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from fractrain.engine.record import RunRecord
from fractrain.engine.store import RunStore
from fractrain.publish.public import group_name, identity_words, public_facts, run_name, shown_config
from fractrain.publish.wandb import ArtifactSpec, Mode, Payload, WandbTracker, artifact_name
from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError, StoreError
from fractrain.util.files import atomic_write
from fractrain.util.schema import parse_json

Action = Literal["created", "updated", "skipped", "failed"]

DEFAULT_DIR = Path("results/wandb")
MEMORY = "published.json"
FORMAT_VERSION = 2  # part of every digest: raise it when what is sent changes
_FIGURES = frozenset({".svg", ".pdf", ".png"})


@dataclass(frozen=True)
class Published:
    """Outcome for one run or table.

    Attributes:
        run_id: the run's id; ``table-NAME`` for a table.
        where: URL (online) or folder (offline) of the wandb run; empty where it failed.
        action: ``created``, ``updated`` (its content had changed, or wandb had the run already), ``skipped`` or
            ``failed``: nothing of it was sent, the others were.
        message: why it failed; else empty.
    """

    run_id: str
    where: str
    action: Action
    message: str = ""


def publish(
    store: RunStore, project: str, entity: str | None = None, mode: Literal["auto", "online", "offline"] = "auto",
    run_ids: Sequence[str] | None = None, tables: Iterable[Path | str] = (), *, dir: Path | str = DEFAULT_DIR,
    force: bool = False, progress: Callable[[str], None] | None = None,
) -> list[Published]:  # fmt: skip
    """Send finished runs and rendered tables to wandb.

    Args:
        entity: wandb user or team; None means ``WANDB_ENTITY``, then the default of who is logged in.
        mode: ``auto`` takes ``WANDB_MODE`` and without it ``online``.
        run_ids: only these runs, or beginnings of their ids; None means all that are done.
        tables: rendered tables (files, or folders of files). Files that differ only in their ending are one artifact;
            a ``.csv`` among them also becomes a ``wandb.Table``.
        dir: where wandb keeps its files; offline runs come to lie in ``dir/PROJECT/wandb/``.
        force: send even what is remembered as sent.
        progress: takes one line per run; by default they go to stderr.

    Returns:
        One entry per run and table, in the order of the store; a run whose record is damaged, or whose names wandb does
        not take, has ``failed``.

    Raises:
        ConfigError: wrong mode or project name, or no run of an id.
        StoreError: a file is not there, a run asked for is not done, a folder cannot be read or written, or another
            ``publish`` is at work in the same folder.
        MachineError: wandb is missing, nobody is logged in, or the server cannot be reached.
    """
    say = progress or log_line
    real_mode = resolve_mode(mode)
    entity = entity or os.environ.get("WANDB_ENTITY") or None
    target = f"{real_mode}:{entity or ''}/{project}"
    records, groups = _selected(store, run_ids, say), table_groups(tables)
    tracker = WandbTracker(project, entity, real_mode, Path(dir) / project)
    items = [_Item(r.run_id, functools.partial(run_payload, r), r.path / MEMORY) for r in records]
    items += [
        _Item(f"table-{stem}", functools.partial(table_payload, stem, files), tracker.folder / MEMORY)
        for stem, files in groups.items()
    ]
    try:
        with filelock.FileLock(tracker.folder / ".publish.lock", timeout=0):
            results = list(_publish_all(items, tracker, target, force, say))
    except filelock.Timeout as error:
        raise StoreError(f"another publish is at work in {tracker.folder}; wait, or choose another dir") from error
    if real_mode == "offline" and any(result.where for result in results):
        say(f"to send them: wandb sync {Path(dir) / project / 'wandb'}/offline-run-*")
    return results


def _publish_all(
    items: Sequence[_Item], tracker: WandbTracker, target: str, force: bool, say: Callable[[str], None]
) -> Iterator[Published]:
    """Send one after the other; what is wrong with one of them does not stop the others."""
    for number, item in enumerate(items, start=1):
        try:
            result, note = _publish_one(tracker, item.make(), item.memory, target, force)
        except (ConfigError, StoreError) as error:
            result, note = Published(item.name, "", "failed", str(error)), ""
        say(f"[{number}/{len(items)}] {result.run_id}: {result.action}, {result.message or result.where}{note}")
        yield result


@dataclass(frozen=True)
class _Item:
    """One run or table to send: its name, what makes its payload, and where it is remembered."""

    name: str
    make: Callable[[], Payload]
    memory: Path


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


def run_payload(record: RunRecord) -> Payload:
    """Return what is sent for a finished run.

    Of the config all but settings that are paths; of summary and metrics the numbers, and the texts in
    :data:`fractrain.publish.public.PUBLIC_TEXTS`: what a machine is called is in no such field.

    Raises:
        StoreError: the record is damaged.
    """
    if record.status == "damaged":
        raise StoreError(record.message)
    config = record.config
    return Payload(
        id=record.run_id,
        name=run_name(config),
        job_type="train",
        group=group_name(config),
        tags=tuple(identity_words(config)),
        config=shown_config(config),
        history=[(int(row["epoch"]), public_facts(row)) for row in record.metrics()],
        summary=_summary(record),
        artifacts=(ArtifactSpec(artifact_name(f"ledger-{record.run_id}"), "ledger", (record.path / "ledger.json",)),),
    )


def table_groups(tables: Iterable[Path | str]) -> dict[str, tuple[Path, ...]]:
    """Return the files of rendered tables and figures, grouped by their name without the ending.

    Raises:
        StoreError: a file is not there.
    """
    groups: dict[str, list[Path]] = {}
    for path in map(Path, tables):
        if not path.exists():
            raise StoreError(f"table {path} is not there; render it with `fractrain table NAME`")
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file() and not file.name.startswith((".", "README")):
                groups.setdefault(file.stem, []).append(file)
    return {stem: tuple(sorted(set(files))) for stem, files in sorted(groups.items())}


def _summary(record: RunRecord) -> dict[str, Any]:
    """The run's own summary, the cost figures of its ledger (MACs, cp, BitOPs ... ``@best`` and ``@end``), its hash."""
    from fractrain.cost.metrics import summarize  # loads torch

    summary = {key: value for key, value in public_facts(record.summary or {}).items() if key != "cost"}
    ledger = record.ledger()
    cost = summarize(ledger, best_epoch=summary["best_test_epoch"]).as_dict()  # where published costs count to
    known = {key: value for key, value in cost.items() if value is not None}
    return {"ledger_sha256": ledger.digest(), **known, **summary}


def table_payload(stem: str, files: tuple[Path, ...]) -> Payload:
    """Return what is sent for one rendered table or figure.

    Raises:
        StoreError: a CSV file among them is not a table.
    """
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    for file in (f for f in files if f.suffix == ".csv"):
        with file.open(newline="", encoding="utf-8") as stream:
            columns, *rest = [tuple(line) for line in csv.reader(stream)] or [()]
        rows = tuple(rest)
        if any(len(row) != len(columns) for row in rows):
            raise StoreError(f"table {file}: rows of different length; render it again")
    kind = "figure" if not columns and any(f.suffix in _FIGURES for f in files) else "table"
    artifact = ArtifactSpec(artifact_name(stem), kind, files, columns, rows)
    return Payload(
        artifact_name(f"{kind}-{stem}"), stem, kind, kind, (kind,), {kind: stem}, (), {"rows": len(rows)}, (artifact,),
        tuple(file for file in files if file.suffix == ".png"),
    )  # fmt: skip


def _selected(store: RunStore, run_ids: Sequence[str] | None, say: Callable[[str], None]) -> list[RunRecord]:
    """The runs to send; damaged ones are among them, and fail when their turn comes."""
    if run_ids is not None:
        chosen = {record.run_id: record for record in map(store.find, run_ids)}
        for record in chosen.values():
            if record.status not in ("done", "damaged"):
                raise StoreError(f"run {record.run_id} is {record.status}; only runs that are done are published")
        return list(chosen.values())
    records = list(store.records())
    for record in (r for r in records if r.status not in ("done", "damaged")):
        say(f"{record.run_id}: not published, its status is {record.status}")
    return [r for r in records if r.status in ("done", "damaged")]


def _publish_one(
    tracker: WandbTracker, payload: Payload, memory: Path, target: str, force: bool
) -> tuple[Published, str]:
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


def _steps_synced(tracker: WandbTracker, entry: Mapping[str, Any] | None, run_id: str) -> int:
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
    parts += [f"image {file.name}" for file in payload.images]
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
        targets = parse_json(path.read_bytes())["targets"]
        return {key: {name: kind(entry[name]) for name, kind in kinds.items()} for key, entry in targets.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read; delete it and publish again") from error
