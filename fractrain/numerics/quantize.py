"""The plain path: move a tensor to a grid, and measure its range; in torch, on any device, for any granularity.

Where a backend (:mod:`fractrain.numerics.backend`) has kernels for a tensor they give the same bits.
"""

from __future__ import annotations

import torch

from fractrain.numerics.backend import SHIFT16, Kernels, Quantized, Range, backend_for
from fractrain.numerics.grid import Grid
from fractrain.numerics.stochastic_rounding import NoiseKey, element_numbers, uniform
from fractrain.numerics.tiles import PerTile, tile_blocks


def quantize(
    x: torch.Tensor, grid: Grid, noise: NoiseKey | None = None, code_bits: int = 0, kernels: Kernels = "auto"
) -> tuple[torch.Tensor, Quantized | None]:
    """Move ``x`` to the grid.

    Args:
        x: float tensor.
        grid: parameters broadcastable to ``x``, or per tile.
        noise: key for stochastic rounding; None rounds to nearest, ties to even.
        code_bits: widest width in use when the codes are wanted as well (uint8 up to 8, int16 up to 16), 0 for values
            only.
        kernels: ``auto``, ``reference`` or ``fused``.

    Returns:
        (values in the dtype of ``x``, codes or None).
    """
    done = backend_for(x.device, kernels).quantize(x.detach(), grid, noise, code_bits)
    if done is not None:
        return done
    if grid.tile is None:
        return quantize_reference(x, grid, noise, code_bits)
    values, codes = quantize_reference(x.detach(), grid.full(x.shape), noise, code_bits)
    return values, None if codes is None else Quantized(codes.codes, grid, kernels)  # do not keep the full grid


def quantize_reference(
    x: torch.Tensor, grid: Grid, noise: NoiseKey | None, code_bits: int
) -> tuple[torch.Tensor, Quantized | None]:
    """:func:`quantize` in plain torch; parameters broadcastable to ``x``."""
    v = (x - grid.offset) / grid.scale
    if noise is None:
        q = v.round()
    else:
        f = v.floor()
        q = f + (uniform(noise, element_numbers(x.shape, x.device)) < v - f).to(v.dtype)
    q = torch.minimum(torch.maximum(q, grid.qmin), grid.qmax)
    values = q * grid.scale + grid.offset
    if not code_bits:
        return values, None
    wide = code_bits > 8
    codes = (q - (grid.qmin + (SHIFT16 if wide else 0.0))).to(torch.int16 if wide else torch.uint8)
    return values, Quantized(codes, grid, "reference")


def row_limits(x: torch.Tensor, kernels: Kernels = "auto") -> Range:
    """Smallest and largest value per index of the first axis, float tensors ``[x.shape[0]]``; inf and nan show in them.

    Args:
        x: float tensor, not empty.
        kernels: ``auto``, ``reference`` or ``fused``.
    """
    done = backend_for(x.device, kernels).row_limits(x.detach())
    if done is not None:
        return done
    rows = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
    lo, hi = rows.reshape(x.shape[0], -1).aminmax(dim=1)
    return lo, hi


def tile_limits(x: torch.Tensor, tile: PerTile, kernels: Kernels = "auto") -> Range:
    """Smallest and largest value per tile, ``[row tiles, column tiles]`` each; inf and nan show in them."""
    done = backend_for(x.device, kernels).tile_limits(x.detach(), tile)
    if done is not None:
        return done
    return tile_blocks(x, tile, float("inf")).amin((1, 3)), tile_blocks(x, tile, float("-inf")).amax((1, 3))
