"""The run store: one folder per run, readable by anything that reads JSON, written so that a crash never spoils it.

A run's folder ``<root>/<run id>/`` holds ``config.json``, ``environment.json``, ``metrics.jsonl`` (one line per epoch),
``ledger.json``, ``status.json``, ``summary.json``, the checkpoints and, last, ``manifest.json``. A run is a result only
when its status is ``done`` and its files agree with the manifest (:mod:`fractrain.engine.record`): a summary found
beside any other status is not shown.

Two writers: the first holds the lock of the run's folder, the second gets a :class:`StoreError` (or waits, if it asked
to). The lock belongs to the process: when the writer dies, the operating system releases it. A file system without such
locks is refused: a file that stands for a lock would outlive a dead node, and nobody could go on with its run.

A network file system gives the lock of a node that is cut off to the next writer, and that node may come back. So every
writer leaves a token of its own in the folder and looks for it before it replaces or appends to a file: one that finds
another's, or none, stops. Not covered: a process that is halted for so long between that look and the rename itself.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import uuid
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import filelock

from fractrain.engine import record_files as files
from fractrain.engine.config import RunConfig
from fractrain.engine.record import RunRecord, read_config, read_record
from fractrain.engine.record_files import SEALED, FileDamaged, Status, write_manifest
from fractrain.engine.site import LOCK_PATIENCE_S
from fractrain.util.errors import ConfigError, StoreError, did_you_mean
from fractrain.util.files import append_line, atomic_write, drop_torn_line, storing

DEFAULT_ROOT: Final = Path("results/runs")
LOCK_NAME: Final = ".lock"
OWNER_NAME: Final = ".owner"

_WRITERS: Final = (LOCK_NAME, OWNER_NAME)

_log = logging.getLogger(__name__)


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

        A folder that is damaged, or holds something else, gives a record of status ``damaged`` whose message says why.

        Raises:
            StoreError: the folder cannot be looked into.
        """
        path = self.path(run_id)
        return read_record(path) if _names(path) else None

    def ids(self, but: Collection[str] = ()) -> list[str]:
        """Return the ids of all runs, sorted: the folders with any file of a run's record.

        Args:
            but: ids that are left out; their folders are not looked into.

        Raises:
            StoreError: the store cannot be looked into.
        """
        if not self.root.is_dir():
            return []
        known = {files.CONFIG, files.MANIFEST, *SEALED}
        with storing(self.root, "read"):
            names = sorted(entry.name for entry in os.scandir(self.root) if entry.name not in but and entry.is_dir())
        return [name for name in names if known.intersection(_names(self.root / name))]

    def records(self) -> Iterator[RunRecord]:
        """Yield all runs, by id; a damaged one as :meth:`get` gives it."""
        for run_id in self.ids():
            record = self.get(run_id)
            if record is not None:
                yield record

    def find(self, text: str) -> RunRecord:
        """Return the run whose id is ``text``, or alone begins with it or ends in that hash.

        Raises:
            ConfigError: there is none, or more than one.
        """
        names = self.ids()
        alike = (name for name in names if text and (name.startswith(text) or name.endswith(f"-{text}")))
        matching = [text] if text in names else list(alike)
        if not matching:
            near = did_you_mean(text, names)
            raise ConfigError(
                f"no run {text!r} in {self.root}{near}; it holds {len(names)} (--results: another folder)"
            )
        if len(matching) > 1:
            some = ", ".join(matching[:4]) + (", ..." if len(matching) > 4 else "")
            raise ConfigError(f"{text!r} is the beginning of {len(matching)} runs: {some}; give more of the id")
        record = self.get(matching[0])
        if record is None:
            raise ConfigError(f"run {matching[0]} has just vanished from {self.root}")
        return record

    def open(self, config: RunConfig, wait_s: float = LOCK_PATIENCE_S) -> RunWriter:
        """Return a writer for a run; use it as a context manager.

        Args:
            wait_s: seconds to wait for another writer of the same run; negative means as long as it takes.
        """
        return RunWriter(self.path(config.run_id), config, wait_s)


