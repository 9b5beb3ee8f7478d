"""ImageNet, and any folder of images in its layout: where they are looked for, in which form they are there.

``imagenet`` is a folder in torchvision's layout, parquet files, or a data set on the Hugging Face hub; ``imagenette``
(and every other entry of the registry that names this module) is a folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from fractrain.data.cifar import DATA_VARIABLE, DEFAULT_ROOT
from fractrain.data.folder import FolderData, read_folder
from fractrain.data.registry import DatasetInfo
from fractrain.data.rows import RowData, hub_data, parquet_data, parquet_files
from fractrain.util.errors import DataError

HUB_VARIABLE: Final = "FRACTRAIN_IMAGENET"
HOW_TO_GET: Final = (
    "ImageNet cannot be fetched for you: register at image-net.org, unpack ILSVRC2012 into train/<class>/ and "
    f"val/<class>/; or take the parquet files, or set {HUB_VARIABLE}=owner/name@revision to stream it"
)


def load(
    entry: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int
) -> FolderData | RowData:
    """Load ``imagenet``, ``imagenette`` or another folder; see :func:`fractrain.data.registry.load`.

    Nothing is decoded here; images are read while training.
    """
    if download:
        from fractrain.data.manage import fetch

        fetch(entry.name, data_dir)
    folder = find_folder(entry.name, data_dir)
    if hub := hub_name(entry):
        return hub_data(entry, hub, val_fraction)
    if parquet_files(folder):
        return parquet_data(entry, folder, val_fraction)
    if not folder.is_dir():
        raise DataError(f"{entry.name} is not in {folder.parent}: there is no folder {folder}; {how_to_mend(entry)}")
    return read_folder(entry, folder, val_fraction, seed)


def hub_name(entry: DatasetInfo) -> str:
    """Return the hub's data set that is to be streamed as ``imagenet``, or an empty string."""
    return os.environ.get(HUB_VARIABLE, "") if entry.name == "imagenet" else ""


def find_folder(name: str, data_dir: str | Path | None) -> Path:
    """Return the folder that holds (or should hold) the data set.

    It is called like the data set, in ``data_dir``, else in the variable ``FRACTRAIN_DATA``, else in ``./data``. The
    data set's own folder is accepted in place of its parent.
    """
    root = Path(data_dir or os.environ.get(DATA_VARIABLE) or DEFAULT_ROOT).expanduser()
    return root if root.resolve().name == name else root / name


def how_to_mend(entry: DatasetInfo) -> str:
    """Return how to get the data set, in one clause."""
    return HOW_TO_GET if entry.name == "imagenet" else f"mend with `fractrain data fetch {entry.name}`"
