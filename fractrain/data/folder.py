"""A folder of images in torchvision's layout: ``train/<class>/<image>`` and ``val/<class>/<image>``.

Listing follows ``torchvision.datasets.ImageFolder``: classes in alphabetical order are numbered from 0, files whose
name does not end like an image's are passed over (and counted here). Nothing is decoded.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fractrain.data.images import IntArray, stratified, validation_count
from fractrain.data.registry import DatasetInfo
from fractrain.util.errors import DataError
from fractrain.util.seeds import derive_seed

TRAIN, VAL = "train", "val"


@dataclass(frozen=True, eq=False)
class FolderPart:
    """The files of one part, in the order of listing.

    The names are kept in one array of bytes: a list of 1.3 million strings would be copied page by page into every
    worker process.

    Attributes:
        root: folder of the part.
        classes: names of the class folders; a label is a position in it.
        names: path of each file below ``root``, encoded as the file system does it; shape ``[N]``, dtype ``S``.
        labels: int64, shape ``[N]``.
        sizes: bytes of each file; int64, shape ``[N]``.
        ignored: files that are not images by name.
    """

    root: Path
    classes: tuple[str, ...]
    names: npt.NDArray[np.bytes_]
    labels: IntArray
    sizes: IntArray
    ignored: int

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return the path of one file."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    def take(self, index: IntArray) -> FolderPart:
        """Return the files at ``index`` (int64, shape ``[n]``), in that order."""
        return FolderPart(
            self.root, self.classes, self.names[index], self.labels[index], self.sizes[index], self.ignored
        )


@dataclass(frozen=True, eq=False)
class FolderData:
    """A data set in a folder.

    Attributes:
        info: what is known of the data set, with the sizes of this folder.
        folder: the folder.
        train: training part (without the validation part).
        test: the folder's ``val`` part, on which results are reported, as is the custom for ImageNet.
        val: validation part, taken from the training part, or None.
    """

    info: DatasetInfo
    folder: Path
    train: FolderPart
    test: FolderPart
    val: FolderPart | None = None

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

    def train_stream(
        self, batch_size: int, seed: int, device: torch.device | str, augment: bool, rank: int = 0, world: int = 1
    ) -> object:
        """Return the training batches, or one rank's share of each: a :class:`~fractrain.data.loader.TrainLoader`."""
        from fractrain.data.loader import train_loader

        return train_loader(self.train, self.info, batch_size, seed, device, augment, rank=rank, world=world)

    def eval_stream(self, split: str, batch_size: int, device: torch.device | str) -> object:
        """Return the batches of ``test`` or ``val``; see :class:`~fractrain.data.loader.EvalLoader`."""
        from fractrain.data.loader import eval_loader

        return eval_loader(getattr(self, split), self.info, batch_size, device)


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
    info = _with_sizes(entry, len(train), len(test))
    count = validation_count(info, len(train), val_fraction)
    if count == 0:
        return FolderData(info, folder, train, test)
    kept, taken = stratified(train.labels, count, derive_seed(seed, "validation", entry.name))
    return FolderData(info, folder, train.take(kept), test, train.take(taken))


def list_part(name: str, folder: Path, part: str) -> FolderPart:
    """List the images of one part of a folder.

    Raises:
        DataError: no such folder, no class folders, or a class folder without an image.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    root = folder / part
    if not root.is_dir():
        there = sorted(p.name for p in folder.iterdir())[:4] if folder.is_dir() else []
        found = f"; there is {', '.join(there)}" if there else ""
        raise DataError(f"{name}: no folder {root}{found}; expected {folder}/train/<class>/ and {folder}/val/<class>/")
    classes = sorted(item.name for item in os.scandir(root) if item.is_dir())
    if not classes:
        raise DataError(f"{name}: {root} has no class folders; expected one folder per class with its images")
    passed_over = 0

    def is_image(path: str) -> bool:
        nonlocal passed_over
        good = path.lower().endswith(IMG_EXTENSIONS)
        passed_over += not good
        return good

    samples = make_dataset(str(root), {c: i for i, c in enumerate(classes)}, is_valid_file=is_image, allow_empty=True)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        empty = [c for c, n in zip(classes, counts.tolist(), strict=True) if n == 0]
        raise DataError(f"{name}: no image in the class folder {root / empty[0]}{_more(empty)}; put its images there")
    skip = len(str(root)) + 1
    names = np.array([os.fsencode(path[skip:]) for path, _ in samples], dtype=np.bytes_)
    sizes = np.array([os.stat(path).st_size for path, _ in samples], dtype=np.int64)
    stray = sum(1 for item in os.scandir(root) if item.is_file())  # beside the class folders
    return FolderPart(root, tuple(classes), names, labels, sizes, passed_over + stray)


def _compare_classes(entry: DatasetInfo, folder: Path, train: FolderPart, test: FolderPart) -> None:
    for here, there, part in ((test, train, VAL), (train, test, TRAIN)):
        missing = sorted(set(there.classes) - set(here.classes))
        if missing:
            raise DataError(
                f"{entry.name}: {folder / part} lacks the class {missing[0]}{_more(missing)}; train and val must have "
                "the same class folders"
            )
    if len(train.classes) != entry.classes:
        raise DataError(
            f"{entry.name}: {folder / TRAIN} has {len(train.classes)} class folders, the data set has {entry.classes} "
            "classes"
        )


def _with_sizes(entry: DatasetInfo, train: int, test: int) -> DatasetInfo:
    from dataclasses import replace

    return replace(entry, train_size=train, test_size=test)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
