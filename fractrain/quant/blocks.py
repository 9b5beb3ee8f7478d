"""Memory of large tensors on the CPU: blocks of their own that are used again, apart from the C library's heap.

PyTorch asks the C library for 64-byte aligned memory. glibc trims a larger piece of its heap for that and gives the
trimmings to small objects: once the tensor is freed, its place is too small for the next one of that very size, and the
heap grows by holes. (Seen with glibc 2.36: 170 MiB in use, 640 MiB of heap.) What quantized layers allocate lies in
blocks from the system instead, which are used again when their tensor is freed, as by PyTorch's allocator for GPUs.
Fresh pages for every tensor would fill no holes either, but double the time of a step.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

import numpy as np
import torch

SMALLEST = 1 << 18  # bytes; smaller tensors make no holes that matter
SPARE = 16 << 20  # bytes that idle blocks may add to the most that was ever in use at once
KINDS = {torch.float32: np.float32, torch.uint8: np.uint8, torch.bool: np.bool_, torch.int16: np.int16}
FLAGS = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


class Blocks:
    """Blocks by size: in use as long as the tensor (or any other with its storage) lives, else free.

    Attributes:
        used: bytes in use.
        idle: bytes that are free.
        peak: most bytes that were in use at once; with what is idle there are hardly more.
        watch: called with the size of every tensor that is made, and with its negative when it is freed, where set.
    """

    def __init__(self) -> None:
        self.used = self.idle = self.peak = 0
        self.watch: Callable[[int], None] | None = None
        self._free: dict[int, list[np.ndarray]] = {}
        self._taken: dict[int, int] = {}  # when a size was asked for
        self._clock = count()
        self._users: dict[int, weakref.ref[np.ndarray]] = {}

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, channels_last: bool = False) -> torch.Tensor:
        """Uninitialized; its block is free again when its storage is.

        Args:
            shape: of the tensor.
            dtype: one of ``KINDS``.
            channels_last: for 4-D shapes.
        """
        bytes_ = math.prod(shape) * dtype.itemsize
        size = size_of_block(bytes_)
        block = self._take(size)
        array: np.ndarray = block[:bytes_].view(KINDS[dtype])
        if channels_last:
            n, c, h, w = shape
            array = array.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        else:
            array = array.reshape(tuple(shape))
        # This very array is what torch holds as long as the storage lives (views of it would only hold the block).
        number = id(array)

        def freed(_: weakref.ref[np.ndarray]) -> None:
            del self._users[number]
            self.used -= size
            self.idle += size
            if self.watch is not None:
                self.watch(-bytes_)
            self._free.setdefault(size, []).append(block)

        self._users[number] = weakref.ref(array, freed)
        if self.watch is not None:
            self.watch(bytes_)
        return torch.from_numpy(array)

    def _take(self, size: int) -> np.ndarray:
        self._taken[size] = next(self._clock)
        free = self._free.get(size)
        try:
            block = free.pop() if free else None
        except IndexError:  # another thread was faster
            block = None
        if block is None:
            self._give_back(size)
            block = np.frombuffer(mmap.mmap(-1, size, **FLAGS), np.uint8)
        else:
            self.idle -= size
        self.used += size
        self.peak = max(self.peak, self.used)
        return block

    def _give_back(self, needed: int) -> None:
        """Return idle blocks to the system, of sizes not asked for longest first, until there is room for another."""
        for size in sorted(self._free, key=lambda s: self._taken[s]):
            free = self._free[size]
            while free and self.used + self.idle + needed > self.peak + SPARE:
                free.pop()
                self.idle -= size


def size_of_block(wanted: int) -> int:
    """Bytes rounded up to whole pages, and so that sizes which differ by a few percent share blocks."""
    step = max(mmap.PAGESIZE, 1 << max(wanted.bit_length() - 4, 0))
    return -(-wanted // step) * step


_BLOCKS = Blocks()  # one per process, as an allocator is


def blocks() -> Blocks:
    """The blocks of this process."""
    return _BLOCKS


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32, channels_last: bool = False) -> torch.Tensor:
    """As ``torch.empty`` on the CPU, in a block of its own where the tensor is large.

    Args:
        shape: of the tensor.
        dtype: of its elements.
        channels_last: for 4-D tensors ``[N, C, H, W]``: in channels-last memory.
    """
    if dtype in KINDS and math.prod(shape) * dtype.itemsize >= SMALLEST:
        with suppress(OSError):  # the system gives no more memory, or no more pieces of it: PyTorch may, or says so
            return _BLOCKS.tensor(shape, dtype, channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, memory_format=layout)


def empty_like(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """As ``torch.empty_like``, in a block of its own where the tensor is large and dense on the CPU."""
    dtype = x.dtype if dtype is None else dtype
    if x.device.type != "cpu" or x.numel() * dtype.itemsize < SMALLEST:
        return torch.empty_like(x, dtype=dtype)
    # Both layouts are dense where there is one pixel or channel; kernels go by the strides.
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and x.stride()[1::2] == (1, x.shape[1])
    if last or x.is_contiguous():
        return empty(x.shape, dtype, last)
    return torch.empty_like(x, dtype=dtype)
