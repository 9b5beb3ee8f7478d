"""A data set in a folder of images: both parts, checked against each other, and the batches made of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from fractrain.data.batches import Batching, FolderBatches
from fractrain.data.folder import TRAIN, VAL, FolderSplit, and_more, list_part
from fractrain.data.images import stratified, validation_count
from fractrain.data.info import DatasetInfo
from fractrain.data.loader import StreamedImages
from fractrain.data.prefetch import Fetcher, WorkerFetcher
from fractrain.util.errors import DataError
from fractrain.util.seeds import derive_seed


@dataclass(frozen=True, eq=False)
class FolderData(StreamedImages):
    """A data set in a folder.

    Attributes:
        info: what is known of the data set, with the sizes of this folder.
        train: training part (without the validation part).
        test: the folder's ``val`` part, on which results are reported, as is the custom for ImageNet.
        val: validation part, taken from the training part, or None.
    """

    info: DatasetInfo
    folder: Path
    train: FolderSplit
    test: FolderSplit
    val: FolderSplit | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over name and size of every file, part by part: reading 150 GB at every start is out of the question.

        The folder's own place does not enter. ``fractrain data verify`` reads and decodes every file.
        """
        total = hashlib.sha256()
        for name, part in ((TRAIN, self.train), ("test", self.test), (VAL, self.val)):
            if part is not None:
                total.update(f"{name}:{len(part)}\n".encode())
                lines = (b"%s %d\n" % (bytes(n), s) for n, s in zip(part.names, part.sizes.tolist(), strict=True))
                total.update(b"".join(lines))
        return total.hexdigest()

    def fetcher(self, split: str, batching: Batching, device: torch.device, workers: int) -> Fetcher:
        """Worker processes read and decode."""
        training = batching.seed is not None
        return WorkerFetcher(
            FolderBatches(getattr(self, split), batching), workers, wrap=training, pin=device.type == "cuda"
        )


def read_folder(entry: DatasetInfo, folder: Path, val_fraction: float = 0.0, seed: int = 0) -> FolderData:
    """List both parts of a folder and check that they fit together.

    Args:
        entry: what is known of the data set; sizes of 0 are filled in from the folder.
        folder: holds ``train`` and ``val``.
        val_fraction: part of the training images kept apart for validation, stratified.
        seed: the validation part is a function of it.

    Raises:
        DataError: the layout is another one, a class is missing or empty, or there are not as many images as known.
        ConfigError: the fraction is outside [0, 1) or leaves classes empty.
    """
    train, test = list_part(entry.name, folder, TRAIN), list_part(entry.name, folder, VAL)
    _compare_classes(entry, folder, train, test)
    for part, name, known in ((train, TRAIN, entry.train_size), (test, VAL, entry.test_size)):
        if known not in (0, len(part)):
            raise DataError(
                f"{entry.name}: {folder / name} has {len(part):,} images, the data set has {known:,}: complete the "
                "folder (a part of a data set is one of its own, with its own results)"
            )
    info = replace(entry, train_size=len(train), test_size=len(test))
    count = validation_count(info, len(train), val_fraction)
    if count == 0:
        return FolderData(info, folder, train, test)
    kept, taken = stratified(train.labels, count, derive_seed(seed, "validation", entry.name))
    return FolderData(info, folder, train.take(kept), test, train.take(taken))


def _compare_classes(entry: DatasetInfo, folder: Path, train: FolderSplit, test: FolderSplit) -> None:
    for here, there, part in ((test, train, VAL), (train, test, TRAIN)):
        missing = sorted(set(there.classes) - set(here.classes))
        if missing:
            raise DataError(
                f"{entry.name}: {folder / part} lacks the class {missing[0]}{and_more(missing)}; train and val must "
                "have the same class folders"
            )
    if len(train.classes) != entry.classes:
        raise DataError(
            f"{entry.name}: {folder / TRAIN} has {len(train.classes)} class folders, the data set has {entry.classes} "
            "classes"
        )
