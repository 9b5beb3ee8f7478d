"""The affine part of a convolution on integer codes, compiled by numba; see :mod:`fractrain.kernels.cpu.int8`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from fractrain.kernels.cpu.quantize import _OPTIONS, builds

_EVEN: Any = np.uint64(0x00FF00FF00FF00FF)
_FOLD: Any = np.uint64(0x0001000100010001)
_BYTE: Any = np.uint64(8)
_TOP: Any = np.uint64(48)


@njit(**_OPTIONS)
def _channel_sums(words, zeros, padding, sums):  # type: ignore[no-untyped-def]
    # codes of one sample [H, W, C], eight to a word or one -> their sums over C less zeros, into the middle of sums
    for i in range(words.shape[0]):
        for j in range(words.shape[1]):
            total = -zeros
            for c in range(words.shape[2]):
                w = np.uint64(words[i, j, c])
                pairs = (w & _EVEN) + ((w >> _BYTE) & _EVEN)  # bytes in pairs; the product adds the four to its top
                total += np.int32((pairs * _FOLD) >> _TOP)
            sums[i + padding[0], j + padding[1]] = total


@njit(**_OPTIONS)
def _box_sums(sums, top, kernel, step, column, boxes):  # type: ignore[no-untyped-def]
    # sums under the kernel along one row of the output; kernel: height, width
    column[:] = sums[top]
    for a in range(1, kernel[0]):
        for j in range(column.shape[0]):
            column[j] += sums[top + a, j]
    for j in range(boxes.shape[0]):
        total = np.int32(0)
        for b in range(kernel[1]):
            total += column[j * step + b]
        boxes[j] = np.float32(total)


@njit(**_OPTIONS)
def _add_row(boxes, slope, table, y):  # type: ignore[no-untyped-def]
    # y [W', F] += boxes [W'] * slope [F] + table [W' or 1, F]
    for j in range(y.shape[0]):
        box, t = boxes[j], min(j, table.shape[0] - 1)
        for f in range(y.shape[1]):
            y[j, f] += box * slope[f] + table[t, f]


def _add_affine(words, zeros, slope, table, kernel, stride, padding, y):  # type: ignore[no-untyped-def]
    # codes [N, H, W, C], y [N, H', W', F] float32: y += (sum of codes - zero under the kernel) * slope + table
    height, width = words.shape[1] + 2 * padding[0], words.shape[2] + 2 * padding[1]
    for n in prange(words.shape[0]):
        sums = np.zeros((height, width), np.int32)
        column, boxes = np.empty(width, np.int32), np.empty(y.shape[2], np.float32)
        _channel_sums(words[n], zeros, padding, sums)
        for i in range(y.shape[1]):
            _box_sums(sums, i * stride[0], kernel, stride[1], column, boxes)
            _add_row(boxes, slope, table[min(i, table.shape[0] - 1)], y[n, i])


add_affine = builds(_add_affine)
