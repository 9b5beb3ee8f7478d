"""EB and GC of a convolution on integer codes, sample by sample; see :mod:`fractrain.kernels.cpu.int8_backward`.

Per sample: the error's codes [H', W', F] become one plane per filter with a margin of the code of zero; EB sums over
the kernel in integers, and over the filters, each with its own scale, in float32; GC sums over the image in integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from fractrain.kernels.cpu.quantize import _OPTIONS, builds
from fractrain.kernels.cpu.vnni import gather_fours, input_sums, to_planes, weight_sums

LEFT = 8  # columns before the image in a plane
HEIGHT = 3  # of the kernels that EB is written for
_SIGN: Any = np.uint64(0x8080808080808080)  # takes 128 from each of eight bytes
_inputs_8, _inputs_4 = input_sums(8, HEIGHT), input_sums(4, HEIGHT)
_weights_1, _weights_2, _weights_3 = weight_sums(16, 1), weight_sums(8, 2), weight_sums(8, 3)


def plane_row(width: int) -> int:
    """Bytes from row to row of a plane."""
    return LEFT + -(-width // 16) * 16 + 8


@njit(**_OPTIONS)
def _fill_planes(e, zero, top, planes):  # type: ignore[no-untyped-def]
    # codes of one sample [H', W', F] into planes [F, rows, bytes]
    filters, rows, row = planes.shape
    for i in range(e.shape[0]):
        for j in range(0, e.shape[1], 16):
            for f in range(0, filters, 16):
                source = (i * e.shape[1] + j) * filters + f
                target = (f * rows + top + i) * row + LEFT + j
                to_planes(e, source, filters, e.shape[1] - j, zero, planes, target, rows * row)


@njit(**_OPTIONS)
def _box_sums(planes, zero, rest, width, left, room, boxes):  # type: ignore[no-untyped-def]
    # boxes [rows, bytes] = sum over filters and kernel of rest [F] * (code - zero), pixel 0 of a row first; all rows in
    # one loop, as short ones cost more to begin than to run
    boxes[:] = np.float32(0.0)
    row, sums, columns = boxes.shape[1], boxes.reshape(-1), room.reshape(-1)
    for f in range(0, planes.shape[0], 4):  # four at a time, of sixteens, and added one after the other
        p0, p1 = planes[f].reshape(-1), planes[f + 1].reshape(-1)
        p2, p3 = planes[f + 2].reshape(-1), planes[f + 3].reshape(-1)
        for i in range(sums.shape[0]):  # 32 bits, as 64 take twice as long
            total = sums[i] + rest[f] * np.float32(np.int32(np.int32(p0[i]) - zero))
            total += rest[f + 1] * np.float32(np.int32(np.int32(p1[i]) - zero))
            total += rest[f + 2] * np.float32(np.int32(np.int32(p2[i]) - zero))
            sums[i] = total + rest[f + 3] * np.float32(np.int32(np.int32(p3[i]) - zero))
    used = (boxes.shape[0] - HEIGHT + 1) * row
    second, third = sums[row:], sums[2 * row :]
    for i in range(used):
        columns[i] = sums[i] + second[i] + third[i]
    first, count = columns[left:], used - left - width + 1
    for i in range(count):
        sums[i] = first[i]
    for b in range(1, width):
        other = first[b:]
        for i in range(count):
            sums[i] += other[i]


@njit(**_OPTIONS)
def _inputs_of(planes, weights, scales, boxes, table, left, scale, out):  # type: ignore[no-untyped-def]
    # out [H, W, C] float32; weights [C / 16, F, 4, 64]
    height, width, channels = out.shape
    filters, rows, row = planes.shape
    step = 4 * channels
    for i in range(height):
        for c in range(0, channels, 16):
            w = c // 16 * filters * 64 * (HEIGHT + 1)
            for j in range(0, width, 8):
                if width >= 8:  # the last eight may overlap the eight before: the same values once more
                    x = min(j, width - 8)
                    y, e = (i * width + x) * step + 4 * c, i * row + left + x
                    _inputs_8(weights, w, planes, e, scales, boxes, (i * row + x) * 4, table, y, out, y,
                              filters, rows * row, row, step, scale)  # fmt: skip
                else:
                    for x in (0, width - 4):
                        y, e = (i * width + x) * step + 4 * c, i * row + left + x
                        _inputs_4(weights, w, planes, e, scales, boxes, (i * row + x) * 4, table, y, out, y,
                                  filters, rows * row, row, step, scale)  # fmt: skip


@njit(**_OPTIONS)
def _pack(a, outputs, kernel, stride, padding, line, packed, top):  # type: ignore[no-untyped-def]
    # codes of one sample [H, W, C / 8] (words) into packed [C / 16, rows, groups, kw, 64], moved down by 128
    height, width, words = a.shape
    groups, channels = packed.shape[2], 8 * words
    start, place = padding * words, 64 * kernel
    left = outputs - 4 * (groups - 1)
    keep = np.int64(-1) if left == 4 else (np.int64(1) << (8 * left)) - 1
    for i in range(height):
        source = a[i].reshape(-1)
        for w in range(width * words):
            line[start + w] = source[w] ^ _SIGN
        for k in range(kernel):
            for c in range(packed.shape[0]):
                target = (c * packed.shape[1] + top + i) * groups * place + 64 * k
                gather_fours(line, k * channels + 16 * c, stride * channels, groups, keep, packed, target, place)


@njit(**_OPTIONS)
def _weights_of(planes, top, packed, stride, outputs, sums):  # type: ignore[no-untyped-def]
    # sums [kh, F, kw, C] int32 += over one sample; stride of rows
    filters, rows, row = planes.shape
    blocks, lines, groups, width, _ = packed.shape
    height, channels = sums.shape[0], sums.shape[3]
    a_row, plane = groups * width * 64, rows * row
    for c in range(blocks):
        for f in range(0, filters, 16 if width == 1 else 8):
            for k in range(height):
                a, e = (c * lines + k) * a_row, f * plane + top * row + LEFT
                s = 4 * (((k * filters + f) * width) * channels + 16 * c)
                step, own = stride * a_row, 4 * width * channels
                if width == 1:
                    _weights_1(packed, a, planes, e, sums, s, outputs, groups, step, row, plane, own, 4 * channels)
                elif width == 2:
                    _weights_2(packed, a, planes, e, sums, s, outputs, groups, step, row, plane, own, 4 * channels)
                else:
                    _weights_3(packed, a, planes, e, sums, s, outputs, groups, step, row, plane, own, 4 * channels)


@njit(**_OPTIONS)
def _add_codes(codes, sums):  # type: ignore[no-untyped-def]
    for i in range(codes.shape[0]):
        sums[i] += np.int32(codes[i])


def _backward(  # type: ignore[no-untyped-def]
    e, a, which, zero, top, eb, gc,
    weights, scales, rest, table, kernel, left, scale, maps, boxes, out,
    stride, padding, budget, lines, packed, sums, totals, e_sums, a_sums, planes,
):  # fmt: skip
    # e [N, H', W', F], a [N, H, W, C], of which the samples `which` [M] are done; the first axis of maps .. planes
    # counts the parts that run side by side
    parts, samples = planes.shape[0], which.shape[0]
    words = a.view(np.uint64)
    for t in prange(parts):
        planes[t][:] = zero
        waiting = 0
        for k in range(t * samples // parts, (t + 1) * samples // parts):
            n = which[k]
            _fill_planes(e[n], np.int64(zero), top, planes[t])
            if eb:
                _box_sums(planes[t], np.int32(zero), rest, kernel[1], left, maps[t], boxes[t])
                _inputs_of(planes[t], weights, scales, boxes[t], table, left, scale, out[n])
            if gc:
                _pack(words[n], e.shape[2], kernel[1], stride[1], padding[1], lines[t], packed[t], padding[0])
                _weights_of(planes[t], top, packed[t], stride[0], e.shape[1], sums[t])
                _add_codes(e[n].reshape(-1), e_sums[t].reshape(-1))
                _add_codes(a[n].reshape(-1), a_sums[t].reshape(-1))
                waiting += 1
                if waiting == budget or k + 1 == (t + 1) * samples // parts:
                    _flush(sums[t].reshape(-1), totals[t].reshape(-1))
                    waiting = 0


@njit(**_OPTIONS)
def _flush(sums, totals):  # type: ignore[no-untyped-def]
    for i in range(sums.shape[0]):
        totals[i] += np.int64(sums[i])
        sums[i] = 0


@njit(**_OPTIONS)
def inside(places, stride, padding, k, size):  # type: ignore[no-untyped-def]
    """First and last plus one of the output places that find place ``k`` of the kernel inside the image."""
    first = max(0, -((k - padding) // stride)) if k < padding else 0
    last = (size - 1 + padding - k) // stride + 1
    return min(first, places), max(min(last, places), min(first, places))


@njit(**_OPTIONS)
def _join(sums):  # type: ignore[no-untyped-def]
    first = sums[0].reshape(-1)
    for p in range(1, sums.shape[0]):
        other = sums[p].reshape(-1)
        for i in range(first.shape[0]):
            first[i] += other[i]


@njit(**_OPTIONS)
def _sum_columns(sums, first, last, step, rows):  # type: ignore[no-untyped-def]
    # rows [H, C] = sums of every step-th column of sums [H, W, C]
    rows[:] = 0
    for i in range(sums.shape[0]):
        for j in range(first, last, step):
            for c in range(sums.shape[2]):
                rows[i, c] += sums[i, j, c]


@njit(**_OPTIONS)
def finish_weights(totals, e_sums, a_sums, samples, stride, padding, zero, e_scale, e_rest, a_scale, a_offset, out):  # type: ignore[no-untyped-def]
    """Closed form of GC from the sums of codes; all in float64; ``out`` ``[F, kh, kw, C]``.

    Of each part: ``totals`` [parts, kh, F, kw, C]: of error times (activation - 128); ``e_sums`` [parts, H', W', F],
    ``a_sums`` [parts, H, W, C]. The first part takes up the others.
    """
    _join(totals)
    _join(e_sums)
    _join(a_sums)
    totals, e_sums, a_sums = totals[0], e_sums[0], a_sums[0]
    height, filters, width, channels = totals.shape
    e_rows, a_rows = np.zeros((e_sums.shape[0], filters), np.int64), np.zeros((a_sums.shape[0], channels), np.int64)
    for q in range(width):
        c0, c1 = inside(e_sums.shape[1], stride[1], padding[1], q, a_sums.shape[1])
        _sum_columns(e_sums, c0, c1, 1, e_rows)
        _sum_columns(a_sums, c0 * stride[1] + q - padding[1], c1 * stride[1] + q - padding[1], stride[1], a_rows)
        for k in range(height):
            r0, r1 = inside(e_sums.shape[0], stride[0], padding[0], k, a_sums.shape[0])
            e_here, a_here = np.zeros(filters, np.int64), np.zeros(channels, np.int64)
            for i in range(r0, r1):
                e_here += e_rows[i]
                a_here += a_rows[i * stride[0] + k - padding[0]]
            count = np.int64(samples) * (r1 - r0) * (c1 - c0)
            for f in range(filters):
                for c in range(channels):
                    codes = totals[k, f, q, c] + 128 * e_here[f] - zero * a_here[c]
                    linear = a_offset * (e_scale * np.float64(e_here[f] - zero * count) + e_rest * np.float64(count))
                    both = e_scale * a_scale * np.float64(codes) + e_rest * a_scale * np.float64(a_here[c])
                    out[f, k, q, c] = both + linear


@njit(**_OPTIONS)
def _in_sixteens(line, out, filter_, row):  # type: ignore[no-untyped-def]
    for c in range(0, line.shape[0], 16):
        out[c // 16, filter_, row] = line[c : c + 16]


@njit(**_OPTIONS)
def pack_weights(codes, shift, scales, rest, zero, out, sums):  # type: ignore[no-untyped-def]
    """Prepare weights for EB.

    ``codes`` uint8 [F, kh, kw, C], of value ``scales [F] * (codes - shift [F]) + rest [F]``; ``out`` int32
    [C / 16, F, kh + 1, 16]: codes less shift, a row of the kernel to a word and from right to left, and what makes
    ``zero`` the padding; ``sums`` float64 [kh, kw, C]: of values over filters.
    """
    filters, height, width, channels = codes.shape
    line, totals = np.empty(channels, np.int32), np.empty(channels, np.int32)
    sums[:] = 0.0
    for f in range(filters):
        s, o, less = np.float64(scales[f]), rest[f], shift[f]
        totals[:] = 0
        for k in range(height):
            line[:] = 0
            for q in range(width):
                place, here, added = np.int32(8 * (width - 1 - q)), codes[f, k, q], sums[k, q]
                for c in range(channels):
                    v = np.int32(here[c]) - less
                    line[c] |= np.int32(np.int32(v & np.int32(255)) << place)
                    added[c] += s * v + o
                    totals[c] += v
            _in_sixteens(line, out, f, height - 1 - k)
        for c in range(channels):
            totals[c] *= -zero
        _in_sixteens(totals, out, f, height)


@njit(**_OPTIONS)
def input_table(sums, factor, padding, outputs, out):  # type: ignore[no-untyped-def]
    """``out`` [H, W, C] = ``factor`` times ``sums`` [kh, kw, C] where an error inside ``outputs`` [H', W'] is read.

    All pixels but those near the border have the same.
    """
    height, width, _ = sums.shape
    before = (0, 0)
    for i in range(out.shape[0]):
        rows = (max(0, i + padding[0] - outputs[0] + 1), min(height, i + padding[0] + 1))
        if i and rows == before:
            out[i] = out[i - 1]
            continue
        before, left = rows, (0, 0)
        for j in range(out.shape[1]):
            columns = (max(0, j + padding[1] - outputs[1] + 1), min(width, j + padding[1] + 1))
            here = out[i, j]
            if j and columns == left:
                here[:] = out[i, j - 1]
                continue
            left = columns
            here[:] = np.float32(0.0)
            for k in range(*rows):
                for q in range(*columns):
                    for c in range(here.shape[0]):
                        here[c] += np.float32(factor * sums[k, q, c])


backward = builds(_backward)
