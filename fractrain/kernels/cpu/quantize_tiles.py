"""Fused CPU quantizers with one grid per tile of a matrix, compiled by numba; see
:mod:`fractrain.kernels.cpu.quantize`.

Bit-equal to the plain torch path. The parameters of a row of tiles are spread over the columns once per row of tiles,
so that the inner loop runs along memory and vectorizes whatever the size of the tiles.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange, uint32

from fractrain.kernels.cpu.quantize import _OPTIONS, _nearest, _stochastic, builds


@njit(inline="always", **_OPTIONS)
def _spread(params, row, cols, step):  # type: ignore[no-untyped-def]
    out = np.empty(cols, np.float32)
    for t in range(params.shape[1]):
        for c in range(t * step, min(cols, (t + 1) * step)):
            out[c] = params[row, t]
    return out


def _nearest_tiles(x, rows, cols, scale, offset, qmin, qmax, values, codes, shift):  # type: ignore[no-untyped-def]
    columns = x.shape[1]
    for t in prange(scale.shape[0]):
        s, o = _spread(scale, t, columns, cols), _spread(offset, t, columns, cols)
        a, b = _spread(qmin, t, columns, cols), _spread(qmax, t, columns, cols)
        for r in range(t * rows, min(x.shape[0], (t + 1) * rows)):
            for c in range(columns):
                q = _nearest(x[r, c], s[c], o[c], a[c], b[c])
                values[r, c] = q * s[c] + o[c]
                codes[r, c] = np.int32(q - (a[c] + shift))


def _nearest_tile_values(x, rows, cols, scale, offset, qmin, qmax, values):  # type: ignore[no-untyped-def]
    columns = x.shape[1]
    for t in prange(scale.shape[0]):
        s, o = _spread(scale, t, columns, cols), _spread(offset, t, columns, cols)
        a, b = _spread(qmin, t, columns, cols), _spread(qmax, t, columns, cols)
        for r in range(t * rows, min(x.shape[0], (t + 1) * rows)):
            for c in range(columns):
                values[r, c] = _nearest(x[r, c], s[c], o[c], a[c], b[c]) * s[c] + o[c]


def _stochastic_tiles(  # type: ignore[no-untyped-def]
    x, rows, cols, scale, offset, qmin, qmax, values, codes, shift, k0, k1, base
):
    columns = x.shape[1]
    for t in prange(scale.shape[0]):
        s, o = _spread(scale, t, columns, cols), _spread(offset, t, columns, cols)
        a, b = _spread(qmin, t, columns, cols), _spread(qmax, t, columns, cols)
        for r in range(t * rows, min(x.shape[0], (t + 1) * rows)):
            first = uint32(base + r * columns)
            for c in range(columns):
                q = _stochastic(x[r, c], s[c], o[c], a[c], b[c], first + uint32(c), k0, k1)
                values[r, c] = q * s[c] + o[c]
                codes[r, c] = np.int32(q - (a[c] + shift))


def _stochastic_tile_values(  # type: ignore[no-untyped-def]
    x, rows, cols, scale, offset, qmin, qmax, values, k0, k1, base
):
    columns = x.shape[1]
    for t in prange(scale.shape[0]):
        s, o = _spread(scale, t, columns, cols), _spread(offset, t, columns, cols)
        a, b = _spread(qmin, t, columns, cols), _spread(qmax, t, columns, cols)
        for r in range(t * rows, min(x.shape[0], (t + 1) * rows)):
            first = uint32(base + r * columns)
            for c in range(columns):
                values[r, c] = _stochastic(x[r, c], s[c], o[c], a[c], b[c], first + uint32(c), k0, k1) * s[c] + o[c]


def _dequantize_tiles(codes, rows, cols, scale, offset, qmin, values, shift):  # type: ignore[no-untyped-def]
    columns = codes.shape[1]
    for t in prange(scale.shape[0]):
        s, o = _spread(scale, t, columns, cols), _spread(offset, t, columns, cols)
        a = _spread(qmin, t, columns, cols)
        for r in range(t * rows, min(codes.shape[0], (t + 1) * rows)):
            for c in range(columns):
                values[r, c] = (np.float32(codes[r, c]) + (a[c] + shift)) * s[c] + o[c]


def _tile_extremes(bits, rows, cols, low, high):  # type: ignore[no-untyped-def]
    # On the bits of the floats, as in fused._extremes; first down the columns (along memory), then across each tile.
    columns = bits.shape[1]
    for t in prange(low.shape[0]):
        lo, hi = np.full(columns, np.int32(0x7FFFFFFF)), np.full(columns, np.int32(-0x80000000))
        for r in range(t * rows, min(bits.shape[0], (t + 1) * rows)):
            for c in range(columns):
                v = bits[r, c]
                k = np.int32(v ^ np.int32(np.int32(v >> np.int32(31)) & np.int32(0x7FFFFFFF)))
                lo[c], hi[c] = min(lo[c], k), max(hi[c], k)
        for j in range(low.shape[1]):
            a, b = lo[j * cols], hi[j * cols]
            for c in range(j * cols, min(columns, (j + 1) * cols)):
                a, b = min(a, lo[c]), max(b, hi[c])
            low[t, j] = np.int32(a ^ np.int32(np.int32(a >> np.int32(31)) & np.int32(0x7FFFFFFF)))
            high[t, j] = np.int32(b ^ np.int32(np.int32(b >> np.int32(31)) & np.int32(0x7FFFFFFF)))


nearest_codes, nearest_values = builds(_nearest_tiles), builds(_nearest_tile_values)
stochastic_codes, stochastic_values = builds(_stochastic_tiles), builds(_stochastic_tile_values)
extremes, dequantize = builds(_tile_extremes), builds(_dequantize_tiles)
