"""Batch normalisation (and the ReLU behind it) of channels-last images, compiled by numba.

A tensor is passed as ``[rows, columns]``: as many pixels side by side as make a line worth a vector loop; column ``i``
belongs to channel ``i % channels``. What there is one of per channel (scale, shift, ...) is repeated along the
line. The rows are cut into parts of a number that the tensor's size decides and not the number of threads, and sums are
put together in the order of the parts: results do not depend on how many threads there are.

Sums of a few rows are taken in float32, everything above in float64.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from fractrain.kernels.cpu.quantize import _OPTIONS, builds

TOGETHER = 32  # rows whose sums are taken in float32; they stay in the first-level cache for the second look


def _moments(x, mean, squares, counts):  # type: ignore[no-untyped-def]
    # Per part: mean and sum of squared distances from it, in two looks at a few rows at a time, which are merged as by
    # Chan, Golub and LeVeque (Updating formulae for sample variances, 1979).
    parts, columns = mean.shape
    rows = x.shape[0]
    for p in prange(parts):
        first, last = p * rows // parts, (p + 1) * rows // parts
        s, q = np.empty(columns, np.float32), np.empty(columns, np.float32)
        for i in range(columns):
            mean[p, i] = 0.0
            squares[p, i] = 0.0
        n = 0
        for start in range(first, last, TOGETHER):
            end = min(start + TOGETHER, last)
            k = end - start
            for i in range(columns):
                s[i] = x[start, i]
                q[i] = np.float32(0.0)
            for r in range(start + 1, end):
                for i in range(columns):
                    s[i] += x[r, i]
            one = np.float32(1.0) / np.float32(k)
            for i in range(columns):
                s[i] *= one
            for r in range(start, end):
                for i in range(columns):
                    d = x[r, i] - s[i]
                    q[i] += d * d
            share = k / (n + k)
            cross = n * share
            for i in range(columns):
                # s is the rounded mean: what it is beside the true one adds k d^2, of the order of float32's rounding
                d = np.float64(s[i]) - mean[p, i]
                mean[p, i] += d * share
                squares[p, i] += np.float64(q[i]) + d * d * cross
            n += k
        counts[p] = n


@njit(**_OPTIONS)
def prepare(  # type: ignore[no-untyped-def]
    means, squares, counts, weight, bias, eps, mean, variance, deviation, scale, shift, centre
):
    """Put parts and repetitions together: mean, biased variance and 1 / sqrt(variance + eps) per channel, float64; what
    the kernels multiply by, add and take off along a line, float32.

    Returns:
        Values per channel, and whether all is finite.
    """
    parts, columns = means.shape
    channels = mean.shape[0]
    total = 0
    for p in range(parts):
        total += counts[p]
    total *= columns // channels
    mean[:] = 0.0
    variance[:] = 0.0
    for p in range(parts):
        for first in range(0, columns, channels):
            for c in range(channels):
                mean[c] += means[p, first + c] * counts[p]
    for c in range(channels):
        mean[c] /= total
    for p in range(parts):
        for first in range(0, columns, channels):
            for c in range(channels):
                d = means[p, first + c] - mean[c]
                variance[c] += squares[p, first + c] + d * d * counts[p]
    finite = True
    for c in range(channels):
        variance[c] /= total
        deviation[c] = 1.0 / np.sqrt(variance[c] + eps)
        a = np.float32(weight[c] * deviation[c])
        b = np.float32(bias[c] - mean[c] * a)
        finite = finite and np.isfinite(a) and np.isfinite(b)
        for k in range(c, columns, channels):
            scale[k], shift[k], centre[k] = a, b, np.float32(mean[c])
    return total, finite


def _apply(x, scale, shift, floor, y, low, high):  # type: ignore[no-untyped-def]
    parts = low.shape[0]
    rows, columns = x.shape
    for p in prange(parts):
        lo, hi = np.full(columns, np.float32(np.inf)), np.full(columns, np.float32(-np.inf))
        for r in range(p * rows // parts, (p + 1) * rows // parts):
            for i in range(columns):
                v = x[r, i] * scale[i] + shift[i]
                v = floor if v < floor else v  # nan passes
                y[r, i] = v
                lo[i] = v if v < lo[i] else lo[i]
                hi[i] = v if v > hi[i] else hi[i]
        low[p], high[p] = lo.min(), hi.max()


def _reduce(x, g, live, scale, shift, floor, centre, sums, products):  # type: ignore[no-untyped-def]
    # Per part: sum of the error, and of the error times distances from the mean. Samples that are not live add zeros.
    parts, columns = sums.shape
    rows = x.shape[0]
    lines = rows // live.shape[0]
    for p in prange(parts):
        first, last = p * rows // parts, (p + 1) * rows // parts
        s, t = np.empty(columns, np.float32), np.empty(columns, np.float32)
        for i in range(columns):
            sums[p, i] = 0.0
            products[p, i] = 0.0
        for start in range(first, last, TOGETHER):
            for i in range(columns):
                s[i] = np.float32(0.0)
                t[i] = np.float32(0.0)
            for r in range(start, min(start + TOGETHER, last)):
                if live[r // lines] == 0:
                    continue
                for i in range(columns):
                    v = x[r, i] * scale[i] + shift[i]
                    e = np.float32(0.0) if v <= floor else g[r, i]
                    s[i] += e
                    t[i] += e * (x[r, i] - centre[i])
            for i in range(columns):
                sums[p, i] += np.float64(s[i])
                products[p, i] += np.float64(t[i])


@njit(**_OPTIONS)
def terms(sums, products, count, mean, deviation, scale, centre, slope, rest, dw, db):  # type: ignore[no-untyped-def]
    """From sums of the error, and of it times distances, to gradients of weight and bias, float32 per channel, and the
    terms of the input's gradient along a line; return whether all is finite.
    """
    parts, columns = sums.shape
    channels = mean.shape[0]
    total, away = np.zeros(channels), np.zeros(channels)
    for p in range(parts):
        for first in range(0, columns, channels):
            for c in range(channels):
                total[c] += sums[p, first + c]
                away[c] += products[p, first + c]
    finite = True
    for c in range(channels):
        off = mean[c] - centre[c]
        away[c] -= off * total[c]  # distances from the mean itself, not from its float32
        dw[c], db[c] = np.float32(away[c] * deviation[c]), np.float32(total[c])
        s = -np.float64(scale[c]) * deviation[c] * deviation[c] * away[c] / count
        a, b = np.float32(s), np.float32(-scale[c] * total[c] / count - off * s)
        finite = finite and np.isfinite(a) and np.isfinite(b)
        for k in range(c, columns, channels):
            slope[k], rest[k] = a, b
    return finite


def _input_error(x, g, live, scale, shift, floor, centre, slope, rest, dx, low, high):  # type: ignore[no-untyped-def]
    # scale * error + (x - mean) * slope + rest
    parts = low.shape[0]
    rows, columns = x.shape
    lines = rows // live.shape[0]
    for p in prange(parts):
        lo, hi = np.full(columns, np.float32(np.inf)), np.full(columns, np.float32(-np.inf))
        for r in range(p * rows // parts, (p + 1) * rows // parts):
            if live[r // lines] == 0:  # as below, with an error of zero
                for i in range(columns):
                    d = (x[r, i] - centre[i]) * slope[i] + rest[i]
                    dx[r, i] = d
                    lo[i] = d if d < lo[i] else lo[i]
                    hi[i] = d if d > hi[i] else hi[i]
                continue
            for i in range(columns):
                v = x[r, i] * scale[i] + shift[i]
                e = np.float32(0.0) if v <= floor else g[r, i]
                d = scale[i] * e + (x[r, i] - centre[i]) * slope[i] + rest[i]
                dx[r, i] = d
                lo[i] = d if d < lo[i] else lo[i]
                hi[i] = d if d > hi[i] else hi[i]
        low[p], high[p] = lo.min(), hi.max()


moments, apply, reduce, input_error = builds(_moments), builds(_apply), builds(_reduce), builds(_input_error)
