"""How long many runs take on a cluster: a simulation with lost nodes, checkpoints and time limits."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

from fractrain.util.errors import ConfigError
from fractrain.util.progress import duration

HOUR_S = 3600.0
DAY_S = 86400.0


@dataclass(frozen=True)
class Cluster:
    """What runs are executed on.

    Attributes:
        gpus: runs at the same time.
        losses_per_gpu_day: how often a GPU loses its run, on average; losses are independent.
        checkpoint_s: time between two checkpoints: what a loss costs at most, besides the new start.
        restart_s: from the loss or the end of a job until the run trains again (queue, imports, data).
        limit_s: time limit of a job, after which a run is queued again; 0: none.
    """

    gpus: int
    losses_per_gpu_day: float = 0.0
    checkpoint_s: float = 60.0
    restart_s: float = 120.0
    limit_s: float = 0.0

    def __post_init__(self) -> None:
        if self.gpus < 1 or min(self.losses_per_gpu_day, self.checkpoint_s, self.restart_s, self.limit_s) < 0:
            raise ConfigError("a cluster has at least 1 GPU, and no negative times or rates")
        if 0 < self.limit_s <= self.restart_s:
            raise ConfigError(
                f"a job limit of {self.limit_s:.0f} s is over before a run trains ({self.restart_s:.0f} s): raise it"
            )


@dataclass(frozen=True)
class Makespan:
    """How it went.

    Attributes:
        seconds: from the first start to the last end.
        gpu_seconds: GPUs were held so long, all added up.
        useful_seconds: of these, training that was not lost.
        losses: times that a run lost its GPU.
        jobs: starts, new ones included.
    """

    seconds: float
    gpu_seconds: float
    useful_seconds: float
    losses: int
    jobs: int

    def line(self, cluster: Cluster) -> str:
        """One line for people."""
        return (
            f"on {cluster.gpus} GPUs: {duration(self.seconds)}, {self.gpu_seconds / HOUR_S:,.1f} GPU-hours "
            f"({self.useful_seconds / self.gpu_seconds:.1%} of them training that counts), {self.jobs:,} jobs, "
            f"{self.losses:,} lost"
        )


def simulate(run_seconds: Sequence[float], cluster: Cluster, seed: int = 0) -> Makespan:
    """Execute runs, the longest first, each on the GPU that is free first.

    Args:
        run_seconds: what each run takes undisturbed.
        seed: of the times of losses (exponential).

    Raises:
        ConfigError: there are no runs, or one takes no time.
    """
    if not run_seconds or min(run_seconds) <= 0:
        raise ConfigError("nothing to simulate: every run needs a time above 0")
    draw = random.Random(seed)
    rate = cluster.losses_per_gpu_day / DAY_S
    free = [0.0] * min(cluster.gpus, len(run_seconds))
    losses = jobs = 0
    held = last = 0.0
    for seconds in sorted(run_seconds, reverse=True):
        start = now = heapq.heappop(free)
        left = seconds
        while left > 0:
            jobs += 1
            now += cluster.restart_s
            train = min(left, cluster.limit_s - cluster.restart_s) if cluster.limit_s else left
            until_loss = draw.expovariate(rate) if rate else float("inf")
            if until_loss < train:
                losses += 1
                now += until_loss
                kept = until_loss - until_loss % cluster.checkpoint_s if cluster.checkpoint_s else until_loss
                left -= kept
            else:
                now += train
                left -= train
        held += now - start
        last = max(last, now)
        heapq.heappush(free, now)
    return Makespan(last, held, sum(run_seconds), losses, jobs)
