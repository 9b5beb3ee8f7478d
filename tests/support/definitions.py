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


def minifloat_values(exponent_bits: int, mantissa_bits: int, bias: int, largest: float) -> list[float]:
    """Non-negative values of a minifloat in the order of its codes, from its definition, up to the largest."""
    values = []
    for code in range(1 << (exponent_bits + mantissa_bits)):
        field, fraction = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        if field:
            value = math.ldexp(1.0 + fraction / (1 << mantissa_bits), field - bias)
        else:
            value = math.ldexp(fraction / (1 << mantissa_bits), 1 - bias)
        if value <= largest:
            values.append(value)
    return values


def round_to_values(x: float, values: list[float], u: float | None = None) -> float:
    """Round to one of ``+-values`` (ascending, from 0), saturating.

    To nearest, ties to the even code, where ``u`` is None; else away from minus infinity if ``u`` is below the fraction
    of the way to the value above.
    """
    magnitude = abs(x)
    if magnitude >= values[-1]:
        return math.copysign(values[-1], x)
    code = next(k for k in range(len(values)) if values[k] <= magnitude < values[k + 1])
    low, high = values[code], values[code + 1]
    if u is None:
        below, above = magnitude - low, high - magnitude
        code += below > above or (below == above and code % 2 == 1)
        return math.copysign(values[code], x)
    fraction = (magnitude - low) / (high - low)
    if x < 0 and fraction > 0:  # up is towards zero
        return -low if u < 1 - fraction else -high
    return math.copysign(high if u < fraction else low, x)


def e8m0_exponent(amax: float, values: list[float], mode: str, mantissa_bits: int) -> int:
    """Exponent of the shared scale of an MX block, from the definitions of its modes."""
    if amax == 0:
        return -127
    largest = math.frexp(values[-1])[1] - 1
    mantissa, exponent = math.frexp(amax)  # amax = (2 mantissa) 2^(exponent - 1)
    if mode == "floor":
        shared = exponent - 1 - largest
    elif mode == "ceil":
        shared = exponent - (1 if mantissa == 0.5 else 0) - largest
    elif mode == "even":
        carried = 2.0 * mantissa + 2.0 ** -(mantissa_bits + 1) >= 2.0
        shared = exponent - 1 + int(carried) - largest
    else:
        shared = next(k for k in range(-400, 400) if values[-1] * math.ldexp(1.0, k) >= amax)
    return min(max(shared, -127), 127)
