"""Runs on other machines, whatever engine starts them: the work that travels, and the driver that waits for it.

The work is one run in a process of its own, as the local executor starts it (:mod:`fractrain.execute.worker`), followed
by the task or job of the engine. So nothing of one run is left for the next, an exit code is never the engine's
business, and a checkpoint is asked for by a signal to the worker, which finishes its step first.

All machines must see the run store under the same path. Progress is read there, and so is how a run ended.
"""

from __future__ import annotations

import abc
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from fractrain.engine.config import RunConfig
from fractrain.engine.record_files import CHECKPOINT
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.execute.jobs import Executor, Outcome
from fractrain.execute.processes import THREADS, WORKER, Workers
from fractrain.execute.resources import Resources
from fractrain.util.errors import StoreError
from fractrain.util.progress import Progress, TableProgress
from fractrain.util.signals import GracefulStop, RunInterrupted

Handle = TypeVar("Handle")
POLL_S: Final = 0.5
STORE_POLL_S: Final = 2.0  # steps of runs are read from a network file system: not more often
LOCK_WAIT_S: Final = 120.0  # a worker whose node or job was lost may still write its last checkpoint
CARRIED: Final = ("FRACTRAIN_PLUGINS", "FRACTRAIN_DATA", "PYTHONPATH")


@dataclass(frozen=True)
class TimeLimit:
    """How long one start may take: it ends with a checkpoint and is queued again, as Slurm's jobs are.

    Attributes:
        seconds: after so many the worker is killed.
        signal_seconds: so long before, a checkpoint is asked for.
    """

    seconds: float
    signal_seconds: float

    @contextlib.contextmanager
    def over(self, workers: Workers) -> Iterator[threading.Event]:
        """Hold workers to it inside the block; the event is set when they were asked to stop."""
        out_of_time = threading.Event()

        def stop() -> None:
            out_of_time.set()
            workers.stop()

        timers = [
            threading.Timer(self.seconds - self.signal_seconds, stop),
            threading.Timer(self.seconds, workers.kill),
        ]
        for timer in timers:
            timer.daemon = True
            timer.start()
        try:
            yield out_of_time
        finally:
            for timer in timers:
                timer.cancel()


class RemoteRun:
    """One run as a value that can be pickled and called on another machine.

    Args:
        site: where and how it is executed; made absolute.
        cores: threads of the run.
        retries: times that its process is started again when it was killed.
        limit: of one call; None: none, or the engine has its own.
        worker: command line of the worker process.
    """

    def __init__(
        self, config: RunConfig, site: Site, cores: int, retries: int, limit: TimeLimit | None = None,
        worker: Sequence[str] = WORKER,
    ) -> None:  # fmt: skip
        self.config, self.site, self.retries = config, site.absolute(), retries
        self.limit, self.worker = limit, tuple(worker)
        self.variables = {**dict.fromkeys(THREADS, str(cores)), "OMP_WAIT_POLICY": "passive"}
        self.variables.update({name: os.environ[name] for name in CARRIED if name in os.environ})
        self._workers: Workers | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_workers": None}

    def __call__(self) -> dict[str, str]:
        """Run it to its end; return status and message. Ctrl-C (a cancelled task) stops it with a checkpoint.

        The status is that of an :class:`fractrain.execute.jobs.Outcome`, or ``again`` for a run that is to be queued
        again: the time limit was over, and it has come further.
        """
        self._workers = Workers(self.worker, self.site)
        steps: list[int] = []
        before = _saved(self.site.store, self.config)
        watched = self.limit.over(self._workers) if self.limit else contextlib.nullcontext(threading.Event())
        try:
            with watched as out_of_time:
                outcome = self._workers.run(self.config, self.variables, steps.append, self.retries)
        except KeyboardInterrupt:
            return {"status": "interrupted", "message": "cancelled; the last checkpoint counts"}
        status, message = outcome.status, outcome.message
        if self.limit and out_of_time.is_set() and status == "interrupted":
            further = steps and steps[-1] > steps[0] and _saved(self.site.store, self.config) != before
            return {"status": "again", "message": message} if further else self._too_short(self.limit)
        return {"status": status, "message": message}

    def _too_short(self, limit: TimeLimit) -> dict[str, str]:
        words = f"no step was done and kept within the time limit of {limit.seconds / 60:g} minutes: raise it"
        return {"status": "failed", "message": words}

    def stop(self) -> None:
        """Ask the worker for a checkpoint and wait for its end; may be called from a signal handler."""
        if self._workers is not None:
            self._workers.stop()
            self._workers.wait()

    def checkpoint(self) -> Any:
        """What submitit calls between any two byte codes when a job is preempted or out of time: stop, go on later."""
        import submitit

        self.stop()
        return submitit.helpers.DelayedSubmission(self)


