"""CIFAR-10 and CIFAR-100 from the authors' files: found, checked, loaded through torchvision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fractrain.data.files import FileStatus, check_file
from fractrain.data.images import ImageData, Split, hold_out
from fractrain.data.registry import DatasetInfo
from fractrain.util.errors import DataError

DATA_VARIABLE = "FRACTRAIN_DATA"
DEFAULT_ROOT = "data"


def load(entry: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int) -> ImageData:
    """Load ``cifar10`` or ``cifar100``; see :func:`fractrain.data.registry.load`."""
    if download:
        from fractrain.data.manage import fetch

        fetch(entry.name, data_dir)
    root = find_root(entry.name, data_dir)
    train, test = _read(entry.name, root, train=True), _read(entry.name, root, train=False)
    train, val = hold_out(entry, train, val_fraction, seed)
    return ImageData(entry, train, test, val)


def torchvision_class(name: str) -> Any:
    """Return torchvision's class for ``name``; it carries the address, file names and checksums."""
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def find_root(name: str, data_dir: str | Path | None) -> Path:
    """Return the folder that holds (or should hold) the data set's own folder.

    ``data_dir`` first, then the variable ``FRACTRAIN_DATA``, then ``./data``. The data set's own folder is accepted in
    place of its parent.
    """
    root = Path(data_dir or os.environ.get(DATA_VARIABLE) or DEFAULT_ROOT).expanduser()
    return root.resolve().parent if root.resolve().name == torchvision_class(name).base_folder else root


def expected_files(name: str) -> list[tuple[str, str]]:
    """Return (file name, MD5) of every file in the data set's folder."""
    source = torchvision_class(name)
    listed = [(file, md5) for file, md5 in source.train_list + source.test_list]
    return [*listed, (source.meta["filename"], source.meta["md5"])]


def check_files(name: str, root: Path) -> Iterator[FileStatus]:
    """Check every file of the data set below ``root`` (reads them all, about 180 MB)."""
    folder = root / torchvision_class(name).base_folder
    for file, expected in expected_files(name):
        yield check_file(folder / file, expected)


def how_to_mend(name: str, root: Path) -> str:
    """Return the command that puts the files in place."""
    return f"mend with `fractrain data fetch {name} --data-dir {root}`"


def raise_for_files(name: str, root: Path) -> None:
    """Raise a DataError that names what is wrong with the data set below ``root``; return if nothing is."""
    folder = root / torchvision_class(name).base_folder
    if not folder.exists():
        raise DataError(f"{name} is not in {root}: there is no folder {folder}; {how_to_mend(name, root)}")
    bad = [check for check in check_files(name, root) if check.state != "ok"]
    if bad:
        more = f" (and {len(bad) - 1} more bad files)" if len(bad) > 1 else ""
        raise DataError(f"{name}: {bad[0].problem}{more}; {how_to_mend(name, root)}")


def _read(name: str, root: Path, train: bool) -> Split:
    """Read one part through torchvision, which compares the checksums before it opens a file."""
    try:
        part = torchvision_class(name)(root=str(root), train=train, download=False)
    except (RuntimeError, OSError) as error:
        raise_for_files(name, root)
        raise DataError(f"{name}: torchvision cannot read {root}: {error}; {how_to_mend(name, root)}") from error
    images = torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))
    return Split(images, torch.tensor(part.targets, dtype=torch.int64))
