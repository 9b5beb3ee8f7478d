"""Runs as jobs of Slurm through submitit (extra ``slurm``); ``cluster=local`` tries the same on this machine.

Near its time limit or when it is preempted, a job writes a checkpoint and is queued again. What submitit 1.5.4 does
that one must know: a preemption within the first part of a limit of ten minutes or less counts as a timeout, so limits
are at least 11 minutes on Slurm; a limit below its signal's delay gets no signal at all; and it learns from ``sacct``
alone how jobs end, so that without Slurm's accounting a job that was killed goes on for ever. Here ``squeue`` is asked.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from fractrain.engine.site import Site
from fractrain.execute.remote import RemoteExecutor, RemoteRun
from fractrain.execute.resources import LocalResources, Machine, Resources
from fractrain.util.errors import MachineError, needed
from fractrain.util.files import atomic_write

SHORTEST_MINUTES: Final = 11
REQUEUES: Final = 1000  # a long run is cut into as many jobs as its limit makes of it
QUEUE_POLL_S: Final = 10.0
GONE_S: Final = 60.0  # a network file system shows a result so much later than its job's end
ALIVE: Final = frozenset({
    "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING",
    "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "PREEMPTED", "RESV_DEL_HOLD", "SPECIAL_EXIT",
})  # fmt: skip


class SlurmResources(Resources):
    """Resources of one run on Slurm.

    Attributes:
        minutes: time limit of a job; a run that needs more is queued again where it stopped.
        signal_seconds: how long before the limit a job is told to write its checkpoint (Slurm; 30 s here).
        partition, account, constraint: as for ``sbatch``; None leaves it to the cluster.
        parallel: jobs that run at the same time at most; with ``cluster=local`` no more than this machine has room for.
        cluster: ``slurm``, or ``local`` for processes on this machine through the same code.
    """

    minutes: int = Field(default=24 * 60, ge=1, le=60 * 24 * 30)
    signal_seconds: int = Field(default=90, ge=1)
    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    parallel: int = Field(default=256, ge=1)
    cluster: Literal["slurm", "local"] = "slurm"

    @model_validator(mode="after")
    def _long_enough(self) -> SlurmResources:
        if self.cluster == "slurm" and self.minutes < SHORTEST_MINUTES:
            raise ValueError(f"minutes must be at least {SHORTEST_MINUTES} on Slurm (see docs/clusters.md)")
        if self.signal_seconds >= 60 * self.minutes:
            raise ValueError("signal_seconds must be less than the time limit")
        return self


class Queue:
    """What Slurm says of this user's jobs, asked at most every ``QUEUE_POLL_S`` seconds."""

    def __init__(self) -> None:
        self._asked = -QUEUE_POLL_S
        self._states: dict[str, str] | None = None

    def state(self, job_id: str) -> str:
        """State of a job as ``squeue`` spells it, ``GONE`` for one that it does not know, empty if it cannot say."""
        if time.monotonic() - self._asked >= QUEUE_POLL_S:
            self._asked = time.monotonic()
            self._states = self._read()
        return "" if self._states is None else self._states.get(job_id, "GONE")

    def _read(self) -> dict[str, str] | None:
        command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return None  # the controller is away for a while: jobs go on
        return dict(line.split(maxsplit=1) for line in found.splitlines() if " " in line.strip())


@dataclass
class SlurmRun:
    """A run and the job it is in now.

    Attributes:
        retries: jobs that may still follow a lost one.
        ended: when the job was first seen to have ended without a result.
    """

    run: RemoteRun
    site: Site
    job: Any
    retries: int
    ended: float | None = None


