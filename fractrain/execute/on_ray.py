"""Runs as tasks of a Ray cluster (extra ``ray``). Ray retries a task whose node or worker was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import field_validator

from fractrain.engine.site import Site
from fractrain.execute.remote import RemoteExecutor, RemoteRun, Resources
from fractrain.util.errors import MachineError


class RayResources(Resources):
    """Resources of one run on Ray.

    Attributes:
        address: of the cluster, ``auto`` for the one this machine belongs to; None starts one on this machine.
        on_interrupt: Ray ends a task when the process that started it ends, so Ctrl-C always cancels.
    """

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


@dataclass(frozen=True)
class RayExecutor(RemoteExecutor[Any]):
    """One task per run.

    ``max_calls=1`` gives each a Ray worker of its own: a worker that is used again keeps torch's settings of the task
    before (Ray 2.60).

    Attributes:
        resources: of each run.
    """

    resources: RayResources = field(default_factory=RayResources)

    def submit(self, runs: Sequence[RemoteRun], site: Site) -> list[Any]:
        """Connect if need be, and start a task per run."""
        ray = _ray()
        if not ray.is_initialized():
            try:
                ray.init(address=self.resources.address, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise MachineError(f"no Ray cluster at {self.resources.address!r}: {error}") from error
        memory = self.resources.memory_gb
        task = ray.remote(
            num_cpus=self.resources.cores,
            num_gpus=self.resources.gpus,
            memory=None if memory is None else int(memory * 2**30),
            max_retries=self.resources.retries,
            max_calls=1,
        )(_execute)
        return [task.options(name=run.config.run_id).remote(run) for run in runs]

    def result(self, handle: Any) -> dict[str, str] | None:
        """See :class:`RemoteExecutor`."""
        ray = _ray()
        ready, _ = ray.wait([handle], timeout=0)
        if not ready:
            return None
        ended: dict[str, str] = ray.get(handle)
        return ended

    def cancel(self, handle: Any) -> None:
        """Raise KeyboardInterrupt in the task, which stops its worker with a checkpoint."""
        _ray().cancel(handle, force=False)


def _execute(run: RemoteRun) -> dict[str, str]:
    return run()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MachineError("--executor ray needs Ray: pip install 'fractrain[ray]'") from error
    return ray
