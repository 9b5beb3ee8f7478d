"""Batches of images from a stream of rows: one thread reads, several decode (Pillow lets them run side by side)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from fractrain.data.batches import HOW_TO_SKIP, Fetched, prepare
from fractrain.data.decode import BadImage, Pixels
from fractrain.data.info import DatasetInfo
from fractrain.data.loader import EvalLoader, TrainLoader, bad_image_policy
from fractrain.data.parquet import ParquetSplit, Row
from fractrain.data.prefetch import worker_count
from fractrain.data.shards import Sharding, rank_positions
from fractrain.util.errors import ConfigError
from fractrain.util.seeds import derive_seed

_AHEAD = 2  # batches


class RowFetcher:
    """Batches of one part; going on is quick, a jump reads from the beginning of the pass.

    Args:
        part: the rows.
        size: (height, width) wanted.
        batch_size: images per batch, over all ranks.
        seed: where order and crops derive from; None means the table's order, evaluation preprocessing.
        augment: random crops and mirror images.
        mirror: mirror images half of the time.
        replace_bad: an image that cannot be decoded becomes a black one (the next of its class may be far away);
            otherwise it makes the batch unusable.
        threads: how many decode.
        rank, world: this process gets the ``rank``-th of ``world`` parts of every batch.

    Raises:
        ConfigError: batch size below the number of ranks.
    """

    def __init__(
        self,
        part: ParquetSplit,
        size: tuple[int, int],
        batch_size: int,
        seed: int | None = None,
        augment: bool = False,
        mirror: bool = False,
        replace_bad: bool = False,
        threads: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < world:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least {world}, one image per process")
        self.part, self.size, self.batch_size, self.seed = part, size, batch_size, seed
        self.augment, self.mirror, self.replace_bad = augment and seed is not None, mirror, replace_bad
        self.threads, self.rank, self.world = max(1, threads), rank, world
        self._next: tuple[int, int] | None = None
        self._queue: Iterator[Fetched] = iter(())

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.part) // self.batch_size)

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
        if self.seed is None:  # evaluation: the table's order, which can be entered anywhere
            first = index * self.batch_size
            return Sharding(len(self.part), self.batch_size, 1), {0: self.part.in_order(range(first, len(self.part)))}
        sharding, rows = self.part.sharding(self.batch_size), {}
        for shard in sharding.of_rank(self.rank, self.world):
            done = index * len(sharding.positions(shard, self.batch_size))
            rows[shard] = islice(self.part.read(self.seed, epoch, sharding, shard), done, None)
        return sharding, rows

    def _make(
        self,
        sharding: Sharding,
        rows: Mapping[int, Iterator[Row]],
        decoders: ThreadPoolExecutor,
        epoch: int,
        index: int,
    ) -> Fetched:
        """Read this rank's shards of one batch and decode its part of it."""
        size = min(self.batch_size, len(self.part) - index * self.batch_size)
        mine = rank_positions(size, self.rank, self.world)
        names, labels, futures = [], [], []
        for shard, stretch in rows.items():
            places = sharding.positions(shard, size)
            for place, (name, data, label) in zip(places, islice(stretch, len(places)), strict=True):
                if place in mine:
                    seed = self._crop_seed(epoch, index * self.batch_size + place)
                    futures.append(decoders.submit(prepare, data, self.size, seed, self.mirror))
                    names.append(name)
                    labels.append(label)
        if index == len(self) - 1:
            for stretch in rows.values():
                next(stretch, None)  # lets the part count its rows to the end
        return self._collect(names, labels, futures)

    def _crop_seed(self, epoch: int, position: int) -> int | None:
        return derive_seed(self.seed, "crop", epoch, position) if self.augment and self.seed is not None else None

    def _collect(self, names: list[str], labels: list[int], futures: list[Future[Pixels]]) -> Fetched:
        images = np.zeros((len(names), *self.size, 3), dtype=np.uint8)
        bad, error = [], ""
        for row, future in enumerate(futures):
            try:
                images[row] = future.result()
            except BadImage as problem:
                bad.append((names[row], str(problem)))
                if not self.replace_bad:
                    error = f"{names[row]} cannot be decoded: {problem}; {HOW_TO_SKIP}"
        return Fetched(torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64), bad, error)


def train_loader(
    part: ParquetSplit,
    info: DatasetInfo,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    augment: bool = True,
    rank: int = 0,
    world: int = 1,
) -> TrainLoader:
    """Make the training batches of a table; arguments as of :func:`fractrain.data.loader.train_loader`."""
    fetcher = RowFetcher(
        part, (info.shape[1], info.shape[2]), batch_size, seed, augment and info.augment, info.flip,
        bad_image_policy() == "skip", worker_count(torch.device(device)), rank, world,
    )  # fmt: skip
    return TrainLoader(fetcher, info, device, world)


def eval_loader(part: ParquetSplit, info: DatasetInfo, batch_size: int, device: torch.device | str) -> EvalLoader:
    """Make the evaluation batches of a table."""
    replace_bad = bad_image_policy() == "skip"
    threads = worker_count(torch.device(device))
    size = (info.shape[1], info.shape[2])
    return EvalLoader(RowFetcher(part, size, batch_size, replace_bad=replace_bad, threads=threads), info, device)
