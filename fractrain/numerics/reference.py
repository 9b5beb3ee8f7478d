"""Slow float64 twins of the quantizers, written from the definitions, for tests and as a probe of the fast paths.

They loop over groups and elements in plain Python on float64 and share no arithmetic with the fast code. The noise is
an argument, so that stochastic rounding is compared element by element as well.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def round_half_even(v: float) -> float:
    """Nearest integer, ties to even."""
    return float(round(v))


def quantize_group(
    x: Array, bits: int, *, symmetric: bool, lo: float, hi: float, noise: Array | None = None
) -> tuple[Array, Array]:
    """Quantize one group of elements that share a grid.

    Args:
        x: any shape, float64.
        bits: width; 0 sets everything to zero.
        symmetric: symmetric around zero, or from ``lo`` to ``hi``.
        lo, hi: measured limits.
        noise: u in [0, 1) of the shape of ``x`` for stochastic rounding, None for nearest.

    Returns:
        (values, codes).
    """
    if bits == 0:
        return np.zeros_like(x), np.zeros_like(x)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        step, offset, bottom = max(max(abs(lo), abs(hi)) / top, 1e-8), 0.0, -top
    else:
        top = 2**bits - 1
        step, offset, bottom = max((hi - lo) / top, 1e-8), lo, 0
    codes = np.empty_like(x)
    for i, value in np.ndenumerate(x):
        v = (value - offset) / step
        q = round_half_even(v) if noise is None else math.floor(v) + (1.0 if noise[i] < v - math.floor(v) else 0.0)
        codes[i] = min(max(q, bottom), top)
    return codes * step + offset, codes


def conv2d(
    x: Array, w: Array, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Array:
    """Convolution by its definition: a loop over kernel positions and groups, float64, NCHW."""
    n, _, height, width = x.shape
    out, per_group, kh, kw = w.shape
    p = np.pad(x, ((0, 0), (0, 0), (padding[0], padding[0]), (padding[1], padding[1])))
    oh = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((n, out, oh, ow))
    each = out // groups
    for g in range(groups):
        xs = p[:, g * per_group : (g + 1) * per_group]
        ws = w[g * each : (g + 1) * each]
        for i in range(kh):
            for j in range(kw):
                a, b = i * dilation[0], j * dilation[1]
                patch = xs[:, :, a : a + stride[0] * oh : stride[0], b : b + stride[1] * ow : stride[1]]
                y[:, g * each : (g + 1) * each] += np.einsum("nchw,oc->nohw", patch, ws[:, :, i, j])
    return y
