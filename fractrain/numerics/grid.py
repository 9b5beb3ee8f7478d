"""Parameters of a uniform grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import torch

from fractrain.numerics.tiles import PerTile, expand_tiles

MIN_SCALE = 1e-8  # a constant tensor has range 0; the authors clamp the step the same way


@dataclass(frozen=True)
class Grid:
    """The grid ``code * scale + offset`` with integer codes in ``[qmin, qmax]``.

    Attributes:
        scale, offset, qmin, qmax: float32 tensors, each broadcastable to the quantized tensor; with ``tile`` 0-dim or
            one value per tile ``[row tiles, column tiles]``.
        tile: how the tensor is cut into tiles, if the parameters are per tile.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    qmin: torch.Tensor
    qmax: torch.Tensor
    tile: PerTile | None = None

    def full(self, shape: torch.Size) -> Grid:
        """The same grid with parameters that broadcast to a tensor of this shape."""
        tile = self.tile
        if tile is None:
            return self
        params = (self.scale, self.offset, self.qmin, self.qmax)
        scale, offset, qmin, qmax = (expand_tiles(p, shape, tile) if p.dim() else p for p in params)
        return Grid(scale, offset, qmin, qmax)


@dataclass
class RowGrid:
    """The grid with one value per row, each float32 ``[rows]``, and the compiled kernels to use.

    Attributes:
        vary: whether rows of a tensor of samples have grids of their own; else all have that of the first.
        coded: the rows that have codes, int64; None: all.
    """

    module: ModuleType
    parallel: bool
    scale: np.ndarray
    offset: np.ndarray
    qmin: np.ndarray
    qmax: np.ndarray
    vary: bool = field(default=False, kw_only=True)
    coded: np.ndarray | None = field(default=None, kw_only=True)

    def steps(self, row: int) -> tuple[float, float, int, float]:
        """Of a row: scale, value of its code 0, the code in 0..255 that is nearest to zero, and the value of that."""
        scale = float(self.scale[row])
        offset = float(self.offset[row]) + scale * float(self.qmin[row])
        zero = int(min(max(round(-offset / scale), 0), 255))
        return scale, offset, zero, offset + scale * zero

    def take(self, rows: np.ndarray) -> RowGrid:
        """Of some rows."""
        some = (p[rows] for p in (self.scale, self.offset, self.qmin, self.qmax))
        return RowGrid(self.module, self.parallel, *some, vary=self.vary)
