"""A text as numbers of words, in memory or in a file that is mapped, and windows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fractrain.data.vocabulary import TokenArray

Windows = npt.NDArray[np.int64]


class Tokens(Protocol):
    """One part of a text as numbers."""

    def __len__(self) -> int:
        """Number of tokens."""

    def windows(self, starts: Sequence[int], size: int) -> Windows:
        """Return ``size`` tokens from each start on: int64, shape ``[len(starts), size]``."""

    def counts(self, words: int) -> npt.NDArray[np.int64]:
        """How often each word occurs: int64, shape ``[words]``."""


@dataclass(frozen=True, eq=False)
class MemoryTokens:
    """Tokens in memory, shape ``[n]``; for small texts."""

    array: TokenArray

    def __len__(self) -> int:
        return len(self.array)

    def windows(self, starts: Sequence[int], size: int) -> Windows:
        """Return windows; see :class:`Tokens`."""
        return copy_windows(self.array, starts, size)

    def counts(self, words: int) -> npt.NDArray[np.int64]:
        """Count words; see :class:`Tokens`."""
        return np.bincount(self.array, minlength=words).astype(np.int64)


@dataclass(frozen=True)
class FileTokens:
    """Tokens in a ``.npy`` file.

    The file is mapped anew for every batch: the system's page cache holds what was read, for all processes together,
    and no process grows by it. An object is a path and two numbers, so sending it to a worker costs nothing.

    Attributes:
        length: tokens in it.
        offset: bytes before the first.
        dtype: name of the number type.
    """

    path: Path
    length: int
    offset: int
    dtype: str

    @classmethod
    def open(cls, path: Path) -> FileTokens:
        """Read the header of a file.

        Raises:
            ValueError, OSError: not a one-dimensional ``.npy`` file of whole numbers.
        """
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap) or array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"{path} does not hold one row of whole numbers")
        return cls(path, len(array), array.offset, array.dtype.str)

    def __len__(self) -> int:
        return self.length

    def windows(self, starts: Sequence[int], size: int) -> Windows:
        """Return windows; see :class:`Tokens`."""
        return copy_windows(self._map(), starts, size)

    def counts(self, words: int) -> npt.NDArray[np.int64]:
        """Count words, a few MB of the file at a time; see :class:`Tokens`."""
        total = np.zeros(words, dtype=np.int64)
        for start in range(0, self.length, 1 << 20):
            total += np.bincount(self._map()[start : start + (1 << 20)], minlength=words)
        return total

    def _map(self) -> TokenArray:
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=(self.length,))


def copy_windows(array: TokenArray, starts: Sequence[int], size: int) -> Windows:
    """Copy ``size`` tokens from each start on into a new int64 array ``[len(starts), size]``."""
    out = np.empty((len(starts), size), dtype=np.int64)
    for row, start in enumerate(starts):
        out[row] = array[start : start + size]
    return out
