"""Parameters of a uniform grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fractrain.quant.tiles import PerTile, expand_tiles


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
