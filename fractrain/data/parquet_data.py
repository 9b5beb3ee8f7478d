"""ImageNet as rows of a table: parquet files in a folder, or a data set on the hub, and the batches made of them."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch

from fractrain.data.batches import HOW_TO_SKIP, Batching, Fetched, prepare
from fractrain.data.decode import BadImage, Pixels
from fractrain.data.info import DatasetInfo
from fractrain.data.loader import StreamedImages
from fractrain.data.parquet import ParquetSplit, Row
from fractrain.data.places import offline_variable
from fractrain.data.prefetch import Fetcher
from fractrain.data.shards import Sharding, rank_positions
from fractrain.util.errors import ConfigError, DataError, MachineError, message_line, needed

_AHEAD = 2  # batches


class RowFetcher:
    """Batches of one part; going on is quick, a jump reads from the beginning of the pass.

    Args:
        batching: how; None for the seed means the table's order, and a bad image is replaced by a black one (the next
            of its class may be far away).
        threads: how many decode.
    """

    def __init__(self, part: ParquetSplit, batching: Batching, threads: int = 1) -> None:
        self.part, self.batching, self.threads = part, batching, max(1, threads)
        self._next: tuple[int, int] | None = None
        self._queue: Iterator[Fetched] = iter(())

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.batching.count(len(self.part))

    def fetch(self, epoch: int, index: int) -> Fetched:
        """Return batch ``index`` of ``epoch``.

        Raises:
            IndexError: ``index`` is outside ``range(len(self))``.
            DataError: a row cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        if self._next != (epoch, index):
            self.close()
            self._queue = self._run(epoch, index)
        found = next(self._queue)
        self._next = (epoch, index + 1)
        return found

    def close(self) -> None:
        """Let go of the threads; each ends with the row it is at."""
        self._next, self._queue = None, iter(())

    def _run(self, epoch: int, index: int) -> Iterator[Fetched]:
        """Yield the batches of ``epoch`` from ``index`` on, the next ones in preparation."""
        # Nobody may wait for these threads: the garbage collector ends a fetcher that is dropped, and it runs in any
        # thread, one that is just being started included. They end by themselves when nobody holds their pool.
        reader, decoders = ThreadPoolExecutor(1), ThreadPoolExecutor(self.threads)
        waiting: deque[Future[Fetched]] = deque()
        sharding, rows = self._open(epoch, index)
        try:
            for following in range(index, len(self)):
                waiting.append(reader.submit(self._make, sharding, rows, decoders, epoch, following))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _open(self, epoch: int, index: int) -> tuple[Sharding, Mapping[int, Iterator[Row]]]:
        """The shards of this rank, each at its first row of batch ``index``."""
        b = self.batching
        if b.seed is None:  # evaluation: the table's order, which can be entered anywhere
            first = index * b.batch_size
            return Sharding(len(self.part), b.batch_size, 1), {0: self.part.in_order(range(first, len(self.part)))}
        sharding, rows = self.part.sharding(b.batch_size), {}
        for shard in sharding.of_rank(b.rank, b.world):
            done = index * len(sharding.positions(shard, b.batch_size))
            rows[shard] = islice(self.part.read(b.seed, epoch, sharding, shard), done, None)
        return sharding, rows

    def _make(
        self, sharding: Sharding, rows: Mapping[int, Iterator[Row]], decoders: ThreadPoolExecutor, epoch: int,
        index: int,
    ) -> Fetched:  # fmt: skip
        """Read this rank's shards of one batch and decode its part of it."""
        b = self.batching
        size = min(b.batch_size, len(self.part) - index * b.batch_size)
        mine = rank_positions(size, b.rank, b.world)
        names, labels, futures = [], [], []
        for shard, stretch in rows.items():
            places = sharding.positions(shard, size)
            for place, (name, data, label) in zip(places, islice(stretch, len(places)), strict=True):
                if place in mine:
                    seed = b.crop_seed(epoch, index * b.batch_size + place)
                    futures.append(decoders.submit(prepare, data, b.size, seed, b.mirror))
                    names.append(name)
                    labels.append(label)
        if index == len(self) - 1:
            for stretch in rows.values():
                next(stretch, None)  # lets the part count its rows to the end
        return self._collect(names, labels, futures)

    def _collect(self, names: list[str], labels: list[int], futures: list[Future[Pixels]]) -> Fetched:
        images = np.zeros((len(names), *self.batching.size, 3), dtype=np.uint8)
        bad, error = [], ""
        for row, future in enumerate(futures):
            try:
                images[row] = future.result()
            except BadImage as problem:
                bad.append((names[row], str(problem)))
                if not self.batching.replace_bad:
                    error = f"{names[row]} cannot be decoded: {problem}; {HOW_TO_SKIP}"
        return Fetched(torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64), bad, error)


# -- the data ----------------------------------------------------------------------------------------------------------


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
    with needed(f"reading {path} needs pyarrow ({{}}); mend with `pip install datasets`"):
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    try:
        return int(parquet.read_metadata(path).num_rows)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is no whole parquet file: {message_line(error)}") from error