class RemoteExecutor(Executor, Generic[Handle]):
    """Hands runs to an engine, all at once unless it has no queue of its own, and waits for them."""

    resources: Resources

    @property
    def limit(self) -> TimeLimit | None:
        """Time limit that each start of a run keeps by itself."""
        return None

    @property
    def at_once(self) -> int | None:
        """Runs that the engine may be given at a time; None: all, for it has a queue."""
        return None

    @abc.abstractmethod
    def submit(self, runs: Sequence[RemoteRun], site: Site) -> list[Handle]:
        """Hand runs to the engine; return one handle each."""

    @abc.abstractmethod
    def result(self, handle: Handle) -> dict[str, str] | None:
        """Return status and message of a run that has ended, None while it has not; an engine's error may be raised."""

    @abc.abstractmethod
    def cancel(self, handles: Sequence[Handle]) -> None:
        """Stop runs as soon as possible; with a checkpoint where the engine allows it."""

    def run_all(self, configs: list[RunConfig], site: Site, progress: Progress, cached: int) -> list[Outcome]:
        """See :meth:`fractrain.execute.jobs.Executor.run_all`.

        Raises:
            RunInterrupted: the user asked to stop. What the engine has goes on, or was cancelled.
        """
        site = site.absolute(wait_s=LOCK_WAIT_S)
        shown = TableProgress(progress)
        want = self.resources
        waiting = [RemoteRun(config, site, want.cores, want.retries, self.limit) for config in configs]
        open_runs: dict[RemoteRun, Handle] = {}
        places = self.at_once or len(waiting)
        outcomes: dict[str, Outcome] = {}
        with GracefulStop() as stop:
            shown.start({config.run_id: config.recipe.iterations for config in configs}, cached)
            try:
                read = 0.0
                while waiting or open_runs:
                    if new := waiting[: places - len(open_runs)]:
                        open_runs |= zip(new, self.submit(new, site), strict=True)
                        del waiting[: len(new)]
                    for run, handle in list(open_runs.items()):
                        outcome = self._outcome(run, handle)
                        if outcome is not None:
                            outcomes[outcome.run_id] = outcome
                            shown.finish(outcome.run_id, outcome.status, outcome.message)
                            del open_runs[run]
                    if stop.requested:
                        raise RunInterrupted(self._leave(list(open_runs.values()), len(outcomes), len(waiting)))
                    if time.monotonic() - read >= STORE_POLL_S:
                        for run_id, steps in _steps(site.store, [run.config.run_id for run in open_runs]).items():
                            shown.update(run_id, steps)
                        read = time.monotonic()
                    time.sleep(POLL_S if open_runs else 0)
            finally:
                shown.close()
        return [outcomes[config.run_id] for config in configs]

    def _outcome(self, run: RemoteRun, handle: Handle) -> Outcome | None:
        run_id = run.config.run_id
        try:
            ended = self.result(handle)
        except Exception as error:  # whatever an engine raises for a lost job ends that run alone
            lines = str(error).strip().splitlines()
            return Outcome(run_id, "failed", f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}")
        if ended is None:
            return None
        if ended["status"] == "done":
            record = RunStore(run.site.store).get(run_id)
            if record is None or record.status != "done":
                return Outcome(run_id, "failed", f"done elsewhere, but not in {run.site.store}: share the run store")
        return Outcome(run_id, ended["status"], ended["message"])  # type: ignore[arg-type]

    def _leave(self, handles: Sequence[Handle], ended: int, waiting: int) -> str:
        rest = f", {waiting} were not started" if waiting else ""
        if self.resources.on_interrupt == "cancel":
            self.cancel(handles)
            return f"stopped: {ended} runs ended, {len(handles)} cancelled{rest}; the same command goes on with them"
        return (
            f"stopped waiting: {ended} runs ended, {len(handles)} go on without us (--executor-set on_interrupt=cancel "
            f"cancels them){rest}; the same command shows the rest"
        )


def _steps(store: Path, run_ids: Sequence[str]) -> Mapping[str, int]:
    """Steps that each run has behind it, by the lines of its last evaluation; runs that have none are left out."""
    found: dict[str, int] = {}
    for run_id in run_ids:
        path = store / run_id / "metrics.jsonl"
        try:
            record = RunStore(store).get(run_id) if path.exists() else None
            lines = record.metrics() if record is not None else []
        except StoreError:
            continue  # being written at this moment, or damaged: its worker will say so
        if lines:
            found[run_id] = int(lines[-1]["iteration"])
    return found


def _saved(store: Path, config: RunConfig) -> int:
    """When the last checkpoint of a run was written (ns), 0 where there is none."""
    try:
        return (store / config.run_id / CHECKPOINT).stat().st_mtime_ns
    except OSError:
        return 0
