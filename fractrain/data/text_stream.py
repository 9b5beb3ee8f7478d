"""Batches of word sequences; any batch of any epoch can be asked for at any time.

One sample is one sequence of ``context`` words, with the word after each as its target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from fractrain.data.tokens import Tokens
from fractrain.util.errors import ConfigError
from fractrain.util.seeds import derive_seed

Batch = tuple[Tensor, Tensor]
IGNORED: Final = -100  # target of a word that an earlier window has scored; as fractrain.engine.task has it


class _Windows:
    """Windows of ``context + 1`` tokens, cut into inputs and targets on the device."""

    def __init__(self, tokens: Tokens, context: int, batch_size: int, device: torch.device | str, least: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if context < 1:
            raise ConfigError(f"the context is {context} words; it must be at least 1")
        if len(tokens) < least:
            raise ConfigError(f"a text of {len(tokens):,} words is too short for a context of {context} words")
        self.tokens, self.context, self.batch_size = tokens, context, batch_size
        self.device = torch.device(device)

    def batches(self, windows: int) -> int:
        """Batches that so many windows make; the last one may be smaller."""
        return -(-windows // self.batch_size)

    def bounds(self, index: int, windows: int) -> slice:
        """Return the positions of batch ``index``."""
        if not 0 <= index < self.batches(windows):
            raise IndexError(f"batch {index} of {self.batches(windows)}")
        return slice(index * self.batch_size, min((index + 1) * self.batch_size, windows))

    def read(self, starts: Sequence[int]) -> Batch:
        """Return inputs and targets, int64 ``[len(starts), context]``, on the CPU."""
        both = torch.from_numpy(self.tokens.windows(starts, self.context + 1))
        # Copies: slices of a single window are contiguous as they are, and targets are written over.
        return both[:, :-1].clone(), both[:, 1:].clone()

    def finish(self, x: Tensor, y: Tensor) -> Batch:
        """Move a batch to the device."""
        if self.device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


class TextTrainStream:
    """Shuffled windows of a text; batch (epoch, index) is a pure function of the seed and these two numbers.

    An epoch cuts the text into windows that lie side by side, from an offset on that is drawn for each epoch (0 to
    context - 1, so that a word does not stand at the same place of its window every time), and shuffles them. Every
    epoch has the same number of windows, ``(words - context) // context``: at most two windows' worth of words, at the
    two ends, is left out. Neither offset nor order depends on the batch size.

    Args:
        context: words per sequence.
        batch_size: sequences per batch; the last batch of an epoch holds the rest.

    Raises:
        ConfigError: batch size or context below 1, or a text of less than two contexts.
    """

    def __init__(self, tokens: Tokens, context: int, batch_size: int, seed: int, device: torch.device | str) -> None:
        self._windows = _Windows(tokens, context, batch_size, device, least=2 * context)
        self._count = (len(tokens) - context) // context
        self._seed = seed
        self._epoch, self._starts = -1, torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._windows.batches(self._count)

    def batch(self, epoch: int, index: int) -> Batch:
        """Return batch ``index`` of ``epoch``.

        Returns:
            words and the words after them, int64 ``[B, context]``, both on the device.

        Raises:
            IndexError: ``index`` is outside ``range(len(self))``.
        """
        at = self._windows.bounds(index, self._count)
        return self._windows.finish(*self._windows.read(self.starts(epoch)[at].tolist()))

    def starts(self, epoch: int) -> Tensor:
        """Return the first token of each window of ``epoch`` in its order; int64, shape ``[windows]``."""
        if epoch != self._epoch:
            generator = torch.Generator(device="cpu").manual_seed(derive_seed(self._seed, "order", epoch))
            context = self._windows.context
            offset = int(torch.randint(0, context, (), generator=generator))
            self._starts = torch.randperm(self._count, generator=generator) * context + offset
            self._epoch = epoch
        return self._starts


class TextEvalStream:
    """Windows of a text in order, every word but the first scored exactly once; can be iterated again and again.

    A window begins ``stride`` words after the one before and scores the words that none before has scored; other
    targets are -100. With a stride below the context a word is predicted from at least ``context - stride`` words (but
    for the first window). The last window is shifted back to end with the text, and is as long as all others.

    Args:
        context: words per sequence.
        stride: words from window to window, 1 to ``context``.
        batch_size: sequences per batch; the last batch holds the rest.

    Raises:
        ConfigError: batch size, context or stride out of range, or a text shorter than one window.
    """

    def __init__(
        self, tokens: Tokens, context: int, stride: int, batch_size: int, device: torch.device | str
    ) -> None:  # fmt: skip
        self._windows = _Windows(tokens, context, batch_size, device, least=context + 1)
        if not 1 <= stride <= context:
            raise ConfigError(f"the stride is {stride} words; it must be 1 to the context, {context}")
        last = len(tokens) - 1 - context
        self._starts = [*range(0, last, stride), last]
        self._stride = stride

    def __len__(self) -> int:
        """Number of batches."""
        return self._windows.batches(len(self._starts))

    def batch(self, index: int) -> Batch:
        """Return batch ``index``: words and targets, int64 ``[B, context]``."""
        at = self._windows.bounds(index, len(self._starts))
        starts = self._starts[at]
        x, y = self._windows.read(starts)
        for row, start in enumerate(starts, start=at.start):
            done = self._starts[row - 1] + self._windows.context if row else 0  # targets up to this token are scored
            y[row - at.start, : max(0, done - start)] = IGNORED
        return self._windows.finish(x, y)

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(index) for index in range(len(self)))
