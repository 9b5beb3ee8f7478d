"""How a stream of rows is divided so that several processes read it together, each row by one of them.

A batch is made of a fixed number of lanes, each a stretch of the table that is read on its own; process r of W reads
the lanes of its part of the batch. The order of the rows is therefore the same for every number of processes, and as
long as that number divides the number of lanes, nothing is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LANES: Final = 16  # 1, 2, 4, 8 and 16 processes read each row once


@dataclass(frozen=True)
class Lanes:
    """The division of ``rows`` rows in batches of ``batch_size``, of which the last may be smaller.

    Attributes:
        rows: of the part.
        batch_size: over all processes.
        count: number of lanes; 1 where a table cannot be entered in the middle.
    """

    rows: int
    batch_size: int
    count: int = LANES

    def places(self, lane: int, size: int) -> range:
        """Return the places in a batch of ``size`` rows that ``lane`` fills."""
        return range(lane * size // self.count, (lane + 1) * size // self.count)

    def stretch(self, lane: int) -> range:
        """Return which rows of an epoch's table ``lane`` reads: as many as it has places in all batches."""
        return range(self._before(lane), self._before(lane + 1))

    def _before(self, lane: int) -> int:
        whole, rest = divmod(self.rows, self.batch_size)
        return whole * (lane * self.batch_size // self.count) + lane * rest // self.count

    def of(self, rank: int, world: int) -> list[int]:
        """Return the lanes that fill a place in process ``rank``'s part of a batch, be it a whole or the last one."""
        sizes = {self.batch_size, self.rows % self.batch_size}
        return [
            lane
            for lane in range(self.count)
            if any(_meet(self.places(lane, size), share(size, rank, world)) for size in sizes)
        ]


def share(size: int, rank: int, world: int) -> range:
    """Return the places of process ``rank`` in a batch of ``size`` samples."""
    return range(rank * size // world, (rank + 1) * size // world)


def _meet(a: range, b: range) -> bool:
    return max(a.start, b.start) < min(a.stop, b.stop)
