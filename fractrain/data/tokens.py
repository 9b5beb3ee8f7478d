"""A text as numbers of words, in memory or in a file that is mapped, and windows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fractrain.data.vocabulary import TokenArray

Windows = npt.NDArray[np.int64]


class Tokens:
    """One part of a text as numbers."""

    def all(self) -> TokenArray:
        """Return the numbers, shape ``[n]``."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.all())

    def windows(self, starts: Sequence[int], size: int) -> Windows:
        """Return copies of ``size`` tokens from each start on: int64, shape ``[len(starts), size]``."""
        array, out = self.all(), np.empty((len(starts), size), dtype=np.int64)
        for row, start in enumerate(starts):
            out[row] = array[start : start + size]
        return out

    def counts(self, words: int) -> npt.NDArray[np.int64]:
        """How often each word occurs: int64, shape ``[words]``; a few MB are looked at at a time."""
        total = np.zeros(words, dtype=np.int64)
        for start in range(0, len(self), 1 << 20):
            total += np.bincount(self.all()[start : start + (1 << 20)], minlength=words)
        return total


@dataclass(frozen=True, eq=False)
class MemoryTokens(Tokens):
    """Tokens in memory, shape ``[n]``; for small texts."""

    array: TokenArray

    def all(self) -> TokenArray:
        """Return the array."""
        return self.array


@dataclass(frozen=True)
class FileTokens(Tokens):
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

    def all(self) -> TokenArray:
        """Map the file."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=(self.length,))
