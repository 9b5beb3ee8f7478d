"""Uniform grids on the CPU: numba's kernels with one grid per row, and the probe of this machine.

``auto`` takes them after a probe that checks, once per process, that they give exactly the plain path's result on this
machine; otherwise the plain path, with one log line saying why.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.tensors import flat, parallel
from fractrain.numerics.backend import SHIFT16, Kernels, Measured, Quantized, Range
from fractrain.numerics.grid import MIN_SCALE, Grid, RowGrid
from fractrain.numerics.quantize import quantize, quantize_reference
from fractrain.numerics.stochastic_rounding import NoiseKey

READABLE = (torch.float32, torch.uint8, torch.int16)

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def load_fused() -> ModuleType | None:
    """Import the kernels, or return None where numba is absent or cannot work."""
    try:
        from fractrain.kernels.cpu import quantize as fused
    except (ImportError, RuntimeError) as problem:  # RuntimeError: numba found no folder for its cache
        log.warning("fused quantizers are not available (%s); using the plain path", problem)
        return None
    return fused


@lru_cache(maxsize=1)
def probed() -> ModuleType | None:
    """Return the kernels if they give exactly the plain path's bits on this machine, else None."""
    module = load_fused()
    if module is None:
        return None
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 6, 7, generator=gen).contiguous(memory_format=torch.channels_last)
    lo, hi = x.aminmax()
    for bits in (3, 8, 12):
        top = torch.tensor(float(2**bits - 1))
        grid = Grid((hi - lo) / top, lo, torch.zeros(()), top)
        for noise in (None, NoiseKey(123, 456, 7)):
            plain, plain_codes = quantize_reference(x, grid, noise, bits)
            fast, fast_codes = quantize(x, grid, noise, bits, kernels="fused")
            assert plain_codes is not None
            assert fast_codes is not None
            same = torch.equal(plain, fast) and torch.equal(plain_codes.codes, fast_codes.codes)
            if fast_codes.rows is not None:
                _, only = quantize_rows(x, flat(x), fast_codes.rows, noise, bits, only_codes=True)
                same = same and only is not None and torch.equal(only, plain_codes.codes)
            if not (same and torch.equal(plain_codes.values(), fast_codes.values())):
                log.warning("fused quantizers differ from the plain path on this machine; using the plain path")
                return None
    return module


def fused_for(x: torch.Tensor, kernels: Kernels, ordered: bool = True) -> tuple[ModuleType, bool] | None:
    """The compiled kernels and whether to run them on several threads, or None where the plain path must do.

    They read dense float32 or codes, 4-D ones channels last; unless ``ordered`` (by the numbers of elements, see
    :mod:`fractrain.numerics.stochastic_rounding`) in either layout.
    """
    if kernels == "reference" or x.device.type != "cpu" or x.dtype not in READABLE or not x.numel():
        return None
    dense = x.dim() > 0 and x.is_contiguous()
    if x.dim() == 4 and (ordered or not dense):
        dense = x.is_contiguous(memory_format=torch.channels_last)
    if not dense:
        return None
    module = load_fused() if kernels == "fused" else probed()
    return None if module is None else (module, torch.get_num_threads() > 1 and parallel(x))


def quantize_grid(
    x: torch.Tensor, grid: Grid, noise: NoiseKey | None, code_bits: int, kernels: Kernels
) -> tuple[torch.Tensor, Quantized | None] | None:
    """Values and codes of ``x`` on one grid per tensor or row."""
    rows = row_grid(x, grid, kernels)
    if rows is None:
        return None
    rounded, codes = quantize_rows(x, flat(x), rows, noise, code_bits)
    assert rounded is not None
    return rounded, None if codes is None else Quantized(codes, grid, kernels, rows)


def row_limits(x: torch.Tensor) -> Range | None:
    """Smallest and largest value per row, exact without a probe: they compare bits."""
    fused = fused_for(x, "fused") if x.dtype == torch.float32 else None
    if fused is None:
        return None
    low, high = torch.empty(2, x.shape[0])
    fused[0].extremes[fused[1]](flat(x).view(np.int32), low.numpy().view(np.int32), high.numpy().view(np.int32))
    return low, high


