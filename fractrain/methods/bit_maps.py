"""Maps of widths per tile from the sensitivity of each tile: reverse water-filling under a budget, with hysteresis.

A tile of sensitivity ``s`` (expected loss per unit of noise, times the noise variance at 0 bits) that takes part in
``c`` MACs loses ``s * noise_variance(b)`` at ``b`` bits. Minimising the sum of losses while the mean of ``b`` over all
MACs stays within a budget gives, for noise ``4^-b``, the classical solution::

    b = mean + 1/2 log2((s / c) / geometric mean of s / c)

clipped at the ends, which is what shifting a common *level* does (:func:`allocate` finds it). It is then rounded to the
allowed widths, at the points where the next width pays for itself (:func:`rounding_points`): the rounded map is then
the best of all maps that cost no more than it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from fractrain.numerics.tiles import PerTile, tile_blocks, tile_sizes

BISECTIONS = 22
RANGE_BITS = 32  # of a tile: its least and its greatest value in 16 bits each (ours)


def noise_variance(bits: int) -> float:
    """Noise variance of a grid of ``2^b`` points over a range, relative to 0 bits (uniform distribution over it)."""
    return 1.0 if bits == 0 else 1.0 / (2**bits - 1) ** 2


def rounding_points(widths: Sequence[int]) -> list[float]:
    """Continuous widths at which the next allowed width begins to pay, one between each two neighbours.

    Going from width ``v`` to ``w`` gains ``s * (noise_variance(v) - noise_variance(w))`` for ``c * (w - v)`` bits; the
    continuous solution has ``ln 4 * (s / c) * 4^-b`` = price of a bit. The next width pays when its gain per bit is
    above it.

    Args:
        widths: ascending.
    """
    gains = [(noise_variance(v) - noise_variance(w)) / (w - v) for v, w in itertools.pairwise(widths)]
    return [0.5 * math.log2(math.log(4.0) / gain) for gain in gains]


def round_widths(
    ideal: torch.Tensor, widths: Sequence[int], old: torch.Tensor | None = None, margin: float = 0.0
) -> torch.Tensor:
    """Round continuous widths to allowed ones; a tile leaves its old width only if it is off by more than a margin.

    Args:
        ideal: continuous widths, float64 ``[tiles]``; -inf gives the narrowest, inf the widest width.
        widths: ascending.
        old: present widths (of the allowed ones), or None.
        margin: bits beyond the rounding point before a width changes.

    Returns:
        Widths, int64 ``[tiles]``.
    """
    allowed = torch.tensor(widths)
    points = torch.tensor(rounding_points(widths), dtype=torch.float64)
    place = torch.bucketize(ideal, points, right=True)
    if old is not None and margin > 0:
        now = torch.bucketize(old.to(torch.int64), allowed)
        down = torch.bucketize(ideal + margin, points, right=True)
        up = torch.bucketize(ideal - margin, points, right=True)
        place = torch.where(place > now, torch.maximum(up, now), torch.minimum(down, now))
    return allowed[place]


def allocate(
    relative: torch.Tensor, cost: torch.Tensor, budget: float, widths: Sequence[int],
    old: torch.Tensor | None = None, margin: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Give each tile a width, so that the mean width over all MACs is as near below the budget as a level allows.

    Args:
        relative: sensitivity per MAC ``s / c`` of each tile, float64 ``[tiles]``, not negative; inf keeps the tile at
            the widest width.
        cost: MACs each tile takes part in (any unit), float64 ``[tiles]``, positive.
        budget: mean width to stay within.
        widths: allowed widths, ascending.
        old, margin: see :func:`round_widths`; the budget holds with hysteresis, too, except where tiles that stay at
            the widest width take more.

    Returns:
        Widths, int64 ``[tiles]``; all at the narrowest where the budget allows no more.
    """
    b = 0.5 * torch.log2(relative)
    finite = b[b.isfinite()]
    if not len(finite):  # nothing is known: as wide as the budget allows
        fits = max((w for w in widths if w <= budget), default=widths[0])
        return torch.where(b == math.inf, widths[-1], torch.where(b == -math.inf, widths[0], fits))

    def at(level: float) -> torch.Tensor:
        return round_widths(b + level, widths, old, margin)

    def fits_budget(w: torch.Tensor) -> bool:
        return float((w * cost).sum()) <= budget * float(cost.sum()) * (1 + 1e-12)

    reach = widths[-1] + 4.0 + margin
    low, high = -float(finite.max()) - reach, -float(finite.min()) + reach
    if fits_budget(at(high)):
        return at(high)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits_budget(at(middle)) else (low, middle)
    return at(low)


