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
import os
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch

SMALLEST = 1 << 18  # bytes; smaller tensors make no holes that matter
SPARE = 16 << 20  # bytes that idle blocks may add to the most that was ever in use at once
KINDS = {torch.float32: np.float32, torch.uint8: np.uint8, torch.bool: np.bool_, torch.int16: np.int16}
FLAGS = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


@dataclass(eq=False, slots=True)
class Piece:
    """A stretch of a segment, which is what the system gave in one go; ``before`` and ``after`` lie beside it."""

    segment: np.ndarray
    start: int
    size: int
    before: Piece | None = None
    after: Piece | None = None
    free: bool = False


class _User(weakref.ref[np.ndarray]):
    """The array that a piece is lent to."""

    __slots__ = ("piece",)
    piece: Piece


class Blocks:
    """Blocks of memory: in use as long as the tensor (or any other with its storage) lives, else free.

    A free block serves tensors of its size at once, as the steps of training want them again and again. Where there is
    none, blocks are joined with free neighbours and serve smaller tensors: what is left over is a block of its own.

    Attributes:
        peak: most bytes that were in use at once; with what is idle there are hardly more.
        watch: called with the size of every tensor that is made, and with its negative when it is freed, where set.
    """

    def __init__(self) -> None:
        self.peak = 0
        self.watch: Callable[[int], None] | None = None
        self._used = self._idle = 0
        self._ready: dict[int, list[Piece]] = {}  # free, by size, as they were lent
        self._free: dict[int, dict[int, Piece]] = {}  # joined with their neighbours, by size, then by id
        self._sizes: list[int] = []  # of free pieces, ascending
        self._taken: dict[int, int] = {}  # when a size was asked for
        self._clock = count()
        self._users: dict[int, _User] = {}  # by id of the piece
        # Tensors are freed anywhere, also while this is at work: what they leave waits here. Appending is atomic.
        self._returned: deque[Any] = deque()
        self.renew_lock()

    def renew_lock(self) -> None:
        """In a forked process, where another thread may have held it."""
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes in use."""
        with self._lock:
            returned: int = sum(user.piece.size for user in list(self._returned))
            return self._used - returned

    @property
    def idle(self) -> int:
        """Bytes that are free."""
        with self._lock:
            ready: int = sum(size * len(pieces) for size, pieces in self._ready.items())
            returned: int = sum(user.piece.size for user in list(self._returned))
            return self._idle + ready + returned

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, channels_last: bool = False) -> torch.Tensor:
        """Uninitialized; its block is free again when its storage is.

        Args:
            shape: of the tensor.
            dtype: one of ``KINDS``.
            channels_last: for 4-D shapes.
        """
        bytes_ = math.prod(shape) * dtype.itemsize
        size = size_of_block(bytes_)
        with self._lock:
            while self._returned:  # take back what tensors have left
                piece = self._returned.popleft().piece
                del self._users[id(piece)]
                self._used -= piece.size
                self._ready.setdefault(piece.size, []).append(piece)
            self._taken[size] = next(self._clock)
            ready = self._ready.get(size)
            piece = ready.pop() if ready else self._found(size)
            self._used += piece.size
            self.peak = max(self.peak, self._used)
        array: np.ndarray = piece.segment[piece.start : piece.start + bytes_].view(KINDS[dtype])
        if channels_last:
            n, c, h, w = shape
            array = array.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        else:
            array = array.reshape(tuple(shape))
        # This very array is what torch holds as long as the storage lives (views of it would only hold the block).
        if self.watch is None:
            user = _User(array, self._returned.append)
        else:

            def freed(user: weakref.ref[np.ndarray]) -> None:
                if self.watch is not None:
                    self.watch(-bytes_)
                self._returned.append(user)

            user = _User(array, freed)
            self.watch(bytes_)
        user.piece = piece
        self._users[id(piece)] = user
        return torch.from_numpy(array)

    def _found(self, size: int) -> Piece:
        """Part of a free piece that is large enough, or a new one; before, join what is ready with free neighbours."""
        for pieces in self._ready.values():
            for piece in pieces:
                if piece.before is not None and piece.before.free:
                    self._forget(piece.before)
                    piece = _joined(piece.before, piece)
                if piece.after is not None and piece.after.free:
                    self._forget(piece.after)
                    piece = _joined(piece, piece.after)
                self._keep(piece)
        self._ready.clear()
        at = bisect_left(self._sizes, size)
        if at == len(self._sizes):
            self._give_back(size)
            return Piece(np.frombuffer(mmap.mmap(-1, size, **FLAGS), np.uint8), 0, size)
        found = self._free[self._sizes[at]]
        piece = found[next(reversed(found))]
        self._forget(piece)
        if piece.size - size >= SMALLEST:
            self._cut(piece, size)
        return piece

    def _cut(self, piece: Piece, size: int) -> None:
        """Keep ``size`` bytes of a piece; the rest is a free one."""
        rest = Piece(piece.segment, piece.start + size, piece.size - size, piece, piece.after)
        if rest.after is not None:
            rest.after.before = rest
        piece.after, piece.size = rest, size
        self._keep(rest)

    def _keep(self, piece: Piece) -> None:
        piece.free = True
        self._idle += piece.size
        if piece.size not in self._free:
            self._free[piece.size] = {}
            insort(self._sizes, piece.size)
        self._free[piece.size][id(piece)] = piece

    def _forget(self, piece: Piece) -> None:
        piece.free = False
        self._idle -= piece.size
        found = self._free[piece.size]
        del found[id(piece)]
        if not found:
            del self._free[piece.size]
            self._sizes.remove(piece.size)

    def _give_back(self, needed: int) -> None:
        """Return idle segments to the system, of sizes not asked for longest first, until there is room for another."""
        whole = [p for found in self._free.values() for p in found.values() if p.size == p.segment.nbytes]
        for piece in sorted(whole, key=lambda p: self._taken.get(p.size, 0)):
            if self._used + self._idle + needed <= self.peak + SPARE:
                return
            self._forget(piece)


def _joined(left: Piece, right: Piece) -> Piece:
    """Two neighbours as one: the left."""
    left.size += right.size
    left.after = right.after
    if right.after is not None:
        right.after.before = left
    return left


@lru_cache(maxsize=4096)
def size_of_block(wanted: int) -> int:
    """Bytes rounded up to whole pages, and so that sizes which differ by a few percent share blocks."""
    step = max(mmap.PAGESIZE, 1 << max(wanted.bit_length() - 4, 0))
    return -(-wanted // step) * step


_BLOCKS = Blocks()  # one per process, as an allocator is
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_BLOCKS.renew_lock)


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
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if dtype not in KINDS or math.prod(shape) * dtype.itemsize < SMALLEST:
        return torch.empty(tuple(shape), dtype=dtype, memory_format=layout)
    try:
        return _BLOCKS.tensor(shape, dtype, channels_last)
    except OSError:  # the system gives no more memory, or no more pieces of it: PyTorch may, or says so
        return torch.empty(tuple(shape), dtype=dtype, memory_format=layout)


def rows_like(x: torch.Tensor, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, np.ndarray]:
    """As ``torch.empty_like`` of a dense tensor, in a block of its own where it is large.

    Returns:
        The tensor, and its elements in memory order as kernels see them, ``[rows, columns]``.
    """
    dtype = x.dtype if dtype is None else dtype
    # Both layouts are dense where there is one pixel or channel; kernels go by the strides.
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and x.stride()[1::2] == (1, x.shape[1])
    if dtype not in KINDS or x.numel() * dtype.itemsize < SMALLEST:
        y = torch.empty_like(x, dtype=dtype)
    else:
        try:
            y = _BLOCKS.tensor(x.shape, dtype, last)
        except OSError:  # as above
            y = torch.empty_like(x, dtype=dtype)
    array = y.numpy().transpose(0, 2, 3, 1) if last else y.numpy()
    return y, array.reshape(len(x), -1)
