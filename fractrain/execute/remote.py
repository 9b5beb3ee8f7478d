"""Runs on other machines, whatever engine starts them: the work that travels, and the driver that waits for it.

The work is one run in a process of its own, as the local executor starts it (:mod:`fractrain.execute.worker`), followed
by the task or job of the engine. So nothing of one run is left for the next, an exit code is never the engine's
business, and a checkpoint is asked for by a signal to the worker, which finishes its step first.

All machines must see the run store under the same path. Progress is read there, and so is how a run ended.
"""

from __future__ import annotations

import abc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

import pydantic
from pydantic import Field

from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.execute.jobs import Outcome
from fractrain.execute.processes import Workers
from fractrain.execute.schedule import ScheduledExecutor
from fractrain.util.errors import ConfigError, StoreError
from fractrain.util.progress import Progress, TableProgress
from fractrain.util.signals import GracefulStop, RunInterrupted

Handle = TypeVar("Handle")
R = TypeVar("R", bound="Resources")
WORKER: Final = (sys.executable, "-m", "fractrain.execute.worker")
POLL_S: Final = 0.5
STORE_POLL_S: Final = 2.0  # steps of runs are read from a network file system: not more often
LOCK_WAIT_S: Final = 120.0  # a worker whose node or job was lost may still write its last checkpoint
THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
CARRIED: Final = ("FRACTRAIN_PLUGINS", "FRACTRAIN_DATA", "PYTHONPATH")


class Resources(pydantic.BaseModel):
    """What one run gets, and what becomes of it when its machine is lost.

    Attributes:
        cores: CPU cores, and threads of the run.
        gpus: GPUs; a run of this suite uses one.
        memory_gb: main memory; None leaves it to the engine.
        retries: times that a run is started again when its process, job or node was lost. A run that failed of its own
            is not: it would fail again.
        on_interrupt: on Ctrl-C, jobs that were handed over are left to go on, or cancelled.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    cores: int = Field(default=1, ge=1, le=1024)
    gpus: int = Field(default=0, ge=0, le=64)
    memory_gb: float | None = Field(default=None, gt=0)
    retries: int = Field(default=3, ge=0, le=100)
    on_interrupt: Literal["leave", "cancel"] = "leave"


class RemoteRun:
    """One run as a value that can be pickled and called on another machine.

    Args:
        config: the run.
        site: where and how it is executed; made absolute.
        cores: threads of the run.
        retries: times that its process is started again when it was killed.
        worker: command line of the worker process.
    """

    def __init__(self, config: RunConfig, site: Site, cores: int, retries: int, worker: Sequence[str] = WORKER) -> None:
        self.config, self.site, self.retries = config, site.absolute(), retries
        self.worker = tuple(worker)
        self.variables = {**dict.fromkeys(THREADS, str(cores)), "OMP_WAIT_POLICY": "passive"}
        self.variables.update({name: os.environ[name] for name in CARRIED if name in os.environ})
        self._workers: Workers | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_workers": None}

    def __call__(self) -> dict[str, str]:
        """Run it to its end; return status and message. Ctrl-C (a cancelled task) stops it with a checkpoint."""
        store = RunStore(self.site.store)
        for attempt in range(self.retries + 1):
            self._workers = Workers(self.worker, self.site, logs=self.site.store.parent / "logs")
            try:
                outcome = self._workers.run(self.config, self.variables, lambda _: None)
            except KeyboardInterrupt:
                self.stop()
                return {"status": "interrupted", "message": "cancelled; the last checkpoint counts"}
            if outcome.status != "failed" or attempt == self.retries or not _was_lost(store, self.config.run_id):
                break
        return {"status": outcome.status, "message": outcome.message}

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


class RemoteExecutor(ScheduledExecutor, Generic[Handle]):
    """Hands all runs to an engine at once and waits for them.

    Attributes:
        resources: of each run.
    """

    resources: Resources

    @abc.abstractmethod
    def submit(self, runs: Sequence[RemoteRun], site: Site) -> list[Handle]:
        """Hand runs to the engine; return one handle each."""

    @abc.abstractmethod
    def result(self, handle: Handle) -> dict[str, str] | None:
        """Return status and message of a run that has ended, None while it has not; an engine's error may be raised."""

    @abc.abstractmethod
    def cancel(self, handle: Handle) -> None:
        """Stop a run as soon as possible; with a checkpoint where the engine allows it."""

    def run_all(self, configs: list[RunConfig], site: Site, progress: Progress, cached: int) -> list[Outcome]:
        """See :meth:`fractrain.execute.schedule.ScheduledExecutor.run_all`.

        Raises:
            RunInterrupted: the user asked to stop. What the engine has goes on, or was cancelled.
        """
        site = site.absolute(wait_s=LOCK_WAIT_S)
        shown = TableProgress(progress)
        runs = [RemoteRun(config, site, self.resources.cores, self.resources.retries) for config in configs]
        outcomes: dict[str, Outcome] = {}
        with GracefulStop() as stop:
            shown.start({config.run_id: config.recipe.iterations for config in configs}, cached)
            try:
                open_runs = dict(zip(runs, self.submit(runs, site), strict=True))
                read = 0.0
                while open_runs:
                    for run, handle in list(open_runs.items()):
                        outcome = self._outcome(run, handle)
                        if outcome is not None:
                            outcomes[outcome.run_id] = outcome
                            shown.finish(outcome.run_id, outcome.status, outcome.message)
                            del open_runs[run]
                    if stop.requested:
                        raise RunInterrupted(self._leave(list(open_runs.values()), len(outcomes)))
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

    def _leave(self, handles: Sequence[Handle], ended: int) -> str:
        if self.resources.on_interrupt == "cancel":
            for handle in handles:
                self.cancel(handle)
            return f"stopped: {ended} runs ended, {len(handles)} cancelled; the same command goes on with them"
        return (
            f"stopped waiting: {ended} runs ended, {len(handles)} go on without us (--executor-set on_interrupt=cancel "
            "cancels them); the same command shows the rest"
        )


def parse_resources(kind: type[R], texts: Sequence[str]) -> R:
    """Read ``KEY=VALUE`` texts of the command line.

    Raises:
        ConfigError: an unknown key, or a value out of range.
    """
    values: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"--executor-set {text}: write KEY=VALUE; keys are {', '.join(kind.model_fields)}")
        values[key] = value
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        value, reason = values.get(name, ""), first["msg"].lower()
        raise ConfigError(
            f"--executor-set {name}={value}: {reason}; keys are {', '.join(kind.model_fields)}"
        ) from error


def _was_lost(store: RunStore, run_id: str) -> bool:
    """Whether the worker ended without a word of its own: killed, or its machine was."""
    try:
        record = store.get(run_id)
    except StoreError:
        return False
    return record is None or record.status == "running"


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
