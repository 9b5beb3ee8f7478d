"""What the GPU's Triton kernels offer to :mod:`fractrain.numerics.backend`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fractrain.kernels.cuda import scaled_blocks
from fractrain.kernels.cuda.launch import launcher_for
from fractrain.numerics.backend import Backend, Kernels, Measured, Quantized, Range, ScaledBlocks, ScaledFormat, Uniform
from fractrain.numerics.blocks import Place, cut
from fractrain.numerics.grid import Grid
from fractrain.numerics.stochastic_rounding import NoiseKey


@dataclass(frozen=True)
class CudaBackend(Backend):
    """Kernels by Triton, probed on each device."""

    kernels: Kernels

    def quantize(
        self, x: torch.Tensor, grid: Grid, noise: NoiseKey | None, code_bits: int
    ) -> tuple[torch.Tensor, Quantized | None] | None:
        """Dense float32 on one grid per tensor or row."""
        launcher = launcher_for(x, grid)
        if launcher is None:
            return None
        values, codes = launcher.quantize(x, grid, noise, code_bits)
        return values, None if codes is None else Quantized(codes, grid, self.kernels)

    def restore(self, kept: Quantized) -> torch.Tensor | None:
        """The codes that :meth:`quantize` makes."""
        grid = kept.full_grid
        launcher = launcher_for(kept.codes, grid)
        return None if launcher is None else launcher.dequantize(kept.codes, grid)

    def row_limits(self, x: torch.Tensor) -> Range | None:
        """Dense float32."""
        launcher = launcher_for(x)
        return None if launcher is None else launcher.limits(x)

    def quantize_measured(
        self, x: torch.Tensor, form: Uniform, bits: int | torch.Tensor, noise: NoiseKey | None, code_bits: int,
        known: tuple[float, float] | None, only_codes: bool,
    ) -> Measured | None:  # fmt: skip
        """Dense float32 at one width, whose range is not known; nothing waits for the device."""
        launcher = launcher_for(x) if known is None and isinstance(bits, int) and x.dtype == torch.float32 else None
        if launcher is None:
            return None
        assert isinstance(bits, int)
        return launcher.quantize_measured(x, form, bits, noise, code_bits)

    def quantize_blocks(
        self, form: ScaledFormat, m: torch.Tensor, noise: NoiseKey | None, known: torch.Tensor | None, place: Place
    ) -> ScaledBlocks | None:
        """Float32 matrices, by scales of the plain path."""
        launcher = scaled_blocks.launcher_for(form, m, scaled_blocks.ROUNDED)
        if launcher is None:
            return None
        m = m.contiguous()
        scales, amax = form.scales_of(cut(m, form.block), None if known is None else (-known, known), place)
        values, codes = launcher.quantize(form, m, scales, noise, place.keep)
        return ScaledBlocks(values, codes, scales.tensor, amax)

    def restore_blocks(
        self, form: ScaledFormat, codes: torch.Tensor, back: torch.Tensor, shape: torch.Size, place: Place
    ) -> torch.Tensor | None:
        """The codes of any format with scales."""
        launcher = scaled_blocks.launcher_for(form, codes, scaled_blocks.RESTORED)
        return None if launcher is None else launcher.restore(form, codes, back, shape)


def backend(kernels: Kernels) -> Backend:
    """The backend, see :func:`fractrain.numerics.backend.backend_for`."""
    return CudaBackend(kernels)
