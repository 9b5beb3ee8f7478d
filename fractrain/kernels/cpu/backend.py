"""What the CPU's compiled kernels offer to :mod:`fractrain.numerics.backend`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fractrain.kernels.cpu import scaled_blocks, uniform, uniform_tiles
from fractrain.numerics.backend import Backend, Blocks, Kernels, Measured, Quantized, Range, ScaledFormat, Uniform
from fractrain.numerics.blocks import Place
from fractrain.numerics.grid import Grid
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
        return uniform.restore(kept, self.kernels)

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
        return uniform.quantize_measured(x, form, bits, noise, code_bits, known, only_codes, self.kernels)

    def quantize_blocks(
        self, form: ScaledFormat, m: torch.Tensor, noise: NoiseKey | None, known: torch.Tensor | None, place: Place
    ) -> Blocks | None:
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
