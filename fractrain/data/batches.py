"""Batches of images read from files and decoded: what a worker process does.

Batch (epoch, index) is a pure function of the seed and these two numbers. The order of an epoch, the crops and the
mirror images are drawn by position in the epoch, so neither batch size nor workers nor ranks change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fractrain.data.decode import BadImage, Pixels, decode, eval_pixels, train_pixels
from fractrain.data.folder import FolderSplit
from fractrain.data.images import IntArray
from fractrain.data.shards import rank_positions
from fractrain.util.errors import ConfigError
from fractrain.util.seeds import derive_seed

BAD_VARIABLE: Final = "FRACTRAIN_BAD_IMAGES"
HOW_TO_SKIP: Final = f"mend the file, or set {BAD_VARIABLE}=skip to have such images replaced and counted"


class Fetched(NamedTuple):
    """One batch as it comes out of a worker.

    Attributes:
        images: uint8, shape ``[B, H, W, 3]``.
        labels: int64, shape ``[B]``.
        bad: (file, reason) of each image that could not be decoded and was replaced.
        error: why the batch cannot be used, or an empty string.
    """

    images: Tensor
    labels: Tensor
    bad: list[tuple[str, str]]
    error: str


@dataclass(frozen=True)
class Batching:
    """How a part's images become batches, whatever holds them.

    Attributes:
        size: (height, width) of the images wanted.
        batch_size: images per batch, over all ranks; the last batch of an epoch holds the rest.
        seed: where order and crops derive from; None means the order of the part, evaluation preprocessing.
        augment: random crops (and mirror images); False means evaluation preprocessing in shuffled order.
        mirror: mirror images half of the time.
        replace_bad: an image that cannot be decoded is replaced; otherwise it makes the batch unusable.
        rank, world: this process gets the ``rank``-th of ``world`` parts of every batch.

    Raises:
        ConfigError: batch size below the number of ranks.
    """

    size: tuple[int, int]
    batch_size: int
    seed: int | None = None
    augment: bool = False
    mirror: bool = False
    replace_bad: bool = False
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < self.world:
            raise ConfigError(
                f"batch_size is {self.batch_size}; it must be at least {self.world}, one image per process"
            )

    def count(self, images: int) -> int:
        """Batches of an epoch of so many images."""
        return -(-images // self.batch_size)

    def crop_seed(self, epoch: int, position: int) -> int | None:
        """Seed of the crop at a position of an epoch; None means the middle."""
        return derive_seed(self.seed, "crop", epoch, position) if self.augment and self.seed is not None else None


class UnreadableFile(Exception):
    """A file cannot be read at all; the text names it and says why."""


def prepare(data: bytes, size: tuple[int, int], seed: int | None, mirror: bool) -> Pixels:
    """Decode one image and bring it to ``size``: at random from ``seed``, or its middle when that is None.

    Raises:
        BadImage: it cannot be decoded.
    """
    image = decode(data)
    return eval_pixels(image, size) if seed is None else train_pixels(image, size, mirror, seed)


class FolderBatches:
    """Random access to the batches of one part of a folder; small enough to be sent to worker processes.

    Args:
        batching: how; a bad image is replaced by the next one of its class, in the order of listing, that can be
            decoded.

    Raises:
        ConfigError: no images.
    """

    def __init__(self, part: FolderSplit, batching: Batching) -> None:
        if len(part) == 0:
            raise ConfigError(f"{part.root} has no images")
        self.part, self.batching = part, batching
        self._epoch, self._order = -1, np.arange(len(part))

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.batching.count(len(self.part))

    def positions(self, index: int) -> range:
        """Return the positions in the epoch that make up this rank's part of batch ``index``.

        Raises:
            IndexError: ``index`` is outside ``range(len(self))``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        b = self.batching
        first = index * b.batch_size
        places = rank_positions(min(b.batch_size, len(self.part) - first), b.rank, b.world)
        return range(first + places.start, first + places.stop)

    def __getitem__(self, at: tuple[int, int]) -> Fetched:
        """Return batch ``index`` of ``epoch`` for ``at = (epoch, index)``; troubles with files are in the result."""
        epoch, index = at
        order, positions = self._order_of(epoch), self.positions(index)
        files = order[positions.start : positions.stop]
        bad: list[tuple[str, str]] = []
        # Filled in place: a list of 256 arrays stacked afterwards would copy every batch once more.
        images = np.zeros((len(positions), *self.batching.size, 3), dtype=np.uint8)
        error = ""
        for row, (position, file) in enumerate(zip(positions, files.tolist(), strict=True)):
            try:
                images[row] = self._pixels(file, epoch, position, bad)
            except (BadImage, UnreadableFile) as problem:
                error = str(problem)
                break
        labels = torch.from_numpy(self.part.labels[files])
        return Fetched(torch.from_numpy(images), labels, bad, error)

    def _order_of(self, epoch: int) -> IntArray:
        """Return which file stands at each position of ``epoch``."""
        if self.batching.seed is not None and epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.batching.seed, "order", epoch))
            self._order, self._epoch = torch.randperm(len(self.part), generator=generator).numpy(), epoch
        return self._order

    def _pixels(self, file: int, epoch: int, position: int, bad: list[tuple[str, str]]) -> Pixels:
        """Return the pixels for one position, of the next good file of the class if ``file`` is bad.

        Raises:
            BadImage: the file is bad and not to be replaced, or all files of the class are; the text names it.
            UnreadableFile: a file cannot be read.
        """
        try:
            return self._prepared(file, epoch, position)
        except BadImage as problem:
            path = str(self.part.path(file))
            if not self.batching.replace_bad:
                raise BadImage(f"{path} cannot be decoded: {problem}; {HOW_TO_SKIP}") from problem
            bad.append((path, str(problem)))
        members = np.flatnonzero(self.part.labels == self.part.labels[file])
        at = int(np.searchsorted(members, file))
        for other in np.roll(members, -at)[1:].tolist():
            try:
                return self._prepared(other, epoch, position)
            except BadImage as problem:
                bad.append((str(self.part.path(other)), str(problem)))
        raise BadImage(f"{path} cannot be decoded, nor any other image of its class")

    def _prepared(self, file: int, epoch: int, position: int) -> Pixels:
        path = self.part.path(file)
        try:
            data = path.read_bytes()
        except OSError as error:  # a disk that fails is no bad image: never replaced
            raise UnreadableFile(f"{path} cannot be read: {error.strerror or error}") from error
        return prepare(data, self.batching.size, self.batching.crop_seed(epoch, position), self.batching.mirror)
