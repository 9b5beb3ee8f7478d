"""Runs as tasks of a Ray cluster (extra ``ray``). Ray retries a task whose node or worker was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from fractrain.engine.site import Site
from fractrain.execute.remote import RemoteExecutor, RemoteRun, TimeLimit
from fractrain.execute.resources import GB, Resources
from fractrain.util.console import log_line
from fractrain.util.errors import MachineError, needed

CANCEL_S: Final = 60.0  # for the checkpoints of cancelled runs


class RayResources(Resources):
    """Resources of one run on Ray.

    Attributes:
        minutes: time limit of a task; a run that needs more is queued again where it stopped. None: no limit.
        signal_seconds: so long before the limit a checkpoint is asked for.
        address: of the cluster, ``auto`` for the one this machine belongs to; None starts one on this machine.
        on_interrupt: Ray ends a task when the process that started it ends, so Ctrl-C always cancels.
    """

    minutes: float | None = Field(default=None, gt=0, le=60 * 24 * 30)
    signal_seconds: float = Field(default=90, gt=0)
    address: str | None = None
    on_interrupt: Literal["leave", "cancel"] = "cancel"

    @field_validator("on_interrupt")
    @classmethod
    def _tasks_end_with_us(cls, value: str) -> str:
        if value == "leave":
            raise ValueError(
                "Ray ends tasks with the process that started them; hand it the command itself to leave it alone, "
                "`ray job submit --no-wait -- fractrain reproduce ...`"
            )
        return value

    @model_validator(mode="after")
    def _long_enough(self) -> RayResources:
        if self.minutes is not None and self.signal_seconds >= 60 * self.minutes:
            raise ValueError("signal_seconds must be less than the time limit")
        return self


@dataclass
class RayTask:
    """A run and the task that it is in now.

    Attributes:
        task: Ray's reference to its result.
    """

    run: RemoteRun
    task: Any


@dataclass(frozen=True)
class RayExecutor(RemoteExecutor[RayTask]):
    """One task per run.

    ``max_calls=1`` gives each a Ray worker of its own: a worker that is used again keeps torch's settings of the task
    before (Ray 2.60).
    """

    resources: RayResources = field(default_factory=RayResources)

    @property
    def limit(self) -> TimeLimit | None:
        """See :class:`RemoteExecutor`; Ray has none of its own."""
        minutes = self.resources.minutes
        return None if minutes is None else TimeLimit(60 * minutes, self.resources.signal_seconds)

    def submit(self, runs: Sequence[RemoteRun], site: Site) -> list[RayTask]:
        """Connect if need be, and start a task per run."""
        ray = _ray()
        if not ray.is_initialized():
            try:
                ray.init(address=self.resources.address, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise MachineError(f"no Ray cluster at {self.resources.address!r}: {error}") from error
        if not any(self._fits(node["Resources"]) for node in ray.nodes() if node["Alive"]):
            log_line(
                "no node of the Ray cluster has what one run asks for (--executor-set): runs wait until there is one"
            )
        return [RayTask(run, self._start(run)) for run in runs]

    def _start(self, run: RemoteRun) -> Any:
        task = _ray().remote(
            num_cpus=self.resources.cores, num_gpus=self.resources.gpus, memory=self._memory(),
            max_retries=self.resources.retries, max_calls=1,
        )(_execute)  # fmt: skip
        return task.options(name=run.config.run_id).remote(run)

    def _memory(self) -> int | None:
        """Bytes of main memory of one run."""
        memory = self.resources.memory_gb
        return None if memory is None else int(memory * GB)

    def _fits(self, node: Mapping[str, float]) -> bool:
        want = {"CPU": self.resources.cores, "GPU": self.resources.gpus, "memory": self._memory() or 0}
        return all(node.get(key, 0) >= asked for key, asked in want.items())

    def result(self, handle: RayTask) -> dict[str, str] | None:
        """See :class:`RemoteExecutor`; a run whose time limit was over goes to the end of the queue."""
        ray = _ray()
        ready, _ = ray.wait([handle.task], timeout=0)
        if not ready:
            return None
        ended: dict[str, str] = ray.get(handle.task)
        if ended["status"] == "again":
            handle.task = self._start(handle.run)
            return None
        return ended

    def cancel(self, handles: Sequence[RayTask]) -> None:
        """Raise KeyboardInterrupt in the tasks, which stops their workers with checkpoints, and wait for those."""
        ray = _ray()
        tasks = [handle.task for handle in handles]
        for task in tasks:
            ray.cancel(task, force=False)
        ray.wait(tasks, num_returns=len(tasks), timeout=CANCEL_S)  # Ray kills what is left when we end


def _execute(run: RemoteRun) -> dict[str, str]:
    return run()


def _ray() -> Any:
    with needed("--executor ray needs Ray: pip install 'fractrain[ray]'"):
        import ray
    return ray
