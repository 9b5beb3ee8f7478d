"""The run store: one folder per run, readable by anything that reads JSON, written so that a crash never spoils it.

A run's folder ``<root>/<run id>/`` holds ``config.json``, ``environment.json``, ``metrics.jsonl`` (one line per epoch,
only ever appended to), ``ledger.json``, ``status.json``, ``summary.json`` and the checkpoints. A run is a result only
when its status is ``done``: that is written last, and a summary found beside any other status is not shown.

Two writers: the first holds the lock of the run's folder, the second gets a :class:`StoreError` (or waits, if it asked
to). The lock belongs to the process: when the writer dies, the operating system releases it.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import filelock

from fractrain.engine.config import RunConfig
from fractrain.engine.site import LOCK_PATIENCE_S
from fractrain.util.errors import ConfigError, StoreError
from fractrain.util.files import append_line, atomic_write, drop_torn_line, storing

if TYPE_CHECKING:
    from fractrain.cost.ledger import Ledger

Status = Literal["running", "done", "failed", "diverged", "interrupted"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
DEFAULT_ROOT: Final = Path("results/runs")
LOCK_NAME: Final = ".lock"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """What the store holds of one run.

    Attributes:
        run_id: the run's id.
        path: its folder.
        config: what was run.
        status: ``running`` also stands for a run that was killed; the same command goes on with it.
        summary: the result; None unless the status is ``done``.
        environment: versions and machine of the last start; those of earlier starts under ``earlier``.
        message: one line on why it is not done, or empty.
    """

    run_id: str
    path: Path
    config: RunConfig
    status: Status
    summary: dict[str, Any] | None
    environment: dict[str, Any] = field(default_factory=dict)
    message: str = ""

    def metrics(self) -> list[dict[str, Any]]:
        """Return one line per epoch, ascending. A resumed run repeats lines: the last one of an epoch counts.

        Raises:
            StoreError: the file is damaged.
        """
        return read_metrics(self.path / "metrics.jsonl")

    def ledger(self) -> Ledger:
        """Return the run's ledger.

        Raises:
            StoreError: there is none, or it cannot be read.
        """
        from fractrain.cost.ledger import Ledger

        ledger = Ledger()
        path = self.path / "ledger.json"
        state = _read_json(path)
        try:
            ledger.load_state_dict(state)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: {error}; delete the folder to run it again") from error
        return ledger


class RunStore:
    """All runs under one folder.

    Args:
        root: the folder; None means the environment variable ``FRACTRAIN_RESULTS``, else ``results/runs``.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root if root is not None else os.environ.get("FRACTRAIN_RESULTS") or DEFAULT_ROOT)

    def path(self, run_id: str) -> Path:
        """Folder of a run, whether it exists or not."""
        return self.root / run_id

    def get(self, run_id: str) -> RunRecord | None:
        """Return a run, or None when the store has none of that id.

        Raises:
            StoreError: its folder is damaged or belongs to another run.
        """
        path = self.path(run_id)
        if not (path / "config.json").exists():
            return None
        config = _read_config(path)
        status = _read_json(path / "status.json", default={"status": "running"})
        if status.get("status") not in STATUSES:
            raise StoreError(f"{path / 'status.json'}: unknown status {status.get('status')!r}; delete the folder")
        done = status["status"] == "done"
        return RunRecord(
            run_id=run_id,
            path=path,
            config=config,
            status=status["status"],
            summary=_read_json(path / "summary.json") if done else None,
            environment=_read_json(path / "environment.json", default={}),
            message=str(status.get("message", "")),
        )

    def records(self) -> Iterator[RunRecord]:
        """Yield all runs, by id. A folder that is damaged or foreign is named in a warning and left out."""
        if not self.root.is_dir():
            return
        with storing(self.root, "read"):
            names = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir())
        for name in names:
            try:
                record = self.get(name)
            except StoreError as error:
                _log.warning("left out: %s", error)
                continue
            if record is not None:
                yield record

    def open(self, config: RunConfig, wait_s: float = LOCK_PATIENCE_S) -> RunWriter:
        """Return a writer for a run; use it as a context manager.

        Args:
            config: the run.
            wait_s: seconds to wait for another writer of the same run; negative means as long as it takes.
        """
        return RunWriter(self.path(config.run_id), config, wait_s)