def quantize_per_sample(
    x: torch.Tensor, data: np.ndarray, bits: torch.Tensor, ranges: np.ndarray, noise: NoiseKey | None, code_bits: int,
    kernels: Kernels, fused: tuple[ModuleType, bool], only_codes: bool,
) -> Measured:  # fmt: skip
    """Affine grids over one range, one width per sample (0: the sample becomes 0)."""
    low, high = ranges[0].min(), ranges[1].max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return Measured(x, None, (float(low), float(high)), True)
    widths = bits.cpu().numpy().reshape(-1)
    top = np.exp2(widths.astype(np.float32)) - np.float32(1)
    scale = np.maximum((high - low) / np.maximum(top, np.float32(1)), np.float32(MIN_SCALE))
    grid = np.stack([scale, np.where(widths > 0, low, np.float32(0)), np.zeros_like(top), top])
    coded = np.flatnonzero(widths <= code_bits) if 0 < code_bits < widths.max() else None
    if coded is not None and not len(coded):
        coded, code_bits = None, 0
    rows = RowGrid(*fused, *grid, vary=True, coded=coded)
    values, codes = quantize_rows(x, data, rows, noise, code_bits, only_codes and code_bits > 0 and coded is None)
    shape = (len(widths), *([1] * (x.dim() - 1)))
    kept = None if codes is None else Quantized(codes, lambda: grid_of(grid, shape), kernels, rows)
    return Measured(values, kept, (float(low), float(high)), False)


def grid_of(rows: np.ndarray, shape: tuple[int, ...]) -> Grid:
    """The grid as tensors, for who asks."""
    scale, offset, qmin, qmax = (torch.from_numpy(r).view(shape) if shape else torch.tensor(r[0]) for r in rows)
    return Grid(scale, offset, qmin, qmax)


def row_grid(x: torch.Tensor, grid: Grid, kernels: Kernels) -> RowGrid | None:
    """Parameters per row where the kernels apply, else None."""
    fused = fused_for(x, kernels) if grid.scale.dtype == torch.float32 else None
    if fused is None:
        return None
    n = x.shape[0]
    params = (grid.scale, grid.offset, grid.qmin, grid.qmax)
    if any(p.numel() != 1 and (p.numel() != n or p.dim() != x.dim() or p.shape[0] != n) for p in params):
        return None
    return RowGrid(*fused, *(_per_row(p, n) for p in params))


def _per_row(p: torch.Tensor, n: int) -> np.ndarray:
    return np.full(n, p.item(), np.float32) if p.numel() == 1 else p.reshape(-1).numpy()


def quantize_rows(
    x: torch.Tensor, data: np.ndarray, rows: RowGrid, noise: NoiseKey | None, code_bits: int, only_codes: bool = False
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Values (None if only codes are wanted) and codes (or None) by the compiled kernels; ``data`` is ``flat(x)``."""
    args: tuple[np.ndarray, ...] = (data, rows.scale, rows.offset, rows.qmin, rows.qmax)
    values = None
    if not only_codes:
        values, out = blocks.rows_like(x)
        args += (out,)
    m, key = rows.module, () if noise is None else key_of(noise, x)
    if not code_bits:
        (m.nearest_values if noise is None else m.stochastic_values)[rows.parallel](*args, *key)
        return values, None
    wide = code_bits > 8
    codes, out = blocks.rows_like(x, dtype=torch.int16 if wide else torch.uint8)
    more = (out, np.float32(SHIFT16 if wide else 0.0))
    if only_codes:
        (m.nearest_only if noise is None else m.stochastic_only)[rows.parallel](*args, *more, *key)
    else:
        (m.nearest_codes if noise is None else m.stochastic_codes)[rows.parallel](*args, *more, *key)
    return values, codes


def key_of(noise: NoiseKey, x: torch.Tensor) -> tuple[np.uint32, np.uint32, np.uint32]:
    """The words of a key as kernels take them."""
    if noise.base + x.numel() > 0xFFFFFFFF:
        raise ValueError(f"stochastic rounding numbers at most 2**32 elements, got {noise.base + x.numel()}")
    return np.uint32(noise.k0), np.uint32(noise.k1), np.uint32(noise.base)
