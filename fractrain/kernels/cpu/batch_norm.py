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


@njit(**_OPTIONS)
def _moments_of(x, first, last, mean, squares):  # type: ignore[no-untyped-def]
    # Of some rows: mean and sum of squared distances from it, in two looks at a few rows at a time, which are merged as
    # by Chan, Golub and LeVeque (Updating formulae for sample variances, 1979).
    columns = mean.shape[0]
    s, q = np.empty(columns, np.float32), np.empty(columns, np.float32)
    mean[:] = 0.0
    squares[:] = 0.0
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
            d = np.float64(s[i]) - mean[i]
            mean[i] += d * share
            squares[i] += np.float64(q[i]) + d * d * cross
        n += k


@njit(**_OPTIONS)
def _prepare(means, squares, counts, weight, bias, eps, running, own, along):  # type: ignore[no-untyped-def]
    # Put parts and repetitions together; see _normalise. Returns values per channel, and whether all is finite.
    mean, deviation = own[0], own[1]
    scale, shift, centre = along[0], along[1], along[2]
    variance = np.empty(mean.shape[0])
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
        running[0, c], running[1, c] = np.float32(mean[c]), np.float32(variance[c] * (total / (total - 1)))
        for k in range(c, columns, channels):
            scale[k], shift[k], centre[k] = a, b, np.float32(mean[c])
    return total, finite


@njit(**_OPTIONS)
def _apply_to(x, first, last, along, floor, y):  # type: ignore[no-untyped-def]
    # some rows of the output, and their extremes
    columns = x.shape[1]
    scale, shift = along[0], along[1]
    lo, hi = np.full(columns, np.float32(np.inf)), np.full(columns, np.float32(-np.inf))
    for r in range(first, last):
        for i in range(columns):
            v = x[r, i] * scale[i] + shift[i]
            v = floor if v < floor else v  # nan passes
            y[r, i] = v
            lo[i] = v if v < lo[i] else lo[i]
            hi[i] = v if v > hi[i] else hi[i]
    return lo.min(), hi.max()


def _normalise(x, parts, weight, bias, eps, floor, running, own, along, y):  # type: ignore[no-untyped-def]
    # Forward. Written are: running [2, channels] float32, mean and unbiased variance; own [2, channels] float64, mean
    # and 1 / sqrt(variance + eps); along [3, columns] float32, what to multiply by, to add and to take off; and y.
    # Returned are: values per channel, whether what is along a line is finite, and the extremes of y.
    rows, columns = x.shape
    means, squares, counts = np.empty((parts, columns)), np.empty((parts, columns)), np.empty(parts, np.int64)
    low, high = np.empty(parts, np.float32), np.empty(parts, np.float32)
    for p in prange(parts):
        first, last = p * rows // parts, (p + 1) * rows // parts
        _moments_of(x, first, last, means[p], squares[p])
        counts[p] = last - first
    total, finite = _prepare(means, squares, counts, weight, bias, eps, running, own, along)
    for p in prange(parts):
        low[p], high[p] = _apply_to(x, p * rows // parts, (p + 1) * rows // parts, along, floor, y)
    return total, finite, low.min(), high.max()


@njit(**_OPTIONS)
def _sums_of(x, g, first, last, live, along, floor, sums, products):  # type: ignore[no-untyped-def]
    # Of some rows: sum of the error, and of the error times distances from the mean. Samples not live add zeros.
    columns, lines = x.shape[1], x.shape[0] // live.shape[0]
    scale, shift, centre = along[0], along[1], along[2]
    s, t = np.empty(columns, np.float32), np.empty(columns, np.float32)
    sums[:] = 0.0
    products[:] = 0.0
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
            sums[i] += np.float64(s[i])
            products[i] += np.float64(t[i])


@njit(**_OPTIONS)
def _terms(sums, products, count, own, along, slope, rest, affine):  # type: ignore[no-untyped-def]
    # From sums of the error, and of it times distances, to gradients of weight and bias, affine [2, channels] float32,
    # and the terms of the input's gradient along a line. Returns whether these are finite.
    mean, deviation = own[0], own[1]
    scale, centre = along[0], along[2]
    dw, db = affine[0], affine[1]
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


@njit(**_OPTIONS)
def _input_error_of(x, g, first, last, live, along, floor, slope, rest, dx):  # type: ignore[no-untyped-def]
    # scale * error + (x - mean) * slope + rest, of some rows; and their extremes
    columns, lines = x.shape[1], x.shape[0] // live.shape[0]
    scale, shift, centre = along[0], along[1], along[2]
    lo, hi = np.full(columns, np.float32(np.inf)), np.full(columns, np.float32(-np.inf))
    for r in range(first, last):
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
    return lo.min(), hi.max()


def _gradients(x, g, parts, live, floor, count, own, along, affine, dx):  # type: ignore[no-untyped-def]
    # Backward, of what _normalise has made: affine [2, channels] float32, gradients of weight and bias, and dx, where
    # it has rows. Returned are: whether the terms of dx are finite, and its extremes.
    rows, columns = x.shape
    sums, products = np.empty((parts, columns)), np.empty((parts, columns))
    slope, rest = np.empty(columns, np.float32), np.empty(columns, np.float32)
    low, high = np.zeros(parts, np.float32), np.zeros(parts, np.float32)
    for p in prange(parts):
        first, last = p * rows // parts, (p + 1) * rows // parts
        _sums_of(x, g, first, last, live, along, floor, sums[p], products[p])
    finite = _terms(sums, products, count, own, along, slope, rest, affine)
    if dx.shape[0]:
        for p in prange(parts):
            first, last = p * rows // parts, (p + 1) * rows // parts
            low[p], high[p] = _input_error_of(x, g, first, last, live, along, floor, slope, rest, dx)
    return finite, low.min(), high.max()


normalise, gradients = builds(_normalise), builds(_gradients)