class RunWriter:
    """The only process that may write a run's folder, while the ``with`` block lasts.

    Raises:
        StoreError: on entering: another writer is at it, no permission, foreign content, another run's config. On
            writing: no permission, or another writer took the run over (:meth:`check_owner`).
    """

    def __init__(self, path: Path, config: RunConfig, wait_s: float) -> None:
        self.path = path
        self.config = config
        self._wait_s = wait_s
        self._lock = filelock.FileLock(path / LOCK_NAME, timeout=wait_s)
        self._token = uuid.uuid4().hex.encode()

    def __enter__(self) -> RunWriter:
        with storing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._acquire()
            except filelock.Timeout as error:
                raise StoreError(
                    f"run {self.path.name} is being written by another process: wait for it, or stop it"
                ) from error
        try:
            self._prepare()
            atomic_write(self.path / OWNER_NAME, self._token)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(StoreError, OSError):
            self.check_owner()
            (self.path / OWNER_NAME).unlink()
        self._lock.release()

    def check_owner(self) -> None:
        """Make sure that the run is still this writer's.

        Raises:
            StoreError: another writer took it over.
        """
        try:
            owner = (self.path / OWNER_NAME).read_bytes()
        except FileNotFoundError:
            if not self.path.is_dir():
                return  # somebody deleted the folder: the write says so
            owner = b""
        except OSError as error:
            raise StoreError(f"cannot read {self.path / OWNER_NAME}: {error.strerror}") from error
        if owner != self._token:
            raise StoreError(
                f"run {self.path.name} was taken over by another process while this one was cut off from the store: "
                "this one stops and leaves it alone"
            )

    def _acquire(self) -> None:
        """Take the lock.

        Raises:
            OSError: the file system has none; filelock would put a file in its place, with a warning.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._lock.acquire(poll_interval=0.05)
        except NotImplementedError as error:  # older releases of filelock
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
        if isinstance(self._lock, filelock.SoftFileLock):
            self._lock.release()
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def _prepare(self) -> None:
        with storing(self.path):
            for leftover in self.path.glob(".*.tmp"):  # of a writer that was killed; we hold the lock
                leftover.unlink()
        present = _names(self.path)
        try:
            if present:
                read_config(self.path)
        except FileDamaged as error:
            if error.reason.startswith("belongs to"):
                raise StoreError(f"{error}: move {self.path} away") from error
            self._check_own(present)
            _log.warning("%s: it is written anew", error)
            present = []
        if not present:
            atomic_write(self.path / files.CONFIG, self.config.to_json().encode())
        drop_torn_line(self.path / files.METRICS)

    def _check_own(self, present: Sequence[str]) -> None:
        """Refuse a folder that is named like the run but holds something else."""
        foreign = [name for name in present if name not in (files.CONFIG, files.MANIFEST, *SEALED)]
        if len(foreign) == len(present):
            raise StoreError(f"{self.path} holds {foreign[0]!r} but no config.json: not a run, move the folder away")

    def set_status(self, status: Status, message: str = "", **facts: Any) -> None:
        """Write ``status.json``; ``message`` is one line, ``facts`` are for example the step and the layer."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._json(files.STATUS, {"status": status, "message": message, "time": now, **facts})
        manifest = self.path / files.MANIFEST
        with storing(manifest, "delete"):
            if manifest.exists():  # that of the result that was there before
                manifest.unlink()

    def start(self, environment: dict[str, Any]) -> None:
        """Record a start of the run: status ``running``, and the environment if it is not the last start's."""
        try:
            last = files.read_environment(self.path)
        except FileDamaged as error:
            if error.reason != "is missing":
                _log.warning("%s: it is written anew", error)
            last = {}
        earlier = last.pop("earlier", [])
        if last and last != environment:
            earlier = [*earlier, last] if isinstance(earlier, list) else [last]
        self._json(files.ENVIRONMENT, {**environment, "earlier": earlier})
        self.set_status("running")

    def write_metrics(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write ``metrics.jsonl`` anew: the lines of the checkpoint that the run goes on from, or of its end."""
        self.check_owner()
        content = files.metrics_bytes(lines)
        path = self.path / files.METRICS
        with storing(path, "read"):
            same = path.exists() and path.read_bytes() == content
        if not same:
            atomic_write(path, content)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append one epoch's line to ``metrics.jsonl`` and bring it to the disk."""
        self.check_owner()
        append_line(self.path / files.METRICS, json.dumps(line, sort_keys=True))

    def metrics(self) -> list[dict[str, Any]]:
        """Return what :meth:`fractrain.engine.record.RunRecord.metrics` returns."""
        return files.read_metrics(self.path / files.METRICS)

    def write_ledger(self, state: dict[str, Any]) -> None:
        """Write ``ledger.json`` from ``Ledger.state_dict()``."""
        self.check_owner()
        atomic_write(self.path / files.LEDGER, files.canonical(state))

    def finish(
        self, summary: dict[str, Any], ledger: dict[str, Any], metrics: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """Make the run a result: metrics, ledger, summary, status ``done``, and the manifest of all of them.

        Args:
            metrics: all lines of ``metrics.jsonl``; None: those that are there.
        """
        self.write_metrics(self.metrics() if metrics is None else metrics)
        self.write_ledger(ledger)
        self._json(files.SUMMARY, summary)
        self.set_status("done", sealed=True)
        write_manifest(self.path)

    def discard(self) -> None:
        """Forget all but the config, so that the run starts from the beginning (``--force``)."""
        self.set_status("running")
        with storing(self.path, "empty"):
            found = [e for e in self.path.iterdir() if e.name not in (files.CONFIG, files.STATUS, *_WRITERS)]
            # Checkpoints first: killed in between, the run must not go on from one without its metrics.
            for entry in sorted(found, key=lambda e: not e.name.startswith("checkpoint")):
                entry.unlink()

    def _json(self, name: str, value: dict[str, Any]) -> None:
        self.check_owner()
        atomic_write(self.path / name, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _names(folder: Path) -> list[str]:
    """Names in a folder, sorted, but for those of writers and what a killed one left; none where there is no folder."""
    with storing(folder, "read"):
        if not folder.is_dir():
            return []
        names = sorted(entry.name for entry in folder.iterdir())
    return [name for name in names if name not in _WRITERS and not (name.startswith(".") and name.endswith(".tmp"))]


__all__ = ["RunRecord", "RunStore", "RunWriter", "Status"]
