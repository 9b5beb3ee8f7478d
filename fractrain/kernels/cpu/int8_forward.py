"""FW on integer codes by own kernels (AVX512 VNNI): as :mod:`fractrain.kernels.cpu.int8`, faster than oneDNN's
operator.

They need no packing of weights beyond a copy, pad with the code of zero, and add the affine part while they store.
"""

from __future__ import annotations

import numpy as np
import torch

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.cpu_features import byte_products, parts_of
from fractrain.kernels.cpu.tensors import nhwc
from fractrain.kernels.geometry import Geometry


def possible(g: Geometry) -> bool:
    """Whether the kernels are written for a geometry and run here; not yet whether they are exact."""
    fits = g.image[0] % 8 == 0 and g.filters % 16 == 0 and g.output[1] >= 4
    return fits and byte_products()


def convolve(
    a: torch.Tensor, zero: int, codes: torch.Tensor, shift: np.ndarray, scales: np.ndarray, slope: np.ndarray,
    table: np.ndarray, g: Geometry, which: np.ndarray | None = None, y: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """``scales * sum (a - zero) (codes - shift) + slope * sum (a - zero) + table``, float32 ``[N, F, H', W']``.

    Args:
        a: uint8 ``[N, C, H, W]`` in channels-last memory; around it, ``zero``.
        zero: code of zero, 0..255.
        codes: uint8 ``[F, C, kh, kw]``.
        shift: int32, per filter; ``codes - shift`` must be in -128..127.
        scales, slope: float32 per filter.
        table: float32 ``[H', W', F]`` or ``[1, 1, F]``.
        g: geometry.
        which: samples to do, int64; None: all.
        y: where to put them; None: a new tensor.

    Returns:
        A tensor in channels-last memory; sums are exact in int32.
    """
    from fractrain.kernels.cpu import int8_forward_loops as fused_forward

    channels, height, width = g.image
    which = np.arange(a.shape[0]) if which is None else which
    parts = min(parts_of(a), len(which))
    lines, columns = height + 2 * g.padding[0], width + 2 * g.padding[1]
    # by torch, whose memory is so aligned that vectors do not straddle cache lines
    shape = (g.filters // 16, g.kernel[0] + 1, g.kernel[1] * channels // 4, 16, 4)
    weights = torch.empty(shape, dtype=torch.int8).numpy()
    rows = nhwc(codes).reshape(g.filters, g.kernel[0], -1)
    fused_forward.pack_filters(rows, shift, np.int32(zero), weights.view(np.int32)[..., 0])
    y = blocks.empty((a.shape[0], g.filters, *g.output), channels_last=True) if y is None else y
    fused_forward.forward[parts > 1](
        nhwc(a).view(np.uint64), which, zero, weights, scales, slope, table,
        g.kernel, g.stride, g.padding,
        np.empty((parts, lines, columns * channels // 8), np.uint64), np.empty((parts, lines, columns), np.int32),
        np.empty((parts, columns), np.int32), np.empty((parts, g.output[1]), np.float32),
        y.numpy().transpose(0, 2, 3, 1),
    )  # fmt: skip
    return y
