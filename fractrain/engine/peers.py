"""The processes of one run as they talk to each other: who writes, what all must agree on, who failed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist

from fractrain.errors import ConfigError, FractrainError, RunError

T = TypeVar("T")
_LAUNCHED: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
_NUMBERS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")


class PeerError(FractrainError):
    """Rank 0 could not go on; the message is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Peers:
    """Plain values between processes; with one process, every method returns what it was given.

    Attributes:
        rank, world: number of this process, and how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.world > 1

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.world
        with listening():
            dist.all_gather_object(found, value)
        return found

    def tell(self, value: T) -> T:
        """Return rank 0's value."""
        if not self.several:
            return value
        box = [value if self.first else None]
        with listening():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank."""
        if not self.several:
            return flags
        return tuple(reduced(torch.tensor(flags, dtype=torch.uint8), dist.ReduceOp.MAX).bool().tolist())

    def on_first(self, action: Callable[[], T]) -> T | None:
        """Do something on rank 0 while the others wait; they fail where it fails.

        Returns:
            The action's value on rank 0, None elsewhere.

        Raises:
            PeerError: on the other ranks, with the message of rank 0.
        """
        if not self.several:
            return action()
        value, error = None, None
        if self.first:
            try:
                value = action()
            except FractrainError as problem:
                error = problem
        fault = self.tell(None if error is None else (str(error), error.exit_code))
        if error is not None:
            raise error
        if fault is not None:
            raise PeerError(*fault)
        return value

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Make sure that all ranks mean the same run.

        Args:
            facts: name and value of what must be equal; the same names everywhere.

        Raises:
            ConfigError: on every rank: something differs.
        """
        every = self.gather({name: str(value) for name, value in facts.items()})
        for rank, other in enumerate(every):
            for name, value in every[0].items():
                if other[name] != value:
                    raise ConfigError(
                        f"the processes of this run disagree about the {name}: rank 0 has {value}, rank {rank} has "
                        f"{other[name]}; start all with the same command, code and data"
                    )


def reduced(value: torch.Tensor, op: dist.ReduceOp.RedOpType) -> torch.Tensor:
    """Reduce a tensor over all processes, in place, and return it.

    Raises:
        RunError: another process has ended.
    """
    with listening():
        dist.all_reduce(value, op)
    return value


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Say in one line that another process has ended while this one was waiting for it.

    Raises:
        RunError: so it is.
    """
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "another process of this run has ended or cannot be reached: see its message (FRACTRAIN_DEBUG=1 shows more)"
        ) from error


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
