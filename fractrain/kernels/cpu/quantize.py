"""Fused CPU quantizers, compiled by numba: one read and one write per tensor, rounding noise kept in registers.

Bit-equal to the plain torch path in :mod:`fractrain.numerics.quantize` (same operations in the same order on float32,
no
contraction). Numba brings its own compiler, so installing needs none; the machine code is cached on disk.

Layout: a tensor is passed as ``[rows, columns]`` with one grid per row; element numbers count along memory.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit, prange, uint32

_OPTIONS: Any = {"error_model": "numpy", "cache": True}


def builds(kernel: Callable[..., None]) -> tuple[Any, Any]:
    """Compile a kernel twice: (serial, on several threads).

    ``prange`` is ``range`` in the serial build: small tensors and single-threaded processes pay no thread start. The
    second build has a name of its own, because numba's cache on disk tells functions apart by their name and line, but
    not by ``parallel``: whichever was compiled first would be loaded for both.
    """
    assert isinstance(kernel, FunctionType)
    name = kernel.__name__ + "_parallel"
    code = kernel.__code__.replace(co_name=name, co_qualname=name)
    twin = FunctionType(code, kernel.__globals__, name)
    twin.__module__, twin.__qualname__ = kernel.__module__, name
    return njit(**_OPTIONS)(kernel), njit(parallel=True, **_OPTIONS)(twin)


@njit(inline="always", **_OPTIONS)
def _uniform(number, k0, k1):  # type: ignore[no-untyped-def]
    # numba widens unsigned arithmetic to 64 bits: every product is cut back, which also keeps the vector lanes narrow
    h = uint32(uint32(uint32(number) * uint32(0x1E3779B1)) ^ k0)
    h = uint32(h ^ uint32(h >> uint32(16)))
    h = uint32(h * uint32(0x21F0AAAD))
    h = uint32(uint32(h ^ uint32(h >> uint32(15))) ^ k1)
    h = uint32(h * uint32(0x735A2D97))
    h = uint32(h ^ uint32(h >> uint32(15)))
    return np.float32(np.int32(h >> uint32(8))) * np.float32(2.0**-24)


@njit(inline="always", **_OPTIONS)
def _nearest(x, scale, offset, qmin, qmax):  # type: ignore[no-untyped-def]
    return min(max(np.rint((x - offset) / scale), qmin), qmax)


@njit(inline="always", **_OPTIONS)
def _stochastic(x, scale, offset, qmin, qmax, number, k0, k1):  # type: ignore[no-untyped-def]
    v = (x - offset) / scale
    f = np.floor(v)
    up = np.float32(1.0) if _uniform(number, k0, k1) < v - f else np.float32(0.0)
    return min(max(f + up, qmin), qmax)


def _nearest_values(x, scale, offset, qmin, qmax, values):  # type: ignore[no-untyped-def]
    for r in prange(x.shape[0]):
        s, o, a, b = scale[r], offset[r], qmin[r], qmax[r]
        for c in range(x.shape[1]):
            values[r, c] = _nearest(x[r, c], s, o, a, b) * s + o


def _nearest_codes(x, scale, offset, qmin, qmax, values, codes, shift):  # type: ignore[no-untyped-def]
    for r in prange(x.shape[0]):
        s, o, a, b = scale[r], offset[r], qmin[r], qmax[r]
        d = a + shift
        for c in range(x.shape[1]):
            q = _nearest(x[r, c], s, o, a, b)
            values[r, c] = q * s + o
            codes[r, c] = np.int32(q - d)


def _stochastic_values(x, scale, offset, qmin, qmax, values, k0, k1, base):  # type: ignore[no-untyped-def]
    columns = x.shape[1]
    for r in prange(x.shape[0]):
        s, o, a, b = scale[r], offset[r], qmin[r], qmax[r]
        first = uint32(base + r * columns)
        for c in range(columns):
            values[r, c] = _stochastic(x[r, c], s, o, a, b, first + uint32(c), k0, k1) * s + o


def _stochastic_codes(x, scale, offset, qmin, qmax, values, codes, shift, k0, k1, base):  # type: ignore[no-untyped-def]
    columns = x.shape[1]
    for r in prange(x.shape[0]):
        s, o, a, b = scale[r], offset[r], qmin[r], qmax[r]
        d = a + shift
        first = uint32(base + r * columns)
        for c in range(columns):
            q = _stochastic(x[r, c], s, o, a, b, first + uint32(c), k0, k1)
            values[r, c] = q * s + o
            codes[r, c] = np.int32(q - d)


def _nearest_only(x, scale, offset, qmin, qmax, codes, shift):  # type: ignore[no-untyped-def]
    for r in prange(x.shape[0]):
        s, o, a, b = scale[r], offset[r], qmin[r], qmax[r]
        d = a + shift
        for c in range(x.shape[1]):
            codes[r, c] = np.int32(_nearest(x[r, c], s, o, a, b) - d)


def _stochastic_only(x, scale, offset, qmin, qmax, codes, shift, k0, k1, base):  # type: ignore[no-untyped-def]
    columns = x.shape[1]
    for r in prange(x.shape[0]):
        s, o, a, b = scale[r], offset[r], qmin[r], qmax[r]
        d = a + shift
        first = uint32(base + r * columns)
        for c in range(columns):
            codes[r, c] = np.int32(_stochastic(x[r, c], s, o, a, b, first + uint32(c), k0, k1) - d)


def _dequantize(codes, scale, offset, qmin, values, shift):  # type: ignore[no-untyped-def]
    for r in prange(codes.shape[0]):
        s, o, d = scale[r], offset[r], qmin[r] + shift
        for c in range(codes.shape[1]):
            values[r, c] = (np.float32(codes[r, c]) + d) * s + o


def _extremes(bits, low, high):  # type: ignore[no-untyped-def]
    # Floats compare like integers once the magnitude bits of negative ones are flipped. Integer minima vectorize, and
    # every NaN ends up beyond infinity, so inf and NaN show in the result without a test per element.
    for r in prange(bits.shape[0]):
        lo, hi = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
        for c in range(bits.shape[1]):
            v = bits[r, c]
            k = np.int32(v ^ np.int32(np.int32(v >> np.int32(31)) & np.int32(0x7FFFFFFF)))
            lo, hi = min(lo, k), max(hi, k)
        low[r] = np.int32(lo ^ np.int32(np.int32(lo >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        high[r] = np.int32(hi ^ np.int32(np.int32(hi >> np.int32(31)) & np.int32(0x7FFFFFFF)))


CHUNK = 4096  # elements whose signs wait, a byte each, to be packed
_PACK = np.uint64(0x0102040810204080)  # times eight bytes of 0 or 1: their bits in the top byte, the first lowest
_SPREAD = np.uint64(0x0101010101010101)
_BITS = np.uint64(0x8040201008040201)


def _relu(x, y, signs):  # type: ignore[no-untyped-def]
    # signs: a bit per element, set where the gradient passes. Slices, because numba takes an index that is a sum for
    # one that may count from the end, and makes no vectors of it.
    for r in prange(x.shape[0]):
        wait = np.empty(CHUNK, np.uint8)
        eights = wait.view(np.uint64)
        for first in range(0, x.shape[1], CHUNK):
            a, out = x[r, first : first + CHUNK], y[r, first : first + CHUNK]
            for c in range(a.shape[0]):
                v = a[c]
                wait[c] = not v <= np.float32(0.0)  # nan, too, as in torch
                out[c] = np.float32(0.0) if v < np.float32(0.0) else v  # nan and -0 pass
            bits = signs[r, first // 8 : (first + CHUNK) // 8]
            for c in range(bits.shape[0]):
                bits[c] = (eights[c] * _PACK) >> np.uint64(56)


def _sum_relu(x, z, y, signs):  # type: ignore[no-untyped-def]
    for r in prange(x.shape[0]):
        wait = np.empty(CHUNK, np.uint8)
        eights = wait.view(np.uint64)
        for first in range(0, x.shape[1], CHUNK):
            a, b, out = x[r, first : first + CHUNK], z[r, first : first + CHUNK], y[r, first : first + CHUNK]
            for c in range(a.shape[0]):
                v = a[c] + b[c]
                wait[c] = not v <= np.float32(0.0)
                out[c] = np.float32(0.0) if v < np.float32(0.0) else v
            bits = signs[r, first // 8 : (first + CHUNK) // 8]
            for c in range(bits.shape[0]):
                bits[c] = (eights[c] * _PACK) >> np.uint64(56)


@njit(**_OPTIONS)
def _where_row(signs, g, out):  # type: ignore[no-untyped-def]
    wait = np.empty(CHUNK, np.uint8)
    eights = wait.view(np.uint64)
    for first in range(0, g.shape[0], CHUNK):
        bits = signs[first // 8 : (first + CHUNK) // 8]
        for c in range(bits.shape[0]):
            eights[c] = (np.uint64(bits[c]) * _SPREAD) & _BITS
        e, da = g[first : first + CHUNK], out[first : first + CHUNK]
        for c in range(e.shape[0]):
            da[c] = np.float32(0.0) if wait[c] == 0 else e[c]


def _where(signs, g, live, out):  # type: ignore[no-untyped-def]
    for r in prange(g.shape[0]):
        if live[r] == 0:
            out[r, :] = np.float32(0.0)
        else:
            _where_row(signs[r], g[r], out[r])


def _take_rows(choice, which, x, out):  # type: ignore[no-untyped-def]
    for r in prange(x.shape[0]):
        if choice[r] == which:
            for c in range(x.shape[1]):
                out[r, c] = x[r, c]


def _only_rows(live, x, out):  # type: ignore[no-untyped-def]
    for r in prange(x.shape[0]):
        if live[r] != 0:
            for c in range(x.shape[1]):
                out[r, c] = x[r, c]
        else:
            for c in range(x.shape[1]):
                out[r, c] = np.float32(0.0)


@njit(fastmath={"reassoc", "contract"}, **_OPTIONS)
def _dot(x, z):  # type: ignore[no-untyped-def]
    # the order of a sum is the compiler's, so that it can be one of vectors
    total = np.float32(0.0)
    for c in range(x.shape[0]):
        total += x[c] * z[c]
    return total


def _dot_rows(x, z, out):  # type: ignore[no-untyped-def]
    # out [rows] = inner products of rows: float32 sums of a chunk, float64 above
    for r in prange(x.shape[0]):
        total = 0.0
        for first in range(0, x.shape[1], CHUNK):
            total += np.float64(_dot(x[r, first : first + CHUNK], z[r, first : first + CHUNK]))
        out[r] = total


@njit(**_OPTIONS)
def fill_grid(low, high, per_row, symmetric, top, smallest, scale, offset, qmin, qmax):  # type: ignore[no-untyped-def]
    """Derive grids from limits per row (one for all rows unless ``per_row``); return (lowest, highest, all finite)."""
    lo, hi, finite = low[0], high[0], True
    for r in range(low.shape[0]):
        finite = finite and np.isfinite(low[r]) and np.isfinite(high[r])
        lo, hi = min(lo, low[r]), max(hi, high[r])
    for r in range(low.shape[0]):
        a, b = (low[r], high[r]) if per_row else (lo, hi)
        span = max(abs(a), abs(b)) if symmetric else b - a
        scale[r] = max(span / top, smallest)
        offset[r] = np.float32(0.0) if symmetric else a
        qmin[r] = -top if symmetric else np.float32(0.0)
        qmax[r] = top
    return lo, hi, finite


@njit(**_OPTIONS)
def centre(scale, offset, qmin, qmax):  # type: ignore[no-untyped-def]
    """What to take from codes of at most 8 bits so that int8 holds them, as near to the code of zero as it allows.

    Of a grid per row. Returned are that, int32, and the value of the new code 0, float64; ``[rows]``.
    """
    shift, rest = np.empty(scale.shape[0], np.int32), np.empty(scale.shape[0])
    for r in range(scale.shape[0]):
        s = np.float64(scale[r])
        zero = offset[r] + s * qmin[r]
        nearest = min(max(np.rint(-zero / s), np.float64(qmax[r] - qmin[r]) - 127.0), 128.0)
        shift[r], rest[r] = np.int32(nearest), zero + nearest * s
    return shift, rest


nearest_values, nearest_codes = builds(_nearest_values), builds(_nearest_codes)
stochastic_values, stochastic_codes = builds(_stochastic_values), builds(_stochastic_codes)
nearest_only, stochastic_only = builds(_nearest_only), builds(_stochastic_only)
take_rows, only_rows, dot_rows = builds(_take_rows), builds(_only_rows), builds(_dot_rows)
extremes, dequantize = builds(_extremes), builds(_dequantize)
relu, sum_relu = builds(_relu), builds(_sum_relu)
where = builds(_where)
