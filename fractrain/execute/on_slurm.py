"""Runs as jobs of Slurm through submitit (extra ``slurm``); ``cluster=local`` tries the same on this machine.

Near its time limit or when it is preempted, a job writes a checkpoint and is queued again. What submitit 1.5.4 does
that one must know: a preemption within the first part of a limit of ten minutes or less counts as a timeout, so limits
are at least 11 minutes on Slurm; a limit below its signal's delay gets no signal at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from fractrain.engine.site import Site
from fractrain.execute.remote import RemoteExecutor, RemoteRun, Resources
from fractrain.util.errors import MachineError

SHORTEST_MINUTES: Final = 11
REQUEUES: Final = 1000  # a long run is cut into as many jobs as its limit makes of it


class SlurmResources(Resources):
    """Resources of one run on Slurm.

    Attributes:
        minutes: time limit of a job; a run that needs more is queued again where it stopped.
        signal_seconds: how long before the limit a job is told to write its checkpoint (Slurm; 30 s here).
        partition, account, constraint: as for ``sbatch``; None leaves it to the cluster.
        parallel: jobs of the array that run at the same time at most.
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


@dataclass(frozen=True)
class SlurmExecutor(RemoteExecutor[Any]):
    """One job per run, all in one array.

    Attributes:
        resources: of each run.
    """

    resources: SlurmResources = field(default_factory=SlurmResources)

    def submit(self, runs: Sequence[RemoteRun], site: Site) -> list[Any]:
        """Queue all runs. Scripts, logs and results of the jobs go to ``jobs/`` beside the run store."""
        executor = self._executor(site)
        with executor.batch():
            return [executor.submit(run) for run in runs]

    def result(self, handle: Any) -> dict[str, str] | None:
        """See :class:`RemoteExecutor`."""
        if not handle.done():
            return None
        ended: dict[str, str] = handle.result()
        return ended

    def cancel(self, handle: Any) -> None:
        """End the job; its worker notices that its parent is gone and stops with a checkpoint."""
        handle.cancel(check=False)

    def _executor(self, site: Site) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise MachineError("--executor slurm needs submitit: pip install 'fractrain[slurm]'") from error
        want = self.resources
        folder = site.store.parent / "jobs" / "%j"
        try:
            executor = submitit.AutoExecutor(
                folder, cluster=want.cluster, **{f"{want.cluster}_max_num_timeout": REQUEUES}
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
