"""The processes of one run as they talk to each other: who writes, what all must agree on, who failed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist

from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError, FractrainError, RunError

T = TypeVar("T")
PATIENCE_S: Final = 60.0
_LAUNCHED: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
_NUMBERS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")


class PeerError(FractrainError):
    """Another rank could not go on; the message is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Fault:
    """What a rank that cannot go on gives in place of its value."""

    message: str
    exit_code: int


class LostPeer(RunError):
    """Another process has ended, or cannot be reached."""


class Peers:
    """Plain values between processes; with one process, every method returns what it was given.

    Attributes:
        rank, world: number of this process, and how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are other processes."""
        return self.world > 1

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank."""
        if not self.is_distributed:
            return [value]
        found: list[Any] = [None] * self.world
        with naming_lost_peers():
            dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: T) -> T:
        """Return rank 0's value."""
        if not self.is_distributed:
            return value
        box = [value if self.is_main else None]
        with naming_lost_peers():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank."""
        if not self.is_distributed:
            return flags
        return tuple(all_reduce(torch.tensor(flags, dtype=torch.uint8), dist.ReduceOp.MAX).bool().tolist())

    def on_first(self, action: Callable[[], T]) -> T | None:
        """Do something on rank 0 while the others wait; they fail where it fails.

        Returns:
            The action's value on rank 0, None elsewhere.

        Raises:
            PeerError: on the other ranks, with the message of rank 0.
        """
        if not self.is_distributed:
            return action()
        value, error = None, None
        if self.is_main:
            try:
                value = action()
            except FractrainError as problem:
                error = problem
        fault = self.broadcast(None if error is None else (str(error), error.exit_code))
        if error is not None:
            raise error
        if fault is not None:
            raise PeerError(*fault)
        return value

    # -- what may fail on one rank alone -----------------------------------------------------------------------------

    def sum_over_ranks(self, action: Callable[[], T], count: Callable[[T], int]) -> tuple[T, int]:
        """Do something on every rank; where it fails on one, it fails on all, and all are still in step.

        Args:
            action: what is done; it must not talk to other ranks.
            count: a number of its value, summed over the ranks. Failures travel with that sum: a caller who needs it
                pays nothing to learn of them.

        Returns:
            This rank's value, and the sum.

        Raises:
            FractrainError: the rank's own, where it failed here.
            PeerError: where it failed on another rank, with that rank's number and message.
        """
        if not self.is_distributed:
            value = action()
            return value, count(value)
        try:
            value = action()
        except FractrainError as error:
            with contextlib.suppress(LostPeer):  # what failed here is what counts
                all_reduce(torch.tensor([0, 1]), dist.ReduceOp.SUM)
                self.fail(error)
            raise
        total, failed = all_reduce(torch.tensor([count(value), 0]), dist.ReduceOp.SUM).tolist()
        if failed:
            self.collect(None)
        return value, int(total)

    def on_all_ranks(self, action: Callable[[], T]) -> T:
        """:meth:`sum_over_ranks` without a sum."""
        return self.sum_over_ranks(action, lambda value: 0)[0]

    def collect(self, value: T) -> list[T]:
        """Return every rank's value, by rank.

        Raises:
            PeerError: a rank called :meth:`fail` instead.
        """
        found = self.all_gather(value)
        for rank, other in enumerate(found):
            if isinstance(other, _Fault):
                raise PeerError(f"rank {rank}: {other.message}", other.exit_code)
        return found

    def fail(self, error: FractrainError) -> None:
        """Tell the ranks that are in :meth:`collect`, or on their way there, why this one cannot go on."""
        self.all_gather(_Fault(str(error), error.exit_code))

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Inside the block every rank works for itself and calls :meth:`collect` once, at the end of its work.

        What fails on one rank alone before that is told to the others, who fail where they collect.
        """
        try:
            yield
        except (PeerError, LostPeer):
            raise  # the others know, or are not there
        except FractrainError as error:
            with contextlib.suppress(LostPeer):
                self.fail(error)
            raise

    def require_equal(self, facts: Mapping[str, Any]) -> None:
        """Make sure that all ranks mean the same run.

        Args:
            facts: name and value of what must be equal; the same names everywhere.

        Raises:
            ConfigError: on every rank: something differs.
        """
        every = self.all_gather({name: str(value) for name, value in facts.items()})
        for rank, other in enumerate(every):
            for name, value in every[0].items():
                if other[name] != value:
                    raise ConfigError(
                        f"the processes of this run disagree about the {name}: rank 0 has {value}, rank {rank} has "
                        f"{other[name]}; start all with the same command, code and data"
                    )


def all_reduce(value: torch.Tensor, op: dist.ReduceOp.RedOpType) -> torch.Tensor:
    """Reduce a tensor over all processes, in place, and return it.

    Raises:
        LostPeer: another process has ended.
    """
    with naming_lost_peers():
        dist.all_reduce(value, op)
    return value


class Waits:
    """Says, once each time, that this process has waited for the others for a minute.

    Attributes:
        limit: seconds after which it gives up.
        since: when the wait began; None while it does not wait.
    """

    def __init__(self) -> None:
        self.limit = 0.0
        self.since: float | None = None
        self._watched = False

    def watch(self, rank: int) -> None:
        """Begin to look at the clock, in a thread of its own."""
        if not self._watched:
            self._watched = True
            threading.Thread(target=self._look, args=(rank,), daemon=True).start()

    def _look(self, rank: int) -> None:
        told: float | None = None
        while True:
            time.sleep(PATIENCE_S / 10)
            since = self.since
            if since is not None and since != told and time.monotonic() - since >= PATIENCE_S:
                told = since
                log_line(f"rank {rank} has waited {PATIENCE_S:.0f} s for the other processes")


waits: Final = Waits()  # a process is in one run at a time


@contextlib.contextmanager
def naming_lost_peers(limit_s: float | None = None) -> Iterator[None]:
    """Say in one line that another process has ended, or takes too long, while this one was waiting for it.

    Args:
        limit_s: seconds that torch was told to wait; None: those of the run.

    Raises:
        LostPeer: so it is.
    """
    began = waits.since = time.monotonic()
    try:
        yield
    except LostPeer:
        raise
    except RuntimeError as error:
        if time.monotonic() - began >= 0.9 * (limit_s or waits.limit or float("inf")):
            raise LostPeer(
                f"another process of this run has not answered for {time.monotonic() - began:.0f} s: it has stopped or "
                "is too slow (FRACTRAIN_RANK_TIMEOUT=seconds waits longer)"
            ) from error
        raise LostPeer(
            "another process of this run has ended or cannot be reached: see its message (FRACTRAIN_DEBUG=1 shows more)"
        ) from error
    finally:
        waits.since = None


def launched_world() -> int:
    """Number of processes that ``torchrun`` has started, 1 without it.

    Raises:
        ConfigError: one of its variables is no number, or out of range.
    """
    if not all(name in os.environ for name in _LAUNCHED):
        return 1
    values = {name: os.environ[name] for name in _NUMBERS}
    for name, text in values.items():
        if not text.isdecimal():
            raise ConfigError(f"environment variable {name}={text!r}: expected a number, as torchrun sets it")
    rank, world = int(values["RANK"]), int(values["WORLD_SIZE"])
    if not rank < world:
        raise ConfigError(f"environment variables RANK={rank}, WORLD_SIZE={world}: the rank must be below the size")
    return world
