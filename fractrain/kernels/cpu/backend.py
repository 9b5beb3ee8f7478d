"""What the CPU's compiled kernels offer to :mod:`fractrain.numerics.backend`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu import scaled_blocks, uniform, uniform_tiles
from fractrain.kernels.cpu.tensors import flat
from fractrain.numerics.backend import Backend, Kernels, Measured, Quantized, Range, ScaledBlocks, ScaledFormat, Uniform
from fractrain.numerics.blocks import Place
from fractrain.numerics.grid import MIN_SCALE, Grid, RowGrid
from fractrain.numerics.stochastic_rounding import NoiseKey
from fractrain.numerics.tiles import PerTile


@dataclass(frozen=True)
class CpuBackend(Backend):
    """Kernels by numba; ``kernels``: after a probe (``auto``) or without."""

    kernels: Kernels

    def quantize(
        self, x: torch.Tensor, grid: Grid, noise: NoiseKey | None, code_bits: int
    ) -> tuple[torch.Tensor, Quantized | None] | None:
        """Dense float32 on one grid per tensor, row or tile."""
        if grid.tile is not None:
            return uniform_tiles.quantize_grid(x, grid, grid.tile, noise, code_bits, self.kernels)
        return uniform.quantize_grid(x, grid, noise, code_bits, self.kernels)

    def restore(self, kept: Quantized) -> torch.Tensor | None:
        """The codes that :meth:`quantize` makes."""
        grid = kept.full_grid if kept.rows is None else None
        if grid is not None and grid.tile is not None:
            return uniform_tiles.restore(kept, grid, grid.tile, self.kernels)
        rows = uniform.row_grid(kept.codes, kept.full_grid, self.kernels) if kept.rows is None else kept.rows
        if rows is None:
            return None
        values, out = blocks.rows_like(kept.codes, dtype=torch.float32)
        dequantize = rows.module.dequantize[rows.parallel]
        dequantize(flat(kept.codes), rows.scale, rows.offset, rows.qmin, out, np.float32(kept.shift))
        return values

    def row_limits(self, x: torch.Tensor) -> Range | None:
        """Dense float32."""
        return uniform.row_limits(x)

    def tile_limits(self, x: torch.Tensor, tile: PerTile) -> Range | None:
        """Dense float32."""
        return uniform_tiles.limits(x, tile, self.kernels)

    def quantize_measured(
        self, x: torch.Tensor, form: Uniform, bits: int | torch.Tensor, noise: NoiseKey | None, code_bits: int,
        known: tuple[float, float] | None, only_codes: bool,
    ) -> Measured | None:  # fmt: skip
        """Dense float32, also one width per sample."""
        if form.per_row and known is not None:
            return None
        if isinstance(bits, torch.Tensor) and (form.per_row or form.symmetric or bits.numel() != x.shape[0]):
            return None
        fused = uniform.fused_for(x, self.kernels, noise is not None)
        if fused is None:
            return None
        module, threads = fused
        n = x.shape[0]
        ranges = np.empty((2, n), np.float32)
        data = flat(x)
        if known is None:
            module.extremes[threads](data.view(np.int32), ranges[0].view(np.int32), ranges[1].view(np.int32))
        else:
            ranges[0], ranges[1] = known
        if isinstance(bits, torch.Tensor):
            return uniform.quantize_per_sample(
                x, data, bits, ranges, noise, code_bits, self.kernels, fused, only_codes
            )  # fmt: skip
        top = np.float32(2 ** (bits - 1) - 1 if form.symmetric else 2**bits - 1)
        grid = np.empty((4, n), np.float32)
        low, high, finite = module.fill_grid(
            ranges[0], ranges[1], form.per_row, form.symmetric, top, np.float32(MIN_SCALE), *grid
        )
        rows = RowGrid(module, threads, *grid)
        shape = (n, *([1] * (x.dim() - 1))) if form.per_row else ()
        values, codes = uniform.quantize_rows(x, data, rows, noise, code_bits, only_codes and code_bits > 0)
        kept = None if codes is None else Quantized(codes, lambda: uniform.grid_of(grid, shape), self.kernels, rows)
        return Measured(values, kept, (low, high), not finite)

    def quantize_blocks(
        self, form: ScaledFormat, m: torch.Tensor, noise: NoiseKey | None, known: torch.Tensor | None, place: Place
    ) -> ScaledBlocks | None:
        """Dense float32 matrices whose blocks end with them."""
        return scaled_blocks.quantize_fused(form, m, noise, known, place)

    def restore_blocks(
        self, form: ScaledFormat, codes: torch.Tensor, back: torch.Tensor, shape: torch.Size, place: Place
    ) -> torch.Tensor | None:
        """The codes that :meth:`quantize_blocks` makes."""
        return scaled_blocks.restore_fused(form, codes, back, shape, place)


def backend(kernels: Kernels) -> Backend:
    """The backend, see :func:`fractrain.numerics.backend.backend_for`."""
    return CpuBackend(kernels)
