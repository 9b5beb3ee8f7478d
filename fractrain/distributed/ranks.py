"""One run on several processes, started by ``torchrun``: each takes its share of every batch, and the sums are shared.

Rank r of W takes rows ``r*B//W .. (r+1)*B//W`` of each global batch of B samples, and divides the sum of its losses by
B, so that the *sum* of the ranks' gradients is the gradient of the mean over the global batch, and every
output gradient has the size it has on one process (widths and stochastic rounding see the same numbers). A batch of
fewer samples than ranks is computed by all ranks in full.

Gradients are added up by an all-reduce of a flat buffer after the backward pass, not by DistributedDataParallel: that
averages over ranks with equal weights (a smaller last batch would weigh too much), wraps the model (methods look blocks
up by name, and hold on to layers), and turns the gradient of a parameter that no rank used into zeros where one process
leaves it out, which moves it by momentum and weight decay. What this costs is the overlap of communication with the
backward pass.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import nn

from fractrain.cost.ledger import Ledger
from fractrain.distributed.collectives import Peers, all_reduce, launched_world, naming_lost_peers
from fractrain.distributed.join import join
from fractrain.util.device import resolve_device
from fractrain.util.digests import state_sha256
from fractrain.util.errors import ConfigError, MachineError
from fractrain.util.seeds import derive_seed

T = TypeVar("T")
Batch = tuple[torch.Tensor, torch.Tensor]  # inputs, targets
BUCKET: Final = 1 << 25  # elements of one all-reduce of gradients


@runtime_checkable
class Shardable(Protocol):
    """Batches of which a part can be had without reading the rest."""

    def shard(self, rank: int, world: int) -> Iterator[Any]:
        """Yield the ``rank``-th of ``world`` parts."""
        ...


@dataclass(frozen=True)
class BatchResult:
    """What a model answered on a batch, or on one process's part of it.

    Attributes:
        loss: mean loss, or this batch's part of a larger one's mean, 0-dim, with its graph.
        correct: number of right answers (int64, 0-dim), or None where the task does not count them.
        count: number of answers: images, or scored words.
    """

    loss: torch.Tensor
    correct: torch.Tensor | None
    count: int


@dataclass(frozen=True)
class StepSums:
    """One training step over all ranks.

    Attributes:
        objective: what this rank goes backward from.
        total: global objective, 0-dim, detached.
        loss, extra: mean task loss of the global batch, and the method's own term (None: it has none); detached.
        correct, count: right answers (None where the task counts none) and answers, of the global batch.
    """

    objective: torch.Tensor
    total: torch.Tensor
    loss: torch.Tensor
    extra: torch.Tensor | None
    correct: torch.Tensor | None
    count: int


class Ranks(Peers):
    """The processes of a run. By default there is one, and every method leaves its argument as it is.

    Attributes:
        device: where this process trains.
        samples: of the present global batch; None on a single process.
        start, rows: number of this rank's first sample in it, and how many it has.
    """

    def __init__(self, device: torch.device, rank: int = 0, world: int = 1) -> None:
        super().__init__(rank, world)
        self.device = device
        self.samples: int | None = None
        self.start = self.rows = 0
        self._together = world > 1

    @property
    def global_batch(self) -> int | None:
        """Samples of the global batch of which this rank has a part; None where it has all."""
        return self.samples if self._together else None

    @property
    def counts(self) -> bool:
        """Whether this rank's work belongs in the ledger: not where all ranks do the same."""
        return self.is_main or self._together

    @contextlib.contextmanager
    def on_its_own(self, alone: bool = True) -> Iterator[None]:
        """Inside the block this rank computes for itself: sums and limits are its own."""
        before, self._together = self._together, self._together and not alone
        try:
            yield
        finally:
            self._together = before

    # -- batches -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def shard_batch(self, fetch: Callable[[], Batch], cut: bool = True) -> Iterator[Batch]:
        """Give this rank's rows of a global batch, and hold for the time of the block how large that is.

        Args:
            fetch: returns inputs and targets, samples along the first axis.
            cut: they are the global batch, in memory on all ranks; otherwise they are this rank's rows already.

        Raises:
            ConfigError: a batch that comes in shares has fewer samples than there are ranks.
            PeerError: another rank could not read its share.
        """
        if not self.is_distributed:
            yield fetch()
            return
        if cut:
            x, y = fetch()
            total = len(y)
        else:
            (x, y), total = self.sum_over_ranks(fetch, lambda batch: len(batch[1]))
        whole = total < self.world
        if whole and not cut:
            raise ConfigError(f"a batch of {total} samples on {self.world} processes: choose another recipe.batch_size")
        low, high = (0, total) if whole else (self.rank * total // self.world, (self.rank + 1) * total // self.world)
        self.samples, self.start, self.rows = total, low, high - low
        with self.on_its_own(whole):
            yield (x[low:high], y[low:high]) if cut else (x, y)

    def must_share(self, samples: int, batch_size: int) -> None:
        """Make sure, before the first step, that every batch of a pass gives every rank a sample.

        Raises:
            ConfigError: the last one does not.
        """
        last = samples % batch_size or batch_size
        if last < self.world:
            raise ConfigError(
                f"{samples:,} samples in batches of {batch_size} leave {last} for the last one, fewer than the "
                f"{self.world} processes: choose another recipe.batch_size"
            )

    def own_batches(self, batches: Iterable[T]) -> Iterator[T]:
        """Batches of an evaluation for this rank: whole ones, so that each is computed as on one process.

        Loaders give a part of them without reading the others; of what is in memory each rank takes every ``world``-th.
        """
        if not self.is_distributed:
            return iter(batches)
        if isinstance(batches, Shardable):
            return batches.shard(self.rank, self.world)
        return islice(batches, self.rank, None, self.world)

    # -- sums --------------------------------------------------------------------------------------------------------

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, as a new tensor without a graph."""
        return all_reduce(value.detach().clone(), dist.ReduceOp.SUM) if self._together else value

    def limits(self, low: torch.Tensor, high: torch.Tensor, samples: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Limits of a tensor whose samples are spread over the ranks.

        Args:
            low, high: of this rank's part, any shape.
            samples: how many it has, where limits are means over samples; None: they are extremes.
        """
        if not self._together:
            return low, high
        if samples is not None:
            sums = torch.stack([low, high, torch.ones_like(low)]).double() * samples
            low_sum, high_sum, count = all_reduce(sums, dist.ReduceOp.SUM)
            return (low_sum / count).to(low.dtype), (high_sum / count).to(low.dtype)
        both = torch.stack([-low, high])
        both = torch.where(torch.isnan(both), torch.inf, both)  # a maximum may lose nan; inf is refused as well
        negative, high = all_reduce(both, dist.ReduceOp.MAX)
        return -negative, high

    def combine(self, outcome: BatchResult, extra: torch.Tensor | None) -> StepSums:
        """Add up one step's results: the loss is this rank's part of the mean, ``extra`` a sum over its samples."""
        if not self._together:
            total = outcome.loss if extra is None else outcome.loss + extra
            own = None if extra is None else extra.detach()
            return StepSums(total, total.detach(), outcome.loss.detach(), own, outcome.correct, outcome.count)
        samples = self.rows if self.samples is None else self.samples
        part = outcome.loss
        figures = (part, 0 if outcome.correct is None else outcome.correct, 0 if extra is None else extra)
        values = [torch.as_tensor(v, device=part.device).detach().double() for v in figures]
        sums = all_reduce(torch.stack(values), dist.ReduceOp.SUM)
        loss = sums[0].to(part.dtype)
        whole = None if extra is None else sums[2].to(extra.dtype)
        return StepSums(
            part if extra is None else part + extra, loss if whole is None else loss + whole, loss, whole,
            None if outcome.correct is None else sums[1].long(), outcome.count * samples // self.rows,
        )  # fmt: skip

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up gradients; one that no rank has stays None, as on a single process."""
        if not self.is_distributed:
            return
        bucket: list[nn.Parameter] = []
        for parameter in (p for p in parameters if p.requires_grad):
            if bucket and (
                sum(p.numel() for p in bucket) + parameter.numel() > BUCKET or bucket[0].dtype != parameter.dtype
            ):
                self._sum_bucket(bucket)
                bucket = []
            bucket.append(parameter)
        if bucket:
            self._sum_bucket(bucket)

    @torch.no_grad()
    def _sum_bucket(self, bucket: list[nn.Parameter]) -> None:
        there = bucket[0].new_tensor([float(p.grad is not None) for p in bucket])
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket]
        flat = all_reduce(torch.cat([*parts, there]), dist.ReduceOp.SUM)
        if not self._together:
            flat /= self.world  # all ranks have computed the whole batch
        *sums, used = torch.split(flat, [*(p.numel() for p in bucket), len(bucket)])
        missing = any(p.grad is None for p in bucket)
        flags = used.tolist() if missing else [1.0] * len(bucket)
        for parameter, value, flag in zip(bucket, sums, flags, strict=True):
            if parameter.grad is None and flag:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                parameter.grad.copy_(value.view_as(parameter))

    def sum_scores(
        self, loss: torch.Tensor | None, correct: torch.Tensor | None, samples: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
        """Add up the sums of an evaluation whose batches were dealt out; a rank without a batch has None.

        Raises:
            PeerError: another rank could not read, or compute, its batches.
        """
        if not self.is_distributed:
            return loss, correct, samples
        found = self.collect(
            (None if loss is None else loss.item(), None if correct is None else int(correct), samples)
        )
        losses, rights = ([f[i] for f in found if f[i] is not None] for i in (0, 1))
        total = torch.tensor(sum(losses), dtype=torch.float64) if losses else None
        return total, torch.tensor(sum(rights)) if rights else None, sum(f[2] for f in found)

    def sum_ledger(self, ledger: Ledger) -> None:
        """Move everything counted on any rank into the ledger of rank 0."""
        if not self.is_distributed:
            return
        states = self.all_gather(ledger.state_dict())
        ledger.clear()
        if self.is_main:
            for state in states:
                ledger.add(state)

    # -- the run -------------------------------------------------------------------------------------------------------

    def same_model(self, model: nn.Module) -> None:
        """Give all ranks the buffers of rank 0 (statistics and ranges may be each rank's own), and compare parameters.

        Raises:
            ConfigError: parameters differ: something in the method is not the same on all processes.
        """
        if not self.is_distributed:
            return
        with naming_lost_peers():
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)
        self.require_equal({"weights": state_sha256(dict(model.named_parameters()))})

    def reseed(self, seed: int, step: int) -> None:
        """Give all ranks but the first random numbers of their own for dropout, from ``step`` on."""
        if not self.is_main:
            torch.manual_seed(derive_seed(seed, "torch", self.rank, step))

    def context(self, limits: bool) -> dict[str, Any]:
        """What a method is told of the ranks, as arguments of its context; ``limits``: whether ranges are shared."""
        if not self.is_distributed:
            return {}
        return {"world": self.world, "reduce_sum": self.sum, "reduce_limits": self.limits if limits else None}


@contextlib.contextmanager
def connect(device: str = "auto") -> Iterator[Ranks]:
    """Join the other processes that ``torchrun`` has started; without it there is one process.

    Args:
        device: as of :func:`fractrain.util.device.resolve_device`; ``auto`` and ``cuda`` mean one GPU per process.

    Raises:
        ConfigError: a variable of ``torchrun`` has a value that it never sets, or the processes disagree.
        LostPeer: some did not come in time.
        MachineError: no such device, or torch has no support for several processes.
    """
    world = launched_world()
    if world == 1:
        yield Ranks(resolve_device(device))
        return
    if not dist.is_available():
        raise MachineError("this build of torch has no distributed package: run without torchrun")
    gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    where = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}" if gpus else device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    rank = int(os.environ["RANK"])
    join("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo", rank, world)
    try:
        yield Ranks(where, rank, world)
    finally:
        dist.destroy_process_group()