@dataclass(frozen=True)
class SlurmExecutor(RemoteExecutor[SlurmRun]):
    """One job per run, all in one array.

    Attributes:
        queue: what Slurm says of the jobs.
    """

    resources: SlurmResources = field(default_factory=SlurmResources)
    queue: Queue = field(default_factory=Queue)

    @property
    def at_once(self) -> int | None:
        """On this machine as many runs as there is room for: submitit starts what it is given, and has no queue.

        Raises:
            MachineError: there is no room for one.
        """
        want = self.resources
        if want.cluster == "slurm":
            return None
        import torch

        own = LocalResources(cores=want.cores, gpus=want.gpus, memory_gb=want.memory_gb)
        return min(want.parallel, Machine.detect(torch.cuda.device_count()).slots(own) or want.parallel)

    def submit(self, runs: Sequence[RemoteRun], site: Site) -> list[SlurmRun]:
        """Queue all runs but those whose job of an earlier command goes on.

        Scripts, logs and results of the jobs go to ``jobs/`` beside the run store.
        """
        executor = self._executor(site)
        jobs = {run: self._earlier(run, site) for run in runs}
        new = [run for run in runs if jobs[run] is None]
        if new:
            with executor.batch():
                jobs.update({run: executor.submit(run) for run in new})
        for run in new:
            self._remember(run, site, jobs[run])
        return [SlurmRun(run, site, jobs[run], self.resources.retries) for run in runs]

    def result(self, handle: SlurmRun) -> dict[str, str] | None:
        """See :class:`RemoteExecutor`; a job that was lost is submitted again."""
        import submitit

        state = self._state(handle)
        if state == "cancelled":
            return {"status": "interrupted", "message": f"job {handle.job.job_id} was cancelled"}
        if state == "lost":
            self._again(handle)
            return None
        if state == "going":
            return None
        try:
            ended: dict[str, str] = handle.job.result()
        except submitit.core.utils.UncompletedJobError:  # without a result: a process that was killed here
            self._again(handle)
            return None
        return ended

    def cancel(self, handles: Sequence[SlurmRun]) -> None:
        """End the jobs; their workers notice that their parents are gone and stop with checkpoints."""
        for handle in handles:
            handle.job.cancel(check=False)

    def _state(self, handle: SlurmRun) -> Literal["going", "ended", "cancelled", "lost"]:
        if self.resources.cluster == "local":
            return "ended" if handle.job.done() else "going"
        result = Path(handle.job.paths.result_pickle)
        if result.parent.is_dir() and result.name in os.listdir(result.parent):  # on NFS a look-up may be old
            return "ended"
        state = self.queue.state(str(handle.job.job_id))
        if not state or state in ALIVE:
            handle.ended = None
            return "going"
        handle.ended = handle.ended or time.monotonic()
        if time.monotonic() - handle.ended <= GONE_S:
            return "going"
        return "cancelled" if state == "CANCELLED" else "lost"

    def _again(self, handle: SlurmRun) -> None:
        """Submit a lost run again; it goes on from its checkpoint.

        Raises:
            MachineError: it was lost too often.
        """
        if not handle.retries:
            raise MachineError(
                f"job {handle.job.job_id} ended without a result, its process or node was lost; its log: "
                f"{handle.job.paths.stderr}"
            )
        handle.retries, handle.ended = handle.retries - 1, None
        handle.job = self._executor(handle.site).submit(handle.run)
        self._remember(handle.run, handle.site, handle.job)

    def _earlier(self, run: RemoteRun, site: Site) -> Any | None:
        """The job of an earlier command for this run, if Slurm still has it and its result is not there."""
        import submitit

        file = _memory(site, run)
        if self.resources.cluster != "slurm" or not file.exists():
            return None
        job_id = file.read_text(encoding="utf-8").strip()
        if self.queue.state(job_id) not in ALIVE:
            return None
        return submitit.SlurmJob(folder=_folder(site), job_id=job_id)

    def _remember(self, run: RemoteRun, site: Site, job: Any) -> None:
        if self.resources.cluster == "slurm":
            file = _memory(site, run)
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, f"{job.job_id}\n".encode())

    def _executor(self, site: Site) -> Any:
        with needed("--executor slurm needs submitit: pip install 'fractrain[slurm]'"):
            import submitit
        logging.getLogger("submitit").setLevel(
            logging.ERROR
        )  # it warns of every sacct that fails; squeue is asked here
        want = self.resources
        try:
            executor = submitit.AutoExecutor(
                _folder(site), cluster=want.cluster, **{f"{want.cluster}_max_num_timeout": REQUEUES}
            )
        except RuntimeError as error:
            raise MachineError(f"no Slurm on this machine ({error}): try --executor-set cluster=local") from error
        executor.update_parameters(name="fractrain", timeout_min=want.minutes, cpus_per_task=want.cores)
        if want.gpus:
            executor.update_parameters(gpus_per_node=want.gpus)
        if want.memory_gb is not None:
            executor.update_parameters(mem_gb=want.memory_gb)
        own = {"array_parallelism": want.parallel, "signal_delay_s": want.signal_seconds}
        asked = {"partition": want.partition, "account": want.account, "constraint": want.constraint}
        if want.cluster == "slurm":
            chosen = {**own, **{key: value for key, value in asked.items() if value is not None}}
            executor.update_parameters(**{f"slurm_{key}": value for key, value in chosen.items()})
        return executor


def _folder(site: Site) -> Path:
    return site.store.parent / "jobs" / "%j"


def _memory(site: Site, run: RemoteRun) -> Path:
    """The file that holds the id of a run's last job."""
    return site.store.parent / "jobs" / "of-runs" / run.config.run_id
