"""Photo-sized files of noise, where the time to read photos is wanted and there are none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

import numpy as np

from fractrain.data.folder_data import FolderData, read_folder
from fractrain.data.info import DatasetInfo

SIZE: Final = (500, 375)  # pixels, the usual size of ImageNet's photos


def photo_folder(entry: DatasetInfo, root: Path, classes: int = 2, per_class: int = 40) -> FolderData:
    """Write smooth JPEG files of noise and return them as a data set that is read at the size ``entry`` asks for.

    Args:
        entry: gives shape and normalization.
        root: an empty folder.
        classes: class folders in each of the two parts.
        per_class: files in each.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for c in range(classes):
            folder = root / part / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                small = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
                small.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{i}.JPEG", quality=90)
    return read_folder(dataclasses.replace(entry, classes=classes, train_size=0, test_size=0), root)
