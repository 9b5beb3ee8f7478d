"""How a stream of rows is divided so that several processes read it together, each row by one of them.

A batch is made of a fixed number of shards, each a stretch of the table that is read on its own; process r of W reads
the shards of its part of the batch. The order of the rows is therefore the same for every number of processes, and as
long as that number divides the number of shards, nothing is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SHARDS: Final = 16  # 1, 2, 4, 8 and 16 processes read each row once


@dataclass(frozen=True)
class Sharding:
    """The division of ``rows`` rows in batches of ``batch_size``, of which the last may be smaller.

    Attributes:
        rows: of the part.
        batch_size: over all processes.
        count: number of shards; 1 where a table cannot be entered in the middle.
    """

    rows: int
    batch_size: int
    count: int = SHARDS

    def positions(self, shard: int, size: int) -> range:
        """Return the places in a batch of ``size`` rows that ``shard`` fills."""
        return range(shard * size // self.count, (shard + 1) * size // self.count)

    def rows_of(self, shard: int) -> range:
        """Return which rows of an epoch's table ``shard`` reads: as many as it has places in all batches."""
        return range(self._before(shard), self._before(shard + 1))

    def _before(self, shard: int) -> int:
        whole, rest = divmod(self.rows, self.batch_size)
        return whole * (shard * self.batch_size // self.count) + shard * rest // self.count

    def of_rank(self, rank: int, world: int) -> list[int]:
        """Return the shards that fill a place in process ``rank``'s part of a batch, be it a whole or the last one."""
        sizes = {self.batch_size, self.rows % self.batch_size}
        return [
            shard
            for shard in range(self.count)
            if any(_meet(self.positions(shard, size), rank_positions(size, rank, world)) for size in sizes)
        ]


def rank_positions(size: int, rank: int, world: int) -> range:
    """Return the places of process ``rank`` in a batch of ``size`` samples."""
    return range(rank * size // world, (rank + 1) * size // world)


def _meet(a: range, b: range) -> bool:
    return max(a.start, b.start) < min(a.stop, b.stop)
