"""The affine part of a convolution on integer codes, compiled by numba; see :mod:`fractrain.quant.integer`."""

from __future__ import annotations

import numpy as np
from numba import prange

from fractrain.quant.fused import builds


def _add_affine(codes, zero, slope, table, kernel, stride, padding, y):  # type: ignore[no-untyped-def]
    # codes [N, H, W, C] uint8, y [N, H', W', F] float32: y += (sum of codes - zero under the kernel) * slope + table
    height, width, channels = codes.shape[1], codes.shape[2], codes.shape[3]
    for n in prange(codes.shape[0]):
        sums = np.empty((height, width), np.int32)
        for i in range(height):
            for j in range(width):
                total = np.int32(0)
                for c in range(channels):
                    total += np.int32(codes[n, i, j, c])
                sums[i, j] = total - channels * zero
        for i in range(y.shape[1]):
            top = i * stride[0] - padding[0]
            above, below = max(top, 0), min(top + kernel[0], height)
            row = min(i, table.shape[0] - 1)  # a table of one row or column holds for all
            for j in range(y.shape[2]):
                left = j * stride[1] - padding[1]
                total = np.int32(0)
                for a in range(above, below):
                    for b in range(max(left, 0), min(left + kernel[1], width)):
                        total += sums[a, b]
                box = np.float32(total)
                column = min(j, table.shape[1] - 1)
                for f in range(y.shape[3]):
                    y[n, i, j, f] += box * slope[f] + table[row, column, f]


add_affine = builds(_add_affine)
