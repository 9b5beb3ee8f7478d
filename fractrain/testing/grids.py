"""What can be seen of a quantized tensor: how many values it has, whether they lie on its grid, how it was rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fractrain.numerics.blocks import ACTIVATION
from fractrain.numerics.formats import (
    MAX_BITS,
    Limits,
    PerAxis,
    PerBlock,
    PerTensor,
    PerTile,
    Place,
    expand_tiles,
    tile_counts,
)
from fractrain.numerics.precision import Operand

TOLERANCE = 0.05  # of a grid step: float32 leaves about 0.01 of a step at 16 bits


def _groups(x: torch.Tensor, op: Operand) -> tuple[torch.Tensor, torch.Tensor]:
    """Group and width of every element.

    Returns:
        (number of the group that shares a grid, width), both int64 of the shape of ``x``.
    """
    g = op.format.granularity
    column = (-1, *([1] * (x.dim() - 1)))
    if isinstance(g, PerTile):
        rows, cols = tile_counts(x.shape, g)
        groups = expand_tiles(torch.arange(rows * cols).view(rows, cols), x.shape, g)
        bits = op.bits
        widths = expand_tiles(bits.cpu(), x.shape, g) if isinstance(bits, torch.Tensor) else torch.tensor(bits)
        return groups, widths.long().expand(x.shape)
    groups = torch.zeros(x.shape, dtype=torch.int64)
    if isinstance(g, PerAxis):
        shape = [1] * x.dim()
        shape[g.axis] = -1
        groups = groups + torch.arange(x.shape[g.axis]).view(shape)
    if not isinstance(op.bits, torch.Tensor):
        return groups, torch.full(x.shape, op.bits)
    samples = torch.arange(x.shape[0]).view(column)
    return groups * x.shape[0] + samples, op.bits.cpu().long().view(column).expand(x.shape)


def too_many_values(values: torch.Tensor, op: Operand, place: Place = ACTIVATION) -> str | None:
    """Say in which group there are more different values than the width allows, or None.

    Args:
        values: quantized tensor.
    """
    values = values.detach().cpu()
    g0 = op.format.granularity
    if isinstance(g0, PerBlock):
        assert isinstance(op.bits, int)
        groups = op.format.groups(values, place)
        if groups is None:
            return None
        blocks = groups.sort(dim=1).values
        most = 1 + int((blocks[:, 1:] != blocks[:, :-1]).sum(dim=1).max())
        return None if most <= op.format.points(op.bits) else _too_many(most, op, op.bits)
    if isinstance(op.bits, int) and (isinstance(g0, PerTensor) or (isinstance(g0, PerAxis) and g0.axis == 0)):
        rows = values.reshape(values.shape[0] if isinstance(g0, PerAxis) else 1, -1).sort(dim=1).values
        most = 1 + int((rows[:, 1:] != rows[:, :-1]).sum(dim=1).max())
        return None if most <= op.format.points(op.bits) else _too_many(most, op, op.bits)
    groups, widths = (t.reshape(-1) for t in _groups(values, op))
    flat = values.reshape(-1)
    order = torch.argsort(flat)
    order = order[torch.argsort(groups[order], stable=True)]
    v, g = flat[order], groups[order]
    new = torch.ones_like(g, dtype=torch.bool)
    new[1:] = (v[1:] != v[:-1]) | (g[1:] != g[:-1])
    count = int(groups.max()) + 1
    seen = torch.zeros(count, dtype=torch.int64).index_add_(0, g, new.long())
    width = torch.zeros(count, dtype=torch.int64).scatter_(0, groups, widths)  # one width per group
    bad = (seen > _points(op)[width]).nonzero()
    if len(bad):
        k = int(bad[0])
        return _too_many(int(seen[k]), op, int(width[k]))
    skipped = widths == 0
    if bool((flat[skipped] != 0).any()):
        return "values other than 0 where the width is 0"
    return None


def _points(op: Operand) -> torch.Tensor:
    """Most values of a group by width, int64 ``[17]``."""
    return torch.tensor([op.format.points(bits) for bits in range(MAX_BITS + 1)])


def _too_many(values: int, op: Operand, bits: int) -> str:
    return f"{values} different values in one group at {bits} bits (at most {op.format.points(bits)})"


@dataclass
class Rounding:
    """How the elements of one operand were rounded, added up over calls.

    Attributes:
        between: elements clearly between two grid points.
        away: those of them that did not go to the nearer one.
    """

    between: int = 0
    away: int = 0

    def note(self, fraction: torch.Tensor, distance: torch.Tensor, live: torch.Tensor) -> None:
        """Add elements by their place between two grid points (0..1) and how far they went, both in steps."""
        between = live & (fraction > 0.2) & (fraction < 0.8)
        self.between += int(between.sum())
        self.away += int((between & (distance > 0.5 + TOLERANCE)).sum())


def off_grid(
    x: torch.Tensor, values: torch.Tensor, op: Operand, limits: Limits, rounding: Rounding, place: Place = ACTIVATION
) -> str | None:
    """Say how the values contradict the operand's own grid, or None.

    Args:
        x: the tensor before quantization.
        values: the tensor after it.
        op: the operand, not in floating point.
        limits: measured or running limits that its grid was made of.
        rounding: gets what is seen of the rounding.
    """
    if op.format.bits is not None:
        around = op.format.neighbours(x, limits, place)
        return None if around is None else _between(x, values, op, *around, rounding)
    grid = op.format.grid(limits, op.bits, x)
    steps = grid.qmax - grid.qmin + 1
    allowed = _points(op)[_groups(x, op)[1]].to(steps.device)
    if bool((steps > allowed).any()):
        return f"a grid of {int(steps.max())} points at {op.widest} bits"
    live = (grid.qmax > grid.qmin).expand(x.shape)
    codes = (values - grid.offset) / grid.scale
    wanted = torch.minimum(torch.maximum((x - grid.offset) / grid.scale, grid.qmin), grid.qmax)
    astray = live & ((codes - codes.round()).abs() > TOLERANCE)
    outside = live & ((codes < grid.qmin - TOLERANCE) | (codes > grid.qmax + TOLERANCE))
    if bool((astray | outside).any()):
        return f"{int((astray | outside).sum())} of {x.numel()} values are not on the grid"
    distance = torch.where(live, (codes - wanted).abs(), 0.0)
    rounding.note(wanted - wanted.floor(), distance, live)
    far = 0.5 if op.format.rounding == "nearest" else 1.0
    if bool((distance > far + TOLERANCE).any()):
        return f"rounded by {float(distance.max()):.2f} steps, {op.format.rounding} rounding allows {far}"
    return None


def _between(
    x: torch.Tensor, values: torch.Tensor, op: Operand, below: torch.Tensor, above: torch.Tensor, rounding: Rounding
) -> str | None:
    """As :func:`off_grid`, given the values of the format around each element."""
    gap = (above - below).double()
    near = torch.minimum((values - below).abs(), (values - above).abs()).double()
    astray = near > TOLERANCE * gap + 1e-6 * values.abs().double()
    if bool(astray.any()):
        return f"{int(astray.sum())} of {x.numel()} values are none of the format's two around the element"
    live = gap > 0
    fraction = torch.where(live, ((x - below).double() / gap.clamp(min=1e-300)).clamp(0, 1), 0.0)
    distance = torch.where(live, (values - x.clamp(below, above)).abs().double() / gap.clamp(min=1e-300), 0.0)
    rounding.note(fraction, distance, live)
    return None