class RunWriter:
    """The only process that may write a run's folder, while the ``with`` block lasts.

    Raises:
        StoreError: on entering: another writer is at it, no permission, foreign content, another run's config.
    """

    def __init__(self, path: Path, config: RunConfig, wait_s: float) -> None:
        self.path = path
        self.config = config
        self._wait_s = wait_s
        self._lock = filelock.FileLock(path / LOCK_NAME, timeout=wait_s)

    def __enter__(self) -> RunWriter:
        with storing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(poll_interval=0.05)
            except filelock.Timeout as error:
                raise StoreError(
                    f"run {self.path.name} is being written by another process: wait for it, or stop it"
                ) from error
        try:
            self._prepare()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def _prepare(self) -> None:
        with storing(self.path):
            for leftover in self.path.glob(".*.tmp"):  # of a writer that was killed; we hold the lock
                leftover.unlink()
            present = sorted(entry.name for entry in self.path.iterdir() if entry.name != LOCK_NAME)
        if "config.json" in present:
            _read_config(self.path)
        elif present:
            raise StoreError(f"{self.path} holds {present[0]!r} but no config.json: not a run, move the folder away")
        else:
            atomic_write(self.path / "config.json", self.config.to_json().encode())
        drop_torn_line(self.path / "metrics.jsonl")

    def set_status(self, status: Status, message: str = "", **facts: Any) -> None:
        """Write ``status.json``; ``message`` is one line, ``facts`` are for example the step and the layer."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._json("status.json", {"status": status, "message": message, "time": now, **facts})

    def start(self, environment: dict[str, Any]) -> None:
        """Record a start of the run: status ``running``, and the environment if it is not the last start's."""
        path = self.path / "environment.json"
        last = _read_json(path, default={})
        earlier = last.pop("earlier", [])
        if last and last != environment:
            earlier = [*earlier, last]
        self._json("environment.json", {**environment, "earlier": earlier})
        self.set_status("running")

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append one epoch's line to ``metrics.jsonl`` and bring it to the disk."""
        append_line(self.path / "metrics.jsonl", json.dumps(line, sort_keys=True))

    def metrics(self) -> list[dict[str, Any]]:
        """Return what :meth:`RunRecord.metrics` returns."""
        return read_metrics(self.path / "metrics.jsonl")

    def write_ledger(self, state: dict[str, Any]) -> None:
        """Write ``ledger.json`` from ``Ledger.state_dict()``."""
        atomic_write(self.path / "ledger.json", json.dumps(state, separators=(",", ":"), sort_keys=True).encode())

    def finish(self, summary: dict[str, Any], ledger: dict[str, Any]) -> None:
        """Make the run a result: ledger, then summary, then status ``done``."""
        self.write_ledger(ledger)
        self._json("summary.json", summary)
        self.set_status("done")

    def discard(self) -> None:
        """Forget all but the config, so that the run starts from the beginning (``--force``)."""
        self.set_status("running")
        with storing(self.path, "empty"):
            found = [e for e in self.path.iterdir() if e.name not in ("config.json", "status.json", LOCK_NAME)]
            # Checkpoints first: killed in between, the run must not go on from one without its metrics.
            for entry in sorted(found, key=lambda e: not e.name.startswith("checkpoint")):
                entry.unlink()

    def _json(self, name: str, value: dict[str, Any]) -> None:
        atomic_write(self.path / name, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the last line of each epoch in ``metrics.jsonl``, ascending; an unfinished last line is not a line.

    Raises:
        StoreError: a finished line is not JSON, or the file cannot be read.
    """
    with storing(path, "read"):
        content = path.read_bytes() if path.exists() else b""
    by_epoch: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line)
            by_epoch[int(value["epoch"])] = value
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}, line {number} is damaged; delete the folder to run it again") from error
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if not path.exists():
        if default is not None:
            return default
        raise StoreError(f"{path} is missing; delete the folder to run it again")
    with storing(path, "read"):
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); delete the folder to run it again") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} is damaged (not a JSON object); delete the folder to run it again")
    return value


def _read_config(folder: Path) -> RunConfig:
    path = folder / "config.json"
    with storing(path, "read"):
        text = path.read_bytes()
    try:
        config = RunConfig.from_json(text, str(path))
    except ConfigError as error:
        raise StoreError(f"{error}; move {folder} away to run it again") from error
    if config.run_id != folder.name:
        raise StoreError(f"{path} belongs to run {config.run_id}, not to this folder: move {folder} away")
    return config
