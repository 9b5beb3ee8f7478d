"""Training and evaluation batches of images that are read while training, on the training device.

They behave like :class:`fractrain.data.in_memory.TrainStream` and ``EvalStream``, which hold all images in memory.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from typing import Literal, cast

import torch

from fractrain.data.augment import Normalizer
from fractrain.data.batches import BAD_VARIABLE, Batching, Fetched
from fractrain.data.in_memory import Batch
from fractrain.data.info import DatasetInfo
from fractrain.data.prefetch import Fetcher, worker_count
from fractrain.util.errors import ConfigError, DataError

BadPolicy = Literal["stop", "skip"]

_log = logging.getLogger("fractrain.data")


class _Loader:
    """Takes batches from a fetcher, watches them and brings them to the device."""

    def __init__(self, fetcher: Fetcher, info: DatasetInfo, device: torch.device | str) -> None:
        self._fetcher, self._device = fetcher, torch.device(device)
        self._normalize = Normalizer(info.mean, info.std, info.shape[2], self._device)
        self.waited_s = 0.0
        self.bad_images: dict[str, str] = {}

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._fetcher)

    def close(self) -> None:
        """End the worker processes; the next batch starts them again."""
        self._fetcher.close()

    def _batch(self, epoch: int, index: int) -> Batch:
        started = time.perf_counter()
        try:
            found = self._fetcher.fetch(epoch, index)
        finally:
            self.waited_s += time.perf_counter() - started
        self._look_at(found)
        images, labels = (part.to(self._device, non_blocking=True) for part in (found.images, found.labels))
        return self._normalize(images), labels

    def _look_at(self, found: Fetched) -> None:
        if found.error:
            self.close()
            raise DataError(found.error)
        for path, reason in found.bad:
            if path not in self.bad_images:
                self.bad_images[path] = reason
                _log.warning("%s cannot be decoded (%s): replaced", path, reason)


class TrainLoader(_Loader):
    """Shuffled, augmented training batches; batch (epoch, index) is a pure function of the seed and these two numbers.

    Args:
        world: of how many processes' shares of a batch these are one.

    Attributes:
        waited_s: seconds in which training stood still because a batch was not ready, so far.
        bad_images: file and reason of each image that could not be decoded and was replaced, so far.
    """

    def __init__(self, fetcher: Fetcher, info: DatasetInfo, device: torch.device | str, world: int = 1) -> None:
        super().__init__(fetcher, info, device)
        self.world = world

    def batch(self, epoch: int, index: int) -> Batch:
        """Return batch ``index`` of ``epoch``.

        Returns:
            images, float32 ``[B, 3, H, W]`` in channels_last format, and labels, int64 ``[B]``; both on the device.

        Raises:
            IndexError: ``index`` is outside ``range(len(self))``.
            DataError: an image cannot be read, or cannot be decoded and is not to be replaced.
            MachineError: a worker process died.
        """
        return self._batch(epoch, index)


class EvalLoader(_Loader):
    """The images of a part in the order of listing, their middles; can be iterated again and again.

    Arguments and attributes are those of :class:`TrainLoader`.
    """

    def __iter__(self) -> Iterator[Batch]:
        return self.shard(0, 1)

    def shard(self, rank: int, world: int) -> Iterator[Batch]:
        """Yield the ``rank``-th of ``world`` parts of the batches; nothing but these (and a few after) is read."""
        try:
            for index in range(rank * len(self) // world, (rank + 1) * len(self) // world):
                yield self._batch(0, index)
        finally:
            self.close()


def bad_image_policy() -> BadPolicy:
    """Return what is to be done about an image that cannot be decoded, from ``FRACTRAIN_BAD_IMAGES``: stop by default.

    Raises:
        ConfigError: the variable has another value.
    """
    text = os.environ.get(BAD_VARIABLE) or "stop"
    if text not in ("stop", "skip"):
        raise ConfigError(f"{BAD_VARIABLE}={text!r}: expected stop or skip")
    return cast("BadPolicy", text)


class StreamedImages:
    """A data set whose images are read while training, and the batches made of them.

    Attributes:
        info: gives size, normalization and whether images are mirrored.
    """

    info: DatasetInfo

    def fetcher(self, split: str, batching: Batching, device: torch.device, workers: int) -> Fetcher:
        """Where the batches of a part come from; ``workers`` processes or threads decode."""
        raise NotImplementedError

    def train_stream(
        self, batch_size: int, seed: int, device: torch.device | str, augment: bool = True, rank: int = 0,
        world: int = 1, workers: int | None = None,
    ) -> TrainLoader:  # fmt: skip
        """Return the training batches, or one process's share of each.

        Args:
            batch_size: images per batch, over all ranks.
            augment: random crops and mirror images; False gives the middles in the same order.
            rank, world: this process gets its part of every batch.
            workers: how many decode; None means :func:`fractrain.data.prefetch.worker_count`.

        Raises:
            ConfigError: a batch size, variable or part that makes no sense.
        """
        batching = Batching(
            self._size(), batch_size, seed, augment and self.info.augment, self.info.flip, bad_image_policy() == "skip",
            rank, world,
        )  # fmt: skip
        return TrainLoader(self._fetcher("train", batching, device, workers), self.info, device, world)

    def eval_stream(
        self, split: str, batch_size: int, device: torch.device | str, workers: int | None = None
    ) -> EvalLoader:
        """Return the batches of ``test`` or ``val``, in order; arguments as of :meth:`train_stream`."""
        batching = Batching(self._size(), batch_size, replace_bad=bad_image_policy() == "skip")
        return EvalLoader(self._fetcher(split, batching, device, workers), self.info, device)

    def _size(self) -> tuple[int, int]:
        return self.info.shape[1], self.info.shape[2]

    def _fetcher(self, split: str, batching: Batching, on: torch.device | str, workers: int | None) -> Fetcher:
        device = torch.device(on)
        return self.fetcher(split, batching, device, worker_count(device) if workers is None else workers)
