"""A folder of images in torchvision's layout: ``train/<class>/<image>`` and ``val/<class>/<image>``.

Listing follows ``torchvision.datasets.ImageFolder``: classes in alphabetical order are numbered from 0, files whose
name does not end like an image's, and hidden ones (``._photo.jpg``), are passed over (and counted here); so are hidden
folders. Nothing is decoded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fractrain.data.images import IntArray
from fractrain.util.errors import DataError

TRAIN, VAL = "train", "val"


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """The files of one part, in the order of listing.

    The names are kept in one array of bytes: a list of 1.3 million strings would be copied page by page into every
    worker process.

    Attributes:
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

    def take(self, index: IntArray) -> FolderSplit:
        """Return the files at ``index`` (int64, shape ``[n]``), in that order."""
        return FolderSplit(
            self.root, self.classes, self.names[index], self.labels[index], self.sizes[index], self.ignored
        )


def list_part(name: str, folder: Path, part: str) -> FolderSplit:
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
    classes = sorted(item.name for item in os.scandir(root) if item.is_dir() and not item.name.startswith("."))
    if not classes:
        raise DataError(f"{name}: {root} has no class folders; expected one folder per class with its images")
    passed_over = 0

    def is_image(path: str) -> bool:
        nonlocal passed_over
        good = path.lower().endswith(IMG_EXTENSIONS) and not os.path.basename(path).startswith(".")
        passed_over += not good
        return good

    samples = make_dataset(str(root), {c: i for i, c in enumerate(classes)}, is_valid_file=is_image, allow_empty=True)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        empty = [c for c, n in zip(classes, counts.tolist(), strict=True) if n == 0]
        raise DataError(
            f"{name}: no image in the class folder {root / empty[0]}{and_more(empty)}{_others(root / empty[0])}; "
            f"add its images ({', '.join(IMG_EXTENSIONS)})"
        )
    skip = len(str(root)) + 1
    names = np.array([os.fsencode(path[skip:]) for path, _ in samples], dtype=np.bytes_)
    sizes = np.array([_size(name, path) for path, _ in samples], dtype=np.int64)
    stray = sum(1 for item in os.scandir(root) if item.is_file())  # beside the class folders
    return FolderSplit(root, tuple(classes), names, labels, sizes, passed_over + stray)


def _size(name: str, path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        what = "is a link to nothing" if os.path.islink(path) else f"cannot be read: {error.strerror}"
        raise DataError(f"{name}: {path} {what}: mend or remove it") from error


def _others(folder: Path) -> str:
    """What a class folder without images holds instead."""
    names = sorted(item.name for item in os.scandir(folder))
    return f", which holds {names[0]!r}{and_more(names)}" if names else ", which is empty"


def and_more(names: list[str]) -> str:
    """Say in brackets that there are more names than the first one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
