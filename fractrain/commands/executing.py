"""How runs are executed: the options for it and what becomes of them, shared by the verbs that run several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import NearestChoice, say, stdout_to_stderr
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:
    from fractrain.execute.local import Executor, Outcome, Site

jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Runs at the same time.  [default: one per core on the CPU, at most 8; one per GPU]",
)
executor_option = click.option(
    "--executor",
    type=NearestChoice(("local", "ray", "slurm")),
    default="local",
    show_default=True,
    help="Where runs are executed: on this machine, on a Ray cluster, as Slurm jobs (docs/clusters.md).",
)
resources_option = click.option(
    "--executor-set",
    "resources",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of each run on Ray or Slurm: cores, gpus, memory_gb, retries, on_interrupt=leave|cancel; Ray: address; "
    "Slurm: minutes, partition, account, constraint, parallel, cluster=slurm|local; may be repeated.",
)


def remote_executor(name: str, resources: Sequence[str], jobs: int | None) -> Executor | None:
    """The executor for other machines, None for this one.

    Raises:
        ConfigError: options that do not go with it.
    """
    from fractrain.execute.remote import parse_resources

    if name == "local":
        if resources:
            raise ConfigError("--executor-set goes with --executor ray or slurm")
        return None
    if jobs is not None:
        raise ConfigError(f"--jobs is for this machine: --executor {name} starts as many runs as there is room for")
    if name == "ray":
        from fractrain.execute.on_ray import RayExecutor, RayResources

        return RayExecutor(parse_resources(RayResources, resources))
    from fractrain.execute.on_slurm import SlurmExecutor, SlurmResources

    return SlurmExecutor(parse_resources(SlurmResources, resources))


def execute(configs: Sequence[Any], site: Site, jobs: int | None, remote: Executor | None = None) -> list[Outcome]:
    """Run all configurations; say how those ended that failed."""
    if not configs:
        return []
    from fractrain.execute.local import LocalExecutor
    from fractrain.util.progress import make_progress

    with stdout_to_stderr():
        if remote is not None:  # whose machines have devices and data of their own: each run looks for itself
            outcomes = remote.run(configs, site, make_progress())
        else:
            check_site(configs, site)
            outcomes = LocalExecutor(jobs_at_once(jobs, site.device), _gpus(site.device)).run(
                configs, site, make_progress()
            )
    for outcome in outcomes:
        if outcome.status != "done":
            say(f"{outcome.run_id}: {outcome.status}: {outcome.message}")
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
