"""Tiles of a tensor's matrix view: their geometry, and how one value per tile spreads over the elements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from fractrain.util.errors import ConfigError


@dataclass(frozen=True)
class PerTile:
    """One grid per ``rows x cols`` tile of the matrix view of the tensor (see :func:`matrix_view`).

    Attributes:
        rows, cols: size of a tile; tiles at the edges may be smaller.
        repeat: a map of widths may have another number of tile rows than the tensor: its rows are used over and over
            (see :func:`tile_period`), so that it does not depend on the size of the batch.
    """

    rows: int = 16
    cols: int = 16
    repeat: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise ConfigError(f"tiles must be at least 1x1, got {self.rows}x{self.cols}")


def matrix_view(x: torch.Tensor) -> torch.Tensor:
    """View a tensor as the matrix of its product: 4-D as (first axis, rows, columns | channel), else (.., last axis).

    An activation ``[N, C, H, W]`` becomes ``[N*H*W, C]``, a convolution weight ``[O, I, kh, kw]`` ``[O*kh*kw, I]``.
    """
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return x.reshape(-1, x.shape[-1])


def matrix_size(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of the matrix view."""
    cols = shape[1] if len(shape) == 4 else shape[-1]
    return shape.numel() // cols, cols


def tile_counts(shape: torch.Size, tile: PerTile) -> tuple[int, int]:
    """Number of tiles along the rows and columns of the matrix view (edge tiles may be smaller)."""
    rows, cols = matrix_size(shape)
    return -(-rows // tile.rows), -(-cols // tile.cols)


def tile_period(shape: torch.Size, tile: PerTile) -> int:
    """Tile rows after which tiles lie in a sample (first axis) as before: 4 for 8x8 images and tiles of 16 rows.

    Tile row ``r`` of any batch covers the same positions as tile row ``r % period``.
    """
    per_sample = matrix_size(shape)[0] // shape[0]
    return per_sample // math.gcd(per_sample, tile.rows)


def fit_map(values: torch.Tensor, shape: torch.Size, tile: PerTile) -> torch.Tensor:
    """Return a map ``[row tiles, column tiles]`` for a tensor of this shape, its rows repeated or cut if allowed.

    Raises:
        ConfigError: the map does not have one value per tile.
    """
    counts = tile_counts(shape, tile)
    if tuple(values.shape) == counts:
        return values
    if tile.repeat and values.dim() == 2 and values.shape[0] and values.shape[1] == counts[1]:
        return values.repeat(-(-counts[0] // values.shape[0]), 1)[: counts[0]]
    raise ConfigError(
        f"map of shape {tuple(values.shape)}, but a tensor {tuple(shape)} has {counts} tiles of {tile.rows}x{tile.cols}"
    )


def expand_tiles(values: torch.Tensor, shape: torch.Size, tile: PerTile) -> torch.Tensor:
    """Spread one value per tile ``[row tiles, column tiles]`` over the elements of a tensor of this shape.

    Raises:
        ConfigError: the map does not have one value per tile.
    """
    values = fit_map(values, shape, tile)
    rows, cols = matrix_size(shape)
    full = values.repeat_interleave(tile.rows, 0)[:rows].repeat_interleave(tile.cols, 1)[:, :cols]
    if len(shape) == 4:
        n, c, h, w = shape
        return full.reshape(n, h, w, c).permute(0, 3, 1, 2)
    return full.reshape(shape)


def tile_blocks(x: torch.Tensor, tile: PerTile, fill: float) -> torch.Tensor:
    """Matrix view cut into tiles ``[row tiles, rows, column tiles, cols]``, edges padded with ``fill``."""
    m = matrix_view(x)
    rows, cols = m.shape
    pad = (0, -cols % tile.cols, 0, -rows % tile.rows)
    if any(pad):
        m = torch.nn.functional.pad(m, pad, value=fill)
    return m.view(m.shape[0] // tile.rows, tile.rows, m.shape[1] // tile.cols, tile.cols)


@lru_cache(maxsize=4096)
def tile_sizes(shape: torch.Size, tile: PerTile, device: torch.device | None = None) -> torch.Tensor:
    """Elements in each tile, float64 ``[row tiles, column tiles]``; kept and shared, so not to be written to."""
    parts = []
    for length, step in zip(matrix_size(shape), (tile.rows, tile.cols), strict=True):
        sizes = torch.full((-(-length // step),), float(step), dtype=torch.float64, device=device)
        sizes[-1] = length - step * (len(sizes) - 1)
        parts.append(sizes)
    return parts[0][:, None] * parts[1]
