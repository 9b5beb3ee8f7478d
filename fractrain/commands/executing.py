"""How runs are executed: the options for it and what becomes of them, shared by the verbs that run several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import choice_option, stdout_to_stderr
from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:
    from fractrain.engine.site import Site
    from fractrain.execute.jobs import Executor, Outcome
    from fractrain.execute.resources import LocalResources

jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N",
    help="Runs at the same time.  [default: one per core on the CPU, at most 8; one per GPU]",
)  # fmt: skip
executor_option = choice_option(
    "--executor", of=("local", "ray", "slurm"), default="local",
    help="Where runs are executed: on this machine, on a Ray cluster, as Slurm jobs (docs/clusters.md).",
)  # fmt: skip
resources_option = click.option(
    "--executor-set", "resources", multiple=True, metavar="KEY=VALUE",
    help="Of each run: cores, gpus, memory_gb, retries; Ray and Slurm: minutes, signal_seconds, "
    "on_interrupt=leave|cancel; Ray: address; Slurm: partition, account, constraint, parallel, cluster=slurm|local; "
    "may be repeated.",
)  # fmt: skip


@dataclass(frozen=True)
class Execution:
    """What the options ask for.

    Attributes:
        jobs: runs at the same time on this machine; None: by its cores and GPUs.
        remote: the executor for other machines, None for this one.
        resources: of each run on this machine.
    """

    jobs: int | None
    remote: Executor | None
    resources: LocalResources

    def executor(self, device: str) -> Executor:
        """The executor of runs on that device."""
        from fractrain.execute.local import LocalExecutor

        if self.remote is not None:
            return self.remote
        return LocalExecutor(jobs_at_once(self.jobs, device), _gpus(device), self.resources)


def chosen_execution(name: str, resources: Sequence[str], jobs: int | None) -> Execution:
    """Read the options.

    Raises:
        ConfigError: options that do not go together.
    """
    from fractrain.execute.resources import LocalResources, parse_resources

    if name == "local":
        return Execution(jobs, None, parse_resources(LocalResources, resources))
    if jobs is not None:
        raise ConfigError(f"--jobs is for this machine: --executor {name} starts as many runs as there is room for")
    if name == "ray":
        from fractrain.execute.on_ray import RayExecutor, RayResources

        return Execution(None, RayExecutor(parse_resources(RayResources, resources)), LocalResources())
    from fractrain.execute.on_slurm import SlurmExecutor, SlurmResources

    return Execution(None, SlurmExecutor(parse_resources(SlurmResources, resources)), LocalResources())


def execute(configs: Sequence[Any], site: Site, how: Execution) -> list[Outcome]:
    """Run all configurations; say how those ended that failed."""
    if not configs:
        return []
    from fractrain.execute.processes import logs_of
    from fractrain.util.progress import make_progress

    with stdout_to_stderr():
        if how.remote is None:  # other machines have devices and data of their own: each run looks for itself
            check_site(configs, site)
        outcomes = how.executor(site.device).run(configs, site, make_progress())
    failed = [outcome for outcome in outcomes if outcome.status != "done"]
    for outcome in failed:
        log_line(f"{outcome.run_id}: {outcome.status}: {outcome.message}")
    if any((logs_of(site) / f"{outcome.run_id}.log").exists() for outcome in failed):
        log_line(f"what their processes said: {logs_of(site)}/RUN.log")
    return outcomes


def check_site(configs: Sequence[Any], site: Site) -> None:
    """Refuse what every single run would fail at: no such device, data that is not there.

    Raises:
        MachineError: no such device, or no network for a download.
        DataError: a data set is missing or corrupt.
    """
    from fractrain.data import registry
    from fractrain.util.device import resolve_device
    from fractrain.util.errors import DataError

    resolve_device(site.device)
    for name in dict.fromkeys(config.dataset for config in configs):
        found = (registry.fetch if site.download else registry.status)(name, site.data_dir)
        if not found.ok:
            raise DataError("; ".join(filter(None, (found.message, found.advice))))


def jobs_at_once(jobs: int | None, device: str) -> int:
    """How many runs there are at a time: as many as was said, else one per GPU or core."""
    return jobs or len(_gpus(device)) or _jobs_on_cpu(device)


def _jobs_on_cpu(device: str) -> int:
    """One single-threaded run per core: small models gain more from that than from several threads each."""
    from fractrain.engine.environment import cores
    from fractrain.util.device import resolve_device

    return min(8, cores()) if resolve_device(device).type == "cpu" else 1


def _gpus(device: str) -> list[str]:
    """GPU numbers to deal out to the jobs; none where a certain device was asked for, or there is no GPU."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