Named = dict[tuple[str, str], torch.Tensor]


@dataclass(frozen=True)
class Pool:
    """Maps of several operands, named (layer, role), that get their widths from one budget.

    Attributes:
        widths: allowed widths, ascending.
        relative, cost: as in :func:`allocate`, in the shape of each operand's map.
        old: present maps.
    """

    widths: tuple[int, ...]
    relative: Named
    cost: Named
    old: Named

    @cached_property
    def _flat(self) -> tuple[torch.Tensor, ...]:
        parts = ([v.reshape(-1) for v in named.values()] for named in (self.relative, self.cost, self.old))
        return tuple(torch.cat(p) for p in parts)

    def allocate(self, budget: float, margin: float) -> torch.Tensor:
        """Widths of all tiles in a row; see :func:`allocate`."""
        relative, cost, old = self._flat
        return allocate(relative, cost, budget, self.widths, old, margin)

    def maps(self, widths: torch.Tensor) -> Named:
        """Cut the row into maps."""
        parts = torch.split(widths, [v.numel() for v in self.relative.values()])
        return {k: p.view(v.shape) for (k, v), p in zip(self.relative.items(), parts, strict=True)}

    def means(self, widths: torch.Tensor) -> dict[tuple[str, str], float]:
        """Mean width of each operand over the MACs it takes part in."""
        sizes = torch.tensor([v.numel() for v in self.relative.values()])
        owner, cost = torch.repeat_interleave(torch.arange(len(sizes)), sizes), self._flat[1]
        sums = torch.zeros(2, len(sizes), dtype=torch.float64)
        sums[0].index_add_(0, owner, widths * cost)
        sums[1].index_add_(0, owner, cost)
        return dict(zip(self.relative, (sums[0] / sums[1]).tolist(), strict=True))


@dataclass(frozen=True)
class Stored:
    """An operand of one layer in one step.

    Attributes:
        values: numbers in it, over the whole batch.
        tiles: of its map.
        width: mean bits of a value.
    """

    values: float
    tiles: int
    width: float


def map_overhead(
    operands: Sequence[Stored], products: float, widths: int, tile: int, observe: int
) -> dict[str, float]:  # fmt: skip
    """What maps and their making take, beside what they are made for (how it is counted is ours).

    Args:
        operands: all of them.
        products: 32-bit-equivalent MACs of the three products of a step.
        widths: number of widths to choose from; a map keeps the number of one for each of its tiles.
        tile: values in a tile; each tile has a range of its own, kept in ``RANGE_BITS``.
        observe: steps between two measurements of sensitivity, which take one 32-bit MAC for each value (the square of
            a gradient); ranges are those that quantizing measures anyway.

    Returns:
        ``map_kib``: storage of the maps; ``storage_percent``: maps and ranges in percent of the values' own bits;
        ``analysis_percent``: the MACs of measuring in percent of those of the products.
    """
    maps = sum(o.tiles for o in operands) * math.ceil(math.log2(max(2, widths)))
    values = sum(o.values for o in operands)
    ranges = values / tile * RANGE_BITS
    return {
        "map_kib": maps / 8 / 1024,
        "storage_percent": 100 * (maps + ranges) / sum(o.values * max(o.width, 1e-9) for o in operands),
        "analysis_percent": 100 * values / observe / products,
    }


def tile_mean_squares(x: torch.Tensor, tile: PerTile) -> torch.Tensor:
    """Mean of the squares in each tile, float64 ``[row tiles, column tiles]``."""
    sums = tile_blocks(x, tile, 0.0).square().sum((1, 3), dtype=torch.float64)
    return sums / tile_sizes(x.shape, tile, x.device)


def fold_rows(values: torch.Tensor, period: int) -> torch.Tensor:
    """Mean over the tile rows at the same place in their samples, ``[row tiles, ...]`` to ``[period, ...]``.

    Places that do not occur (a batch smaller than a period) are nan.
    """
    missing = -len(values) % period
    if missing:
        values = torch.cat([values, values.new_full((missing, *values.shape[1:]), math.nan)])
    return values.view(-1, period, *values.shape[1:]).nanmean(0)


def average(old: torch.Tensor | None, new: torch.Tensor, keep: float) -> torch.Tensor:
    """Exponential average; where ``new`` is nan the old value stays."""
    if old is None:
        return new
    mixed = old * keep + new * (1 - keep)
    return torch.where(new.isnan(), old, torch.where(old.isnan(), new, mixed))
