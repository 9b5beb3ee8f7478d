"""ImageNet as rows of a table: parquet files in a folder, or a data set on the hub, and the batches made of them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import torch

from fractrain.data.batches import Batching
from fractrain.data.info import DatasetInfo
from fractrain.data.loader import StreamedImages
from fractrain.data.parquet import ParquetSplit
from fractrain.data.parquet_loader import RowFetcher
from fractrain.data.places import offline_variable
from fractrain.data.prefetch import Fetcher
from fractrain.util.errors import ConfigError, DataError, MachineError, message_line

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ORDER: Final = 2  # raised when the order of the rows changes
_SPLITS: Final = {"train": ("train",), "test": ("validation", "val")}


@dataclass(frozen=True, eq=False)
class RowData(StreamedImages):
    """A data set of rows.

    Attributes:
        train: training part.
        test: the table's validation part, on which results are reported, as is the custom for ImageNet.
        val: always None: a stream cannot be divided by class.
    """

    info: DatasetInfo
    train: ParquetSplit
    test: ParquetSplit
    val: None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over name and size of every file, or over the name and revision on the hub."""
        total = hashlib.sha256(f"order {_ORDER}\n".encode())
        for name, part in (("train", self.train), ("test", self.test)):
            total.update(f"{name}:{part.rows}:{part.hub}\n".encode())
            for path in part.files:
                total.update(f"{path.name} {path.stat().st_size}\n".encode())
        return total.hexdigest()

    def fetcher(self, split: str, batching: Batching, device: torch.device, workers: int) -> Fetcher:
        """Threads decode while one reads."""
        return RowFetcher(getattr(self, split), batching, workers)


def parquet_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the parquet files of each part in a folder (or its folder ``data``), sorted; empty if there are none."""
    found = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    if not found:
        return {}
    return {part: tuple(f for f in found if f.name.startswith(names)) for part, names in _SPLITS.items()}


def parquet_data(entry: DatasetInfo, folder: Path, val_fraction: float = 0.0) -> RowData:
    """Describe the parquet files of a folder.

    Raises:
        DataError: a part is missing, a file is damaged, or there are not as many rows as known.
        ConfigError: a validation part is asked for.
    """
    files = parquet_files(folder)
    parts = {}
    for part, known in (("train", entry.train_size), ("test", entry.test_size)):
        split = _SPLITS[part][0]
        if not files.get(part):
            raise DataError(f"{entry.name}: {folder} has no files {split}-*.parquet")
        if any("::" in str(path) for path in files[part]):
            raise DataError(f"{entry.name}: {folder}: '::' in a path means a chain of addresses to datasets: rename it")
        sizes = tuple(_rows(path) for path in files[part])
        rows = sum(sizes)
        if known not in (0, rows):
            raise DataError(f"{entry.name}: {folder}/{split}-*.parquet have {rows:,} rows, the data set has {known:,}")
        parts[part] = ParquetSplit(split, rows, entry.classes, files[part], sizes)
    _no_validation(entry, val_fraction)
    info = replace(entry, train_size=len(parts["train"]), test_size=len(parts["test"]))
    return RowData(info, parts["train"], parts["test"])


@dataclass(frozen=True)
class Layout:
    """Where a table has what: the names of the split results are reported on, and of the two columns."""

    test: str = "validation"
    image: str = "image"
    label: str = "label"


def pinned_table(given: str, place: str) -> tuple[str, str]:
    """Repository and revision of a table ``owner/name@revision`` on the hub.

    Args:
        given: what was given and where, for the error.
        place: the name.

    Raises:
        ConfigError: it is something else, or a branch or tag.
    """
    repository, _, revision = place.partition("@")
    if repository.count("/") != 1 or not COMMIT.fullmatch(revision):
        raise ConfigError(
            f"{given}: expected owner/name@revision, a commit's hash of 40 digits: a branch or tag may move, and a "
            "result could not be repeated"
        )
    return repository, revision


def hub_data(entry: DatasetInfo, hub: str, val_fraction: float = 0.0, layout: Layout | None = None) -> RowData:
    """Describe a data set on the hub; nothing is asked of the network here.

    Raises:
        ConfigError: no revision is pinned, or a validation part is asked for.
        MachineError: a variable says that this machine is offline.
    """
    pinned_table(f"FRACTRAIN_IMAGENET={hub!r}", hub)
    if variable := offline_variable():
        raise MachineError(f"{hub} is streamed from the hub, but {variable} is set: unset it, or use files on disk")
    _no_validation(entry, val_fraction)
    layout = layout or Layout()
    train = ParquetSplit("train", entry.train_size, entry.classes, hub=hub, image=layout.image, label=layout.label)
    return RowData(entry, train, replace(train, split=layout.test, rows=entry.test_size))


def _no_validation(entry: DatasetInfo, fraction: float) -> None:
    if fraction:
        raise ConfigError(
            f"val_fraction is {fraction}, but {entry.name} is read as a stream of rows, which cannot be divided by "
            "class: set it to 0, or use the folder layout"
        )


def _rows(path: Path) -> int:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise MachineError(f"reading {path} needs pyarrow ({error}); mend with `pip install datasets`") from error
    try:
        return int(parquet.read_metadata(path).num_rows)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is no whole parquet file: {message_line(error)}") from error
