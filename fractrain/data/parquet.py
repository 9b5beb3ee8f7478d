"""ImageNet as rows of a table (encoded image, label), streamed by ``datasets`` from parquet files or from the hub.

Rows can only be read one after the other, so a pass is shuffled as streams are: the files in random order, the
stretch of each shard (:mod:`fractrain.data.shards`) on its own, and its rows within a window that moves over them. The
shuffle is ours: that of ``datasets`` differs between its releases. The order is a function of (seed, epoch) and of
the size of a batch, not of the number of processes; a jump reads its way to the place. Each process reads the shards
it needs, which takes the number of rows of every file. Parquet files tell it at their end; a data set on the hub in
another format has one shard, and every process reads all of it.
"""

from __future__ import annotations

import glob
import reprlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count
from pathlib import Path
from typing import Any, Final

import numpy as np

from fractrain.data.images import permutation
from fractrain.data.shards import SHARDS, Sharding
from fractrain.util.errors import DataError, MachineError, message_line, needed
from fractrain.util.seeds import derive_seed

WINDOW: Final = 2048  # rows over all shards: 0.2 GB of ImageNet's files
_ASKING: Final = 16  # connections at a time

Row = tuple[str, bytes, int]


@dataclass(frozen=True)
class ParquetSplit:
    """One part of a table of images.

    Attributes:
        split: ``train`` or ``validation``.
        classes: labels are below this.
        files: parquet files; empty for a data set on the hub.
        sizes: rows of each of them.
        hub: ``owner/name@revision``, or empty.
        image, label: names of the two columns.
    """

    split: str
    rows: int
    classes: int
    files: tuple[Path, ...] = ()
    sizes: tuple[int, ...] = ()
    hub: str = ""
    image: str = "image"
    label: str = "label"

    def __len__(self) -> int:
        return self.rows

    @cached_property
    def file_rows(self) -> tuple[int, ...]:
        """Rows of each file, in the order of the table; empty where that cannot be told without reading them.

        Raises:
            DataError: there are not as many rows as known.
            MachineError: the hub cannot be reached.
        """
        found = self.sizes or (self._sizes_on_hub() if self.hub else ())
        if found and sum(found) != self.rows:
            raise DataError(f"{self.origin} has {sum(found):,} rows, expected {self.rows:,}")
        return found

    def sharding(self, batch_size: int) -> Sharding:
        """Return how a pass in batches is divided."""
        return Sharding(self.rows, batch_size, SHARDS if self.file_rows else 1)

    def read(self, seed: int, epoch: int, sharding: Sharding, shard: int) -> Iterator[Row]:
        """Yield (name, encoded image, label) of the rows of one shard, shuffled by (seed, epoch).

        Raises:
            DataError: another number of rows, other columns, or files that cannot be read.
            MachineError: the hub cannot be reached (any more), or ``datasets`` is not installed.
        """
        rows = self.in_order(sharding.rows_of(shard), derive_seed(seed, "files", epoch))
        return window_shuffle(rows, derive_seed(seed, "rows", epoch, shard), WINDOW // sharding.count)

    def in_order(self, wanted: range | None = None, files_seed: int | None = None) -> Iterator[Row]:
        """Yield a range of the rows, all by default, file by file; files are shuffled unless ``files_seed`` is None.

        Raises:
            DataError, MachineError: as :meth:`read`.
        """
        wanted = range(self.rows) if wanted is None else wanted
        sizes, stream = self.file_rows, self._stream
        files = int(stream.num_shards)
        if not sizes:
            yield from self._table(
                stream, range(files) if files_seed is None else permutation(files, files_seed), wanted
            )
            return
        if len(sizes) != files:
            raise DataError(f"{self.origin} is read as {files} files, but has {len(sizes)}")
        starts = [0, *accumulate(sizes)]
        passed = 0  # rows of the files before, in this order
        for file in range(files) if files_seed is None else permutation(files, files_seed).tolist():
            first, last = (min(max(at - passed, 0), sizes[file]) for at in (wanted.start, wanted.stop))
            passed += sizes[file]
            if first < last:
                yield from self._of_file(stream.shard(files, file), starts[file], first, last)

    def _of_file(self, file: Any, start: int, first: int, last: int) -> Iterator[Row]:
        """Yield the rows ``first`` to ``last`` of a file, the first of which is the table's row ``start``."""
        rows = iter(file.skip(first) if first else file)
        for at in range(first, last):
            row = self._take(rows, start + at)
            if row is None:
                raise DataError(f"{self.origin}: a file gave {at:,} rows, expected {last:,} or more: it has changed")
            yield self._checked(start + at, row)

    def _table(self, stream: Any, files: Any, wanted: range) -> Iterator[Row]:
        """Yield ``wanted`` of the rows of files of unknown size."""
        rows = (row for file in files for row in stream.shard(int(stream.num_shards), int(file)))
        for number in count():
            row = self._take(rows, number)
            if row is None:
                break
            if number in wanted:
                yield self._checked(number, row)
        if number != self.rows:
            raise DataError(f"{self.origin} gave {number:,} rows, expected {self.rows:,}")

    def _take(self, rows: Iterator[dict[str, Any]], number: int) -> dict[str, Any] | None:
        """Return the next row, None after the last."""
        try:
            return next(rows, None)
        except MemoryError:
            raise
        except Exception as error:  # datasets lets through what pyarrow, fsspec, aiohttp and httpx raise
            raise self._broken(f"row {number:,} cannot be read", error) from error

    def _broken(self, what: str, error: Exception) -> DataError | MachineError:
        text = f"{self.origin}: {what}: {type(error).__name__}: {message_line(error)}"
        if self.hub:
            return MachineError(f"{text}; check the network, then resume the run, or use files on disk")
        return DataError(text)

    def _sizes_on_hub(self) -> tuple[int, ...]:
        """Rows of each parquet file on the hub, from the last bytes of each; empty if the files are others."""
        datasets = self._package()
        name, _, revision = self.hub.partition("@")
        try:
            files = datasets.load_dataset_builder(name, revision=revision).config.data_files or {}
            urls = [str(url) for url in files.get(self.split, ())]
            if not urls or not all(url.endswith(".parquet") for url in urls):
                return ()
            with ThreadPoolExecutor(_ASKING) as pool:
                return tuple(pool.map(_rows_at, urls))
        except Exception as error:  # as for a row
            raise self._broken("its files cannot be listed", error) from error

    @property
    def origin(self) -> str:
        """Where the rows come from, for messages."""
        return f"{self.hub or self.files[0].parent} ({self.split})"

    def _package(self) -> Any:
        with needed(f"reading {self.origin} needs the package datasets ({{}}); mend with `pip install datasets`"):
            import datasets
        return datasets

    @cached_property
    def _stream(self) -> Any:
        """The table as ``datasets`` reads it; shards share it, because to open it asks the hub for all files."""
        datasets = self._package()
        try:
            if self.hub:
                name, _, revision = self.hub.partition("@")
                stream = datasets.load_dataset(name, revision=revision, split=self.split, streaming=True)
            else:
                files = {self.split: [glob.escape(str(path)) for path in self.files]}  # else patterns
                stream = datasets.load_dataset("parquet", data_files=files, split=self.split, streaming=True)
            return stream.cast_column(self.image, datasets.Image(decode=False))
        except Exception as error:  # datasets lets through what pyarrow, fsspec and the hub's client raise
            kind = MachineError if self.hub else DataError
            raise kind(f"cannot open {self.origin}: {type(error).__name__}: {message_line(error)}") from error

    def _checked(self, number: int, row: dict[str, Any]) -> Row:
        image, label = row.get(self.image), row.get(self.label)
        for name in (self.image, self.label):
            if name not in row:
                wanted = f"{self.image} (encoded) and {self.label}"
                raise DataError(f"{self.origin} has the columns {', '.join(row)}; expected {wanted}")
        if not isinstance(image, dict) or not isinstance(image.get("bytes"), bytes):
            found = "null" if image is None else "an image without bytes" if isinstance(image, dict) else _kind(image)
            wanted = f"in column {self.image}, expected an encoded image"
            raise DataError(f"{self.origin}: row {number:,} has {found} {wanted}")
        if not isinstance(label, int):
            found = "null" if label is None else _kind(label)
            raise DataError(f"{self.origin}: row {number:,} has {found} in column {self.label}, expected an integer")
        if not 0 <= label < self.classes:
            raise DataError(f"{self.origin}: row {number:,} has label {label}, expected 0 to {self.classes - 1}")
        return f"{image.get('path') or f'row {number}'} in {self.origin}", image["bytes"], label


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {reprlib.repr(value)}"


def window_shuffle(rows: Iterator[Row], seed: int, window: int = WINDOW) -> Iterator[Row]:
    """Yield ``rows`` in random order, each at most about a window from where it was (or later).

    Args:
        seed: the order is a function of it.
        window: how many rows are held in memory.
    """
    draw = np.random.PCG64(seed)  # its raw stream is promised to stay the same (see images.permutation)
    held: list[Row] = []
    for row in rows:
        if len(held) < window:
            held.append(row)
            continue
        at = int(draw.random_raw()) % window
        yield held[at]
        held[at] = row
    for at in permutation(len(held), derive_seed(seed, "rest")).tolist():
        yield held[at]


def _rows_at(url: str) -> int:
    import fsspec  # type: ignore[import-untyped]
    from pyarrow import parquet  # type: ignore[import-untyped]

    with fsspec.open(url, "rb") as handle:
        return int(parquet.read_metadata(handle).num_rows)
