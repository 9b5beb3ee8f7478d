"""Images in memory: one split, one data set, and the stable way in which splits are drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fractrain.data.info import DatasetInfo, DataSource
from fractrain.util.errors import ConfigError, DataError
from fractrain.util.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one part of a data set, on the CPU.

    Attributes:
        images: uint8, shape ``[N, C, H, W]``, contiguous.
        labels: int64, shape ``[N]``.

    Raises:
        DataError: a dtype or shape is another one.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        import torch

        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or not self.images.is_contiguous():
            raise DataError(f"images must be contiguous uint8 [N, C, H, W], not {_describe(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(f"labels must be int64 [{len(self.images)}], not {_describe(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: IntArray) -> Split:
        """Return the samples at ``index`` (int64, shape ``[n]``) in that order, as a copy."""
        import torch

        chosen = torch.from_numpy(index)
        return Split(self.images[chosen].contiguous(), self.labels[chosen])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A loaded data set.

    Attributes:
        info: what is known of the data set.
        train: training part (without the validation part).
        val: validation part, taken from the training part, or None.
    """

    info: DatasetInfo
    train: Split
    test: Split
    val: Split | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content of all parts as they are (shapes, images, labels), as a hex string."""
        total = hashlib.sha256()
        for name, split in (("train", self.train), ("test", self.test), ("val", self.val)):
            if split is not None:
                total.update(f"{name}{tuple(split.images.shape)}".encode())
                total.update(split.images.numpy().data)
                total.update(split.labels.numpy().astype("<i8").tobytes())
        return total.hexdigest()


class ArraySource(DataSource):
    """Images that fit into memory, as arrays; override :meth:`arrays`."""

    in_memory: ClassVar[bool] = True

    def arrays(
        self, info: DatasetInfo, data_dir: str | Path | None, download: bool
    ) -> tuple[tuple[npt.NDArray[Any], npt.NDArray[Any]], tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Return the training part and the test part.

        Returns:
            of each part the images, uint8 ``[N, C, H, W]``, and the labels, whole numbers ``[N]`` from 0.
        """
        raise NotImplementedError

    def load(
        self, info: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int
    ) -> ImageData:
        """Load the data set; the validation part is a function of ``seed``."""
        train, test = (split_of(*part) for part in self.arrays(info, data_dir, download))
        train, val = hold_out(info, train, val_fraction, seed)
        return ImageData(info, train, test, val)


def split_of(images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Split:
    """Return a part from arrays: uint8 ``[N, C, H, W]`` and whole numbers ``[N]``."""
    import torch

    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def permutation(n: int, seed: int) -> IntArray:
    """Return a permutation of ``range(n)`` that stays the same in every version of every library.

    It orders the raw 64-bit stream of PCG64, which NumPy promises never to change (NEP 19); the shuffles of NumPy and
    torch carry no such promise, and a split must not move when a package is updated.
    """
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable").astype(np.int64)


def stratified(labels: IntArray, count: int, seed: int) -> tuple[IntArray, IntArray]:
    """Divide samples in two parts with the same class balance.

    Each class gives its share of ``count``, rounded down; what is missing is taken from the classes with the largest
    remainder (the lower class first). Which samples of a class are taken depends on ``seed`` only.

    Args:
        labels: int64, shape ``[N]``.
        count: how many samples to take, 0 to N.
        seed: where the choice comes from.

    Returns:
        indices kept and indices taken, both ascending.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares, left_over = np.divmod(sizes.astype(np.int64) * count, len(labels))
    missing = count - int(shares.sum())
    shares[np.argsort(-left_over, kind="stable")[:missing]] += 1
    taken = np.zeros(len(labels), dtype=bool)
    for label, share in zip(classes.tolist(), shares.tolist(), strict=True):
        members = np.flatnonzero(labels == label)
        taken[members[permutation(len(members), derive_seed(seed, "class", label))[:share]]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def validation_count(info: DatasetInfo, train_size: int, fraction: float) -> int:
    """Return how many of ``train_size`` samples a validation part of this fraction has.

    Raises:
        ConfigError: the fraction is outside [0, 1), or leaves a class without a sample.
    """
    if not 0.0 <= fraction < 1.0:
        raise ConfigError(f"val_fraction is {fraction}; it must be at least 0 and below 1 (0 = no validation part)")
    count = round(fraction * train_size)
    if fraction > 0.0 and not info.classes <= count <= train_size - info.classes:
        raise ConfigError(
            f"val_fraction {fraction} of {info.name} takes {count} of {train_size} samples, which leaves some of the "
            f"{info.classes} classes empty; choose between {info.classes / train_size:.3g} and "
            f"{1 - info.classes / train_size:.3g}, or 0"
        )
    return count


def hold_out(info: DatasetInfo, train: Split, fraction: float, seed: int) -> tuple[Split, Split | None]:
    """Divide a training part into training and validation parts, stratified; fraction 0 gives no validation part.

    Raises:
        ConfigError: see :func:`validation_count`.
    """
    count = validation_count(info, len(train), fraction)
    if count == 0:
        return train, None
    kept, taken = stratified(train.labels.numpy(), count, derive_seed(seed, "validation", info.name))
    return train.take(kept), train.take(taken)


def _describe(tensor: Tensor) -> str:
    order = "" if tensor.is_contiguous() else " (not contiguous)"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}{order}"
