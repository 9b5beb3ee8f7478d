"""FW of a convolution on integer codes by VNNI instructions, sample by sample; see
:mod:`fractrain.kernels.cpu.int8`.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from fractrain.kernels.cpu.int8_affine_loops import _box_sums, _channel_sums
from fractrain.kernels.cpu.quantize import _OPTIONS, builds
from fractrain.kernels.cpu.vnni import output_sums

_outputs_8, _outputs_4 = output_sums(8), output_sums(4)


@njit(**_OPTIONS)
def _row_of(lines, weights, scales, slope, boxes, table, kernel, stride, first, out):  # type: ignore[no-untyped-def]
    # out [W', F]: one row of the output, whose kernel begins at byte ``first`` of the padded image
    width, filters = out.shape
    words = weights.shape[2]
    row, own = 8 * lines.shape[1], 4 * filters
    step, base = stride * (4 * words // kernel[1]), own if table.shape[0] > 1 else 0
    for f in range(0, own, 64):
        w = f * (kernel[0] + 1) * words
        for j in range(0, width, 8):
            if width >= 8:  # the last eight may overlap the eight before: the same values once more
                x = min(j, width - 8)
                _outputs_8(weights, w, lines, first + x * step, row, step, kernel[0], words, scales, slope, f,
                           boxes, 4 * x, table, x * base + f, base, out, x * own + f, own)  # fmt: skip
            else:
                for x in (0, width - 4):
                    _outputs_4(weights, w, lines, first + x * step, row, step, kernel[0], words, scales, slope, f,
                               boxes, 4 * x, table, x * base + f, base, out, x * own + f, own)  # fmt: skip


def _forward(  # type: ignore[no-untyped-def]
    a, which, zero, weights, scales, slope, table, kernel, stride, padding, lines, sums, columns, boxes, y
):
    # a [N, H, W, C / 8] (words), y [N, H', W', F], of which the samples `which` [M] are done; the first axis of lines
    # .. boxes counts the parts side by side
    parts, samples = lines.shape[0], which.shape[0]
    fill = np.uint64(zero) * np.uint64(0x0101010101010101)
    zeros, start = np.int32(zero * 8 * a.shape[3]), padding[1] * a.shape[3]
    for t in prange(parts):
        lines[t][:] = fill
        sums[t][:] = np.int32(0)
        for k in range(t * samples // parts, (t + 1) * samples // parts):
            n = which[k]
            for i in range(a.shape[1]):
                source, target = a[n, i].reshape(-1), lines[t, i + padding[0]]
                for w in range(source.shape[0]):
                    target[start + w] = source[w]
            _channel_sums(a[n], zeros, padding, sums[t])
            for i in range(y.shape[1]):
                _box_sums(sums[t], i * stride[0], kernel, stride[1], columns[t], boxes[t])
                first, place = i * stride[0] * 8 * lines.shape[2], table[min(i, table.shape[0] - 1)]
                _row_of(lines[t], weights, scales, slope, boxes[t], place, kernel, stride[1], first, y[n, i])


@njit(**_OPTIONS)
def pack_filters(codes, shift, zero, out):  # type: ignore[no-untyped-def]
    """Prepare weights for FW.

    ``codes`` uint8 [F, kh, kw C], ``shift`` int32 [F]; ``out`` int32 [F / 16, kh + 1, kw C / 4, 16]: codes less shift,
    four to a word, in the last row first what makes ``zero`` the padding.
    """
    filters, height, length = codes.shape
    line = np.empty(length, np.int8)
    words = line.view(np.int32)
    for f in range(filters):
        total, less = np.int32(0), shift[f]
        for k in range(height):
            for i in range(length):
                v = np.int32(codes[f, k, i]) - less
                line[i] = v
                total += v
            for i in range(words.shape[0]):
                out[f // 16, k, i, f % 16] = words[i]
        out[f // 16, height, 0, f % 16] = -total * zero


forward = builds(_forward)
