"""Batches of images on the training device; any batch of any epoch can be asked for at any time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fractrain.data.augment import EpochPlan, Normalizer, crop_flip, epoch_plan
from fractrain.data.images import Split
from fractrain.data.info import DatasetInfo
from fractrain.util.errors import ConfigError

Batch = tuple[Tensor, Tensor]


def fits_on_device(split: Split, device: torch.device | str) -> bool:
    """Tell whether the images may live on the device: on CUDA, when they take at most a quarter of its free memory.

    On the CPU they are where they are, so the answer is yes; on other devices (shared memory) likewise.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return split.images.numel() <= free / 4


class _Pixels:
    """Images as ``[N, H, W, C]`` on the device or, if too large for it, on the CPU; picked and normalized by batch."""

    def __init__(self, split: Split, info: DatasetInfo, batch_size: int, device: torch.device | str) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if len(split) == 0:
            raise ConfigError(f"this part of {info.name} has no images")
        self.size = len(split)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.home = self.device if fits_on_device(split, self.device) else torch.device("cpu")
        self.images = split.images.to(self.home).permute(0, 2, 3, 1).contiguous()
        self.labels = split.labels.to(self.home)
        self._normalize = Normalizer(info.mean, info.std, split.images.shape[3], self.device)

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def bounds(self, index: int) -> slice:
        """Return the positions of batch ``index``; the last batch may be smaller."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        return slice(index * self.batch_size, min((index + 1) * self.batch_size, self.size))

    def finish(self, images: Tensor, labels: Tensor) -> Batch:
        """Move a batch (still uint8, a quarter of the bytes) to the device if it is not there, and normalize it."""
        if self.home != self.device:
            images, labels = (part.pin_memory() if self.device.type == "cuda" else part for part in (images, labels))
            images, labels = (part.to(self.device, non_blocking=True) for part in (images, labels))
        return self._normalize(images), labels


class TrainStream:
    """Shuffled, augmented training batches; batch (epoch, index) is a pure function of the seed and these two numbers.

    Nothing is consumed: a run that resumes asks for the batch at which it stopped and gets the same bits. The
    choices are made by position in the epoch, so they do not depend on the batch size either.

    Args:
        info: gives normalization and augmentation.
        batch_size: images per batch; the last batch of an epoch holds the rest.
        augment: crop and flip as ``info`` says; False gives the plain images in the same order.

    Raises:
        ConfigError: batch size below 1, or no images.
    """

    def __init__(
        self, split: Split, info: DatasetInfo, batch_size: int, seed: int, device: torch.device | str,
        augment: bool = True,
    ) -> None:  # fmt: skip
        self._pixels = _Pixels(split, info, batch_size, device)
        self._info = info
        self._seed = seed
        self._augment = augment and info.augment
        self._epoch = -1
        self._plan: EpochPlan | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._pixels)

    def batch(self, epoch: int, index: int) -> Batch:
        """Return batch ``index`` of ``epoch``.

        Returns:
            images, float32 ``[B, C, H, W]`` in channels_last format, and labels, int64 ``[B]``; both on the device.

        Raises:
            IndexError: ``index`` is outside ``range(len(self))``.
        """
        pixels, at = self._pixels, self._pixels.bounds(index)
        plan = self._plan_of(epoch)
        chosen = plan.order[at]
        images = pixels.images.index_select(0, chosen)
        if self._augment:
            images = crop_flip(images, plan.top[at], plan.left[at], plan.flip[at], self._info.pad)
        return pixels.finish(images, pixels.labels.index_select(0, chosen))

    def _plan_of(self, epoch: int) -> EpochPlan:
        if self._plan is None or epoch != self._epoch:
            plan = epoch_plan(self._pixels.size, self._info, self._seed, epoch)
            self._plan, self._epoch = plan.to(self._pixels.home), epoch
        return self._plan


class EvalStream:
    """The images of a part in their own order, normalized, not augmented; can be iterated again and again.

    Args:
        info: gives the normalization.
        batch_size: images per batch; the last batch holds the rest.

    Raises:
        ConfigError: batch size below 1, or no images.
    """

    def __init__(self, split: Split, info: DatasetInfo, batch_size: int, device: torch.device | str) -> None:
        self._pixels = _Pixels(split, info, batch_size, device)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._pixels)

    def batch(self, index: int) -> Batch:
        """Return batch ``index``; as :meth:`TrainStream.batch`."""
        at = self._pixels.bounds(index)
        return self._pixels.finish(self._pixels.images[at], self._pixels.labels[at])

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(index) for index in range(len(self)))
