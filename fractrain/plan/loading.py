"""How fast this machine reads the photos of a data set: a few seconds of the real loader with its real workers."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from fractrain.data import registry
from fractrain.data.folder_data import FolderData, read_folder
from fractrain.data.imagenet import Photos
from fractrain.data.info import DatasetInfo
from fractrain.data.prefetch import worker_count
from fractrain.util.signals import GracefulStop

BATCH: Final = 16  # small, so that some seconds hold many
SECONDS: Final = 3.0


@dataclass(frozen=True)
class Loading:
    """The rate at which batches can be had.

    Attributes:
        images_per_s: decoded, cropped, on the training device.
        workers: processes (threads for rows of a table) that decode.
        source: what was read.
        synthetic: there was no data, and files of noise were read instead.
    """

    images_per_s: float
    workers: int
    source: str
    synthetic: bool


def measure_loading(
    name: str, device: torch.device, data_dir: Path | None, seconds: float = SECONDS
) -> Loading | str | None:
    """Read a data set for some seconds as training does, or files of noise where it is not there.

    Args:
        seconds: how long, after the first batch.

    Returns:
        the rate; why it was not measured; or None for data that is held in memory.

    Raises:
        DataError: the data is there and cannot be read.
    """
    entry = registry.info(name)
    if not entry.read_while_training:
        return None
    if isinstance(entry.access, Photos) and (hub := entry.access.hub(entry)):
        return f"streamed from {hub}, at the pace of the network"
    workers = worker_count(device)
    found = registry.status(name, data_dir)
    if found.ok:
        data: Any = registry.load(name, data_dir)
        stream = data.train_stream(BATCH, 0, device, True)
        return Loading(_rate(stream, seconds), workers, found.looked_in, False)
    with tempfile.TemporaryDirectory(prefix="fractrain-plan-") as scratch:
        stream = photo_folder(entry, Path(scratch)).train_stream(BATCH, 0, device, True)
        rate = _rate(stream, seconds)
    source = f"made-up photos of {SIZE[0]}x{SIZE[1]} pixels, for there is no {name} in {found.looked_in}"
    return Loading(rate, workers, source, True)


def _rate(stream: Any, seconds: float) -> float:
    """Images per second; Ctrl-C waits until the workers have started, who would tell of it at length otherwise."""
    with GracefulStop() as stop:
        rate, _ = reading_rate(stream, seconds, lambda: stop.requested)
    if stop.requested:
        raise KeyboardInterrupt
    return rate


def reading_rate(stream: Any, seconds: float, should_stop: Callable[[], bool] = lambda: False) -> tuple[float, float]:
    """Take training batches for some seconds.

    Args:
        stream: training batches with a method ``close``; closed in the end.
        seconds: how long, after the first batch.
        should_stop: asked after each batch; ends it before that.

    Returns:
        images per second after the first batch, and seconds until that one, in which the workers start.
    """
    try:
        began = time.perf_counter()
        stream.batch(0, 0)
        started = time.perf_counter()
        images, number = 0, 0
        while images == 0 or (time.perf_counter() - started < seconds and not should_stop()):
            number += 1
            images += len(stream.batch(*divmod(number, len(stream)))[1])
        return images / (time.perf_counter() - started), started - began
    finally:
        stream.close()


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
