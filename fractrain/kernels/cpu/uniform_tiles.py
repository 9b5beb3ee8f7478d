"""Uniform grids on the CPU with one grid per tile of the matrix view."""

from __future__ import annotations

import logging
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.tensors import flat
from fractrain.kernels.cpu.uniform import fused_for, key_of, load_fused, probed
from fractrain.numerics.backend import SHIFT16, Kernels, Quantized, Range
from fractrain.numerics.grid import Grid
from fractrain.numerics.quantize import quantize, tile_limits
from fractrain.numerics.stochastic_rounding import NoiseKey
from fractrain.numerics.tiles import PerTile, matrix_size, tile_counts

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def load_fused_tiles() -> ModuleType | None:
    """As :func:`fractrain.kernels.cpu.uniform.load_fused`."""
    if load_fused() is None:
        return None
    from fractrain.kernels.cpu import quantize_tiles as fused_tiles

    return fused_tiles


@lru_cache(maxsize=1)
def probed_tiles() -> ModuleType | None:
    """As :func:`fractrain.kernels.cpu.uniform.probed`."""
    module = load_fused_tiles()
    if module is None or probed() is None:
        return None
    x = torch.randn(3, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    tile = PerTile(7, 2)
    measured, (lo, hi) = tile_limits(x, tile, "fused"), tile_limits(x, tile, "reference")
    same = all(torch.equal(a, b) for a, b in zip(measured, (lo, hi), strict=True))
    top = 2.0 ** torch.arange(2, 2 + lo.numel()).remainder(7).view(lo.shape) - 1.0
    grid = Grid(((hi - lo) / top.clamp(min=1.0)).clamp(min=1e-8), lo, torch.zeros(()), top, tile)
    for noise in (None, NoiseKey(123, 456, 7)):
        plain, plain_codes = quantize(x, grid, noise, 8, "reference")
        fast, fast_codes = quantize(x, grid, noise, 8, "fused")
        assert plain_codes is not None
        assert fast_codes is not None
        same = same and torch.equal(plain, fast) and torch.equal(plain_codes.codes, fast_codes.codes)
        same = same and torch.equal(plain_codes.values(), fast_codes.values())
    if not same:
        log.warning("fused tile quantizers differ from the plain path on this machine; using the plain path")
        return None
    return module


def limits(x: torch.Tensor, tile: PerTile, kernels: Kernels) -> Range | None:
    """Smallest and largest value per tile."""
    fused = _fused_for(x, kernels)
    if fused is None:
        return None
    module, threads = fused
    low, high = torch.empty(2, *tile_counts(x.shape, tile))
    out = (low.numpy().view(np.int32), high.numpy().view(np.int32))
    module.extremes[threads](_matrix(x).view(np.int32), tile.rows, tile.cols, *out)
    return low, high


def quantize_grid(
    x: torch.Tensor, grid: Grid, tile: PerTile, noise: NoiseKey | None, code_bits: int, kernels: Kernels
) -> tuple[torch.Tensor, Quantized | None] | None:
    """Values and codes of ``x`` on a grid per tile."""
    fused = _fused_for(x, kernels)
    if fused is None:
        return None
    m, threads = fused
    matrix = _matrix(x)
    values, out = blocks.rows_like(x)
    params = _params(grid, tile_counts(x.shape, tile), ("scale", "offset", "qmin", "qmax"))
    key = () if noise is None else key_of(noise, x)
    args = (matrix, tile.rows, tile.cols, *params, out.reshape(matrix.shape))
    if not code_bits:
        (m.nearest_values if noise is None else m.stochastic_values)[threads](*args, *key)
        return values, None
    wide = code_bits > 8
    kept, codes = blocks.rows_like(x, dtype=torch.int16 if wide else torch.uint8)
    more = (codes.reshape(matrix.shape), np.float32(SHIFT16 if wide else 0.0))
    (m.nearest_codes if noise is None else m.stochastic_codes)[threads](*args, *more, *key)
    return values, Quantized(kept, grid, kernels)


def restore(kept: Quantized, grid: Grid, tile: PerTile, kernels: Kernels) -> torch.Tensor | None:
    """Values of codes."""
    fused = _fused_for(kept.codes, kernels) if grid.scale.dtype == torch.float32 else None
    if fused is None:
        return None
    values, out = blocks.rows_like(kept.codes, dtype=torch.float32)
    params = _params(grid, tile_counts(kept.codes.shape, tile), ("scale", "offset", "qmin"))
    codes = _matrix(kept.codes)
    args = (codes, tile.rows, tile.cols, *params, out.reshape(codes.shape), np.float32(kept.shift))
    fused[0].dequantize[fused[1]](*args)
    return values


def _fused_for(x: torch.Tensor, kernels: Kernels) -> tuple[ModuleType, bool] | None:
    fused = fused_for(x, "fused")
    module = None if fused is None else load_fused_tiles() if kernels == "fused" else probed_tiles()
    return None if fused is None or module is None else (module, fused[1])


def _matrix(x: torch.Tensor) -> np.ndarray:
    """The matrix view of a dense tensor as a numpy view."""
    return flat(x).reshape(matrix_size(x.shape))


def _params(grid: Grid, counts: tuple[int, int], names: tuple[str, ...]) -> list[np.ndarray]:
    """Parameters as contiguous float32 ``[row tiles, column tiles]``."""
    return [np.ascontiguousarray(np.broadcast_to(getattr(grid, n).numpy(), counts), np.float32) for n in names]
