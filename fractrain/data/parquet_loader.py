"""Batches of images from a stream of rows: one thread reads, several decode (Pillow lets them run side by side)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from fractrain.data.batches import HOW_TO_SKIP, Batching, Fetched, prepare
from fractrain.data.decode import BadImage, Pixels
from fractrain.data.parquet import ParquetSplit, Row
from fractrain.data.shards import Sharding, rank_positions

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
