"""Batches prepared ahead of time by worker processes, as long as they are asked for in order."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import spawn
from typing import Any, Final, Protocol, cast
from unittest.mock import patch

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fractrain.data.batches import Fetched
from fractrain.util.errors import ConfigError, MachineError

WORKERS_VARIABLE: Final = "FRACTRAIN_WORKERS"
_AHEAD: Final = 2  # batches in preparation per worker
_MOST_WORKERS: Final = 16
# What DataLoader says of a worker that is gone, and of means that ran out; anything else is an error of our own.
_DIED: Final = re.compile(r"DataLoader worker \(pid.*\) (?:is killed|exited)")
_SHORT: Final = re.compile(r"shared memory|\bshm\b|Too many open files")
_STARTING: Final = threading.Lock()  # one at a time changes how processes start

At = tuple[int, int]


class Fetcher(Protocol):
    """Where a loader gets its batches."""

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def fetch(self, epoch: int, index: int) -> Fetched:
        """Return one batch, still uint8, on the CPU."""
        ...

    def close(self) -> None:
        """Stop what runs in the background; the next fetch starts it again."""
        ...


class RandomAccess(Protocol):
    """Batches by (epoch, index), picklable."""

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def __getitem__(self, at: At) -> Fetched:
        """Return one batch."""
        ...


class WorkerFetcher:
    """Asks worker processes for the batches that come next.

    What is asked for decides, not the workers: a batch out of order starts the workers anew at that place, and a step
    forward that is shorter than the queue (methods may skip steps) drops what lies between.

    Args:
        workers: processes; 0 means that batches are made in this process, when they are asked for.
        wrap: go on with the next epoch after the last batch; False stops there.
        pin: copy batches to page-locked memory, from which a GPU reads faster.
    """

    def __init__(self, batches: RandomAccess, workers: int, wrap: bool = True, pin: bool = False) -> None:
        self._batches, self._wrap = batches, wrap
        self.workers, self._pin = min(workers, len(batches)) if not wrap else workers, pin
        self._queue: Iterator[Fetched] | None = None
        self._next = 0  # running number of the batch that the queue gives next

    def __len__(self) -> int:
        return len(self._batches)

    def fetch(self, epoch: int, index: int) -> Fetched:
        """Return batch ``index`` of ``epoch``.

        Raises:
            IndexError: ``index`` is outside ``range(len(self))``.
            MachineError: a worker process died, or shared memory or open files ran out.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        if self.workers == 0:
            return self._batches[epoch, index]
        number = epoch * len(self) + index
        if self._queue is None or not 0 <= number - self._next <= self.workers * _AHEAD:
            self.close()
            self._queue, self._next = self._start(number), number
        while True:
            found = self._take()
            self._next += 1
            if self._next > number:
                return found

    def close(self) -> None:
        """End the worker processes."""
        self._queue = None  # the loader's iterator ends its processes when nobody holds it any more

    def _take(self) -> Fetched:
        assert self._queue is not None
        try:
            return next(self._queue)
        except RuntimeError as error:
            self.close()
            text = str(error).strip() or type(error).__name__
            if _DIED.search(text):
                what = f"a worker process that reads images died ({text.splitlines()[0]})"
            elif _SHORT.search(text.splitlines()[-1]):
                what = f"worker processes that read images cannot hand them over ({text.splitlines()[-1]})"
            else:  # raised by what a worker does, whose traceback is in the text
                raise
            raise MachineError(
                f"{what}; give the machine more shared memory (/dev/shm), or set {WORKERS_VARIABLE} to a smaller "
                "number (0: no workers)"
            ) from error

    def _start(self, number: int) -> Iterator[Fetched]:
        # A server process of one thread forks the workers: safe beside CUDA and OpenMP, which a plain fork is not,
        # and quick, because it has imported torch once for all of them.
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(kind)
        if kind == "forkserver":
            context.set_forkserver_preload([__name__, "torchvision.transforms"])
            _start_server()
        loader: DataLoader[Fetched] = DataLoader(
            cast("Dataset[Fetched]", self._batches),
            batch_size=None,
            sampler=_Ascending(number, len(self), self._wrap),
            num_workers=self.workers,
            prefetch_factor=_AHEAD,
            collate_fn=_as_is,
            worker_init_fn=_leave_signals,
            multiprocessing_context=context,
            pin_memory=self._pin,
            generator=torch.Generator(),  # else it draws from the global one, which belongs to the training
        )
        with _without_script():
            return iter(loader)


def worker_count(device: torch.device, variables: os._Environ[str] | dict[str, str] | None = None) -> int:
    """Return the number of worker processes: ``FRACTRAIN_WORKERS``, or what the machine and the device suggest.

    A GPU leaves this process's share of the cores to the workers, 16 at most; a CPU that trains leaves half of them.

    Raises:
        ConfigError: the variable is no number.
    """
    variables = os.environ if variables is None else variables
    text = variables.get(WORKERS_VARIABLE, "")
    if text:
        if not text.isdecimal():
            raise ConfigError(f"{WORKERS_VARIABLE}={text!r}: expected a number of worker processes, 0 or more")
        return int(text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(variables.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return max(1, min(_MOST_WORKERS, cores if device.type == "cuda" else cores // 2))


class _Ascending(Sampler[At]):
    """(epoch, index) of one batch after the other, from running number ``first`` on."""

    def __init__(self, first: int, per_epoch: int, wrap: bool) -> None:
        self.first, self.per_epoch, self.wrap = first, per_epoch, wrap

    def __iter__(self) -> Iterator[At]:
        number = self.first
        while self.wrap or number // self.per_epoch == self.first // self.per_epoch:
            yield divmod(number, self.per_epoch)
            number += 1


def _as_is(batch: Any) -> Any:
    return batch


def _start_server() -> None:
    """Start the server that forks workers, unless it runs. For seconds it imports torch: Ctrl-C is not for it then."""
    from multiprocessing import forkserver

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored stays so in a process that is started now
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _without_script() -> Iterator[None]:
    """Have processes that start inside not run the script that started everything, whose names they do not need.

    The standard library imports it in each of them: one without ``if __name__ == "__main__"`` would run again there.
    """
    with _STARTING, patch.object(spawn, "get_preparation_data", _no_main(spawn.get_preparation_data)):
        yield


def _no_main(asked: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    return lambda name: {key: value for key, value in asked(name).items() if not key.startswith("init_main")}


def _leave_signals(worker: int) -> None:
    """Ctrl-C goes to every process of the terminal; what it means is decided in the one that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
