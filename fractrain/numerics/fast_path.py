"""The common case in few calls: measure the range, derive the grid and quantize, for uniform formats on the CPU.

Same bits as the general path (``Format.limits`` + ``Format.grid`` + ``kernels.quantize``), which spends more time on
one-element tensors than on the data when layers are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from fractrain.numerics.formats import MIN_SCALE, Affine, Bits, Format, PerAxis, PerTensor, Symmetric
from fractrain.numerics.grid import Grid, RowGrid
from fractrain.numerics.quantize import Kernels, Quantized, flat, fused_for, quantize_rows
from fractrain.numerics.stochastic_rounding import NoiseKey


@dataclass
class Measured:
    """Result of :func:`quantize_uniform`.

    Attributes:
        values: quantized values, or None when not wanted.
        codes: integer codes, or None when not wanted.
        low, high: extremes of the tensor (over all groups).
        finite: whether the tensor had neither inf nor nan.
    """

    values: torch.Tensor | None
    codes: Quantized | None
    low: float
    high: float
    finite: bool


def quantize_uniform(
    x: torch.Tensor, fmt: Format, bits: Bits, noise: NoiseKey | None, code_bits: int, kernels: Kernels,
    known: tuple[float, float] | None = None, only_codes: bool = False,
) -> Measured | None:  # fmt: skip
    """Quantize ``x``, or return None where this path does not apply.

    Applies to :class:`Affine` and :class:`Symmetric` themselves (not subclasses), one width, one grid per tensor or per
    index of the first axis, statistic ``extreme``, dense float32 on the CPU; and to :class:`Affine` per tensor with one
    width per sample.

    Args:
        x: the tensor.
        fmt, bits: format and width.
        noise: key for stochastic rounding, or None.
        code_bits: as in :func:`fractrain.numerics.quantize.quantize`; samples of greater width get values only.
        kernels: as there.
        known: range to use instead of measuring it (per tensor only).
        only_codes: leave the values out (they can be restored from the codes).
    """
    per_row = fmt.granularity == PerAxis(0)
    if type(fmt) not in (Affine, Symmetric) or fmt.statistic != "extreme":
        return None
    if isinstance(bits, torch.Tensor) and (per_row or type(fmt) is not Affine or bits.numel() != x.shape[0]):
        return None
    if not (per_row and known is None) and not isinstance(fmt.granularity, PerTensor):
        return None
    fused = fused_for(x, kernels)
    if fused is None:
        return None
    module, parallel = fused
    n = x.shape[0]
    ranges = np.empty((2, n), np.float32)
    data = flat(x)
    if known is None:
        module.extremes[parallel](data.view(np.int32), ranges[0].view(np.int32), ranges[1].view(np.int32))
    else:
        ranges[0], ranges[1] = known
    if isinstance(bits, torch.Tensor):
        return _per_sample(x, data, bits, ranges, noise, code_bits, kernels, module, parallel, only_codes)
    symmetric = type(fmt) is Symmetric
    top = np.float32(2 ** (bits - 1) - 1 if symmetric else 2**bits - 1)
    grid = np.empty((4, n), np.float32)
    low, high, finite = module.fill_grid(ranges[0], ranges[1], per_row, symmetric, top, np.float32(MIN_SCALE), *grid)
    rows = RowGrid(module, parallel, *grid)
    shape = (n, *([1] * (x.dim() - 1))) if per_row else ()
    values, codes = quantize_rows(x, data, rows, noise, code_bits, only_codes and code_bits > 0)
    kept = None if codes is None else Quantized(codes, lambda: _grid(grid, shape), kernels, rows)
    return Measured(values, kept, low, high, finite)


def _per_sample(
    x: torch.Tensor, data: np.ndarray, bits: torch.Tensor, ranges: np.ndarray, noise: NoiseKey | None, code_bits: int,
    kernels: Kernels, module: ModuleType, parallel: bool, only_codes: bool,
) -> Measured:  # fmt: skip
    """Affine grids over one range, one width per sample (0: the sample becomes 0)."""
    low, high = ranges[0].min(), ranges[1].max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return Measured(x, None, float(low), float(high), False)
    widths = bits.cpu().numpy().reshape(-1)
    top = np.exp2(widths.astype(np.float32)) - np.float32(1)
    scale = np.maximum((high - low) / np.maximum(top, np.float32(1)), np.float32(MIN_SCALE))
    grid = np.stack([scale, np.where(widths > 0, low, np.float32(0)), np.zeros_like(top), top])
    coded = np.flatnonzero(widths <= code_bits) if 0 < code_bits < widths.max() else None
    if coded is not None and not len(coded):
        coded, code_bits = None, 0
    rows = RowGrid(module, parallel, *grid, vary=True, coded=coded)
    values, codes = quantize_rows(x, data, rows, noise, code_bits, only_codes and code_bits > 0 and coded is None)
    shape = (len(widths), *([1] * (x.dim() - 1)))
    kept = None if codes is None else Quantized(codes, lambda: _grid(grid, shape), kernels, rows)
    return Measured(values, kept, float(low), float(high), True)


def _grid(rows: np.ndarray, shape: tuple[int, ...]) -> Grid:
    """The grid as tensors, for who asks."""
    scale, offset, qmin, qmax = (torch.from_numpy(r).view(shape) if shape else torch.tensor(r[0]) for r in rows)
    return Grid(scale, offset, qmin, qmax)
