"""Convolutions on integer codes for GPUs, written in Triton: int8 products on tensor cores, summed exactly in int32.

An image is never spread out for a matrix product: programs gather the codes that a tile of it needs. Tensors are in
channels-last memory; the places of a kernel, ``P = KH * KW``, are numbered row by row. Grids stay on the device: scale,
offset and least code are read from memory, float32. The algebra is in :mod:`fractrain.experimental.int8_conv`, which
holds the
launchers too; import this module only where kernels are run. Only what Triton's interpreter knows is used.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _zero(scale, low, least, most):
    """The integer code next to where a grid is zero, int32, and the grid's value there; all in float64."""
    code = tl.minimum(tl.maximum(tl.floor(0.5 - low / scale), least), most)
    return code.to(tl.int32), low + scale * code


@triton.jit
def _zero_of(scale_ptr, offset_ptr, qmin_ptr):
    """Scale (float64), code of zero (0..255) and value of that code, of the one grid of a tensor."""
    scale = tl.load(scale_ptr).to(tl.float64)
    zero, rest = _zero(scale, tl.load(offset_ptr).to(tl.float64) + scale * tl.load(qmin_ptr).to(tl.float64), 0.0, 255.0)
    return scale, zero, rest


@triton.jit
def _source(
    row, column, ky, kx, height, width,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Which pixel of the source a place of the kernel reads for an output, and whether there is one."""
    if BACK:  # from an image to the outputs that read it: with strides, some places have none
        y, x = row + PH - ky, column + PW - kx
        inside = (y >= 0) & (x >= 0) & (y % SH == 0) & (x % SW == 0)
        y, x = y // SH, x // SW
    else:
        y, x = row * SH + ky - PH, column * SW + kx - PW
        inside = (y >= 0) & (x >= 0)
    return y, x, inside & (y < height) & (x < width)


@triton.jit
def _gather(
    x_ptr, zero, first, there, n, row, column, height, width,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, BACK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes less 128 of a block of terms for some outputs, int8; outside of the image the code of zero."""
    k = first + tl.arange(0, BLOCK)
    if C % BLOCK == 0:  # one place for the whole block: its pixels are found once, not for every channel
        place = first // C
        y, x, inside = _source(row, column, place // KW, place % KW, height, width, SH, SW, PH, PW, BACK)
        inside = (inside & there)[:, None]
        at = ((n * height + y) * width + x)[:, None]
    else:
        place = k // C
        y, x, inside = _source(
            row[:, None], column[:, None], (place // KW)[None, :], (place % KW)[None, :], height, width,
            SH, SW, PH, PW, BACK,
        )  # fmt: skip
        inside = inside & there[:, None] & (k < C * KH * KW)[None, :]
        at = (n[:, None] * height + y) * width + x
    codes = tl.load(x_ptr + at.to(tl.int64) * C + (k % C)[None, :], mask=inside, other=0)
    codes = tl.where(inside, codes, zero.to(tl.uint8))
    return (codes ^ 128).to(tl.int8, bitcast=True)


@triton.jit
def pack(
    codes_ptr, scale_ptr, offset_ptr, qmin_ptr, qmax_ptr, x_scale_ptr, x_offset_ptr, x_qmin_ptr,
    out_ptr, add_ptr, factor_ptr, slope_ptr, values_ptr,
    scale_step, offset_step, qmin_step, qmax_step, row_stride, term_stride, y_stride, x_stride, rows, terms,
    KH: tl.constexpr, KW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weights about their zero, and what :func:`convolve` does to its sums; a program per row (filter; in EB channel).

    ``out`` is int8 ``[rows, P, terms]``; ``add`` (int32), ``factor`` and ``slope`` (float32) have one value per row,
    ``values``, what each place inside adds where zero is no code of the input, is ``[P, rows]``. Strides are those of
    the weight's codes (uint8); a step is 1 with a grid per row, else 0.
    """
    row = tl.program_id(0)
    x_scale, x_zero, x_rest = _zero_of(x_scale_ptr, x_offset_ptr, x_qmin_ptr)
    scale = tl.load(scale_ptr + row * scale_step).to(tl.float64)
    least = tl.load(qmin_ptr + row * qmin_step).to(tl.float64)
    levels = tl.load(qmax_ptr + row * qmax_step).to(tl.float64) - least
    low = tl.load(offset_ptr + row * offset_step).to(tl.float64) + scale * least
    zero, rest = _zero(scale, low, levels - 127.0, 128.0)
    whole = tl.zeros((BLOCK,), tl.int32)
    for place in range(KH * KW):
        start = codes_ptr + row * row_stride + (place // KW) * y_stride + (place % KW) * x_stride
        total = tl.zeros((BLOCK,), tl.int32)
        for first in range(0, terms, BLOCK):
            term = first + tl.arange(0, BLOCK)
            inside = term < terms
            v = tl.load(start + term * term_stride, mask=inside, other=0).to(tl.int32) - zero
            tl.store(out_ptr + (row * (KH * KW) + place) * terms + term, v.to(tl.int8), mask=inside)
            total += tl.where(inside, v, 0)
        value = x_rest * (scale * tl.sum(total, 0).to(tl.float64) + rest * terms)
        tl.store(values_ptr + place * rows + row, value.to(tl.float32))
        whole += total
    tl.store(add_ptr + row, (128 - x_zero) * tl.sum(whole, 0))
    tl.store(factor_ptr + row, (x_scale * scale).to(tl.float32))
    tl.store(slope_ptr + row, (x_scale * rest).to(tl.float32))


@triton.jit
def convolve(
    x_ptr, pixels_ptr, w_ptr, add_ptr, factor_ptr, slope_ptr, values_ptr, bias_ptr, out_ptr,
    x_scale_ptr, x_offset_ptr, x_qmin_ptr, count, height, width, rows, columns, filters,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, BACK: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """FW, or with ``BACK`` EB: codes ``[N, height, width, C]`` to float32 ``[N, rows, columns, filters]``.

    A program makes one tile; ``count`` is ``N * rows * columns``, ``pixels`` the codes' sums over channels, int32. What
    belongs to the weights is as :func:`pack` made it.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = m < count
    column, row, n = m % columns, (m // columns) % rows, m // (columns * rows)
    f = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = f < filters
    _scale, zero, rest = _zero_of(x_scale_ptr, x_offset_ptr, x_qmin_ptr)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for first in range(0, C * KH * KW, BLOCK_K):
        p = _gather(x_ptr, zero, first, there, n, row, column, height, width,
                    C, KH, KW, SH, SW, PH, PW, BACK, BLOCK_K)  # fmt: skip
        k = first + tl.arange(0, BLOCK_K)
        inside = (k < C * KH * KW)[:, None] & wanted[None, :]
        w = tl.load(w_ptr + f.to(tl.int64)[None, :] * (C * KH * KW) + k[:, None], mask=inside, other=0)
        acc = tl.dot(p, w, acc, out_dtype=tl.int32)
    acc += tl.load(add_ptr + f, mask=wanted, other=0)[None, :]
    out = acc.to(tl.float32) * tl.load(factor_ptr + f, mask=wanted, other=0.0)[None, :]
    slope = tl.load(slope_ptr + f, mask=wanted, other=0.0)
    if tl.max(tl.abs(slope), 0) != 0.0:  # not with symmetric weights; else sums of the codes alone
        box = tl.zeros((BLOCK_M,), tl.int32)
        for place in range(KH * KW):
            y, x, read = _source(row, column, place // KW, place % KW, height, width, SH, SW, PH, PW, BACK)
            read = read & there
            pixel = tl.load(pixels_ptr + (n * height + y) * width + x, mask=read, other=0)
            box += tl.where(read, pixel - zero * C, 0)
        out += box.to(tl.float32)[:, None] * slope[None, :]
    if rest != 0.0:  # not behind a ReLU: zero is no code of the input, and padding is zero
        for place in range(KH * KW):
            _y, _x, read = _source(row, column, place // KW, place % KW, height, width, SH, SW, PH, PW, BACK)
            value = tl.load(values_ptr + place * filters + f, mask=wanted, other=0.0)
            out += tl.where(read[:, None], value[None, :], 0.0)
    if BIAS:
        out += tl.load(bias_ptr + f, mask=wanted, other=0.0)[None, :]
    tl.store(out_ptr + m.to(tl.int64)[:, None] * filters + f[None, :], out, mask=there[:, None] & wanted[None, :])


@triton.jit
def correlate(
    e_ptr, a_ptr, out_ptr, first_row, filters, count, chunk, height, width, rows, columns,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, COUNTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """GC: integer sums over ``chunk`` outputs (whole blocks) per part: codes less 128 of errors and activations, int32.

    ``out`` is ``[parts, filters + 1, P * C + P]``. Its last row holds sums of the activations alone. Its last ``P``
    columns, which a launch with ``COUNTS`` makes, hold sums of the errors that read inside the image, and in the last
    row their number. Activations outside count as 0.
    """
    f = first_row + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.program_id(2) * chunk
    wanted = j < (KH * KW if COUNTS else KH * KW * C)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(0, chunk, BLOCK_K):
        k = start + step + tl.arange(0, BLOCK_K)
        there = k < count
        row, column, n = (k // columns) % rows, k % columns, k // (columns * rows)
        mask = there[:, None] & (f < filters)[None, :]
        e = tl.load(e_ptr + k.to(tl.int64)[:, None] * filters + f[None, :], mask=mask, other=128)
        e = (e ^ 128).to(tl.int8, bitcast=True)
        e = tl.where((f == filters)[None, :], 1, e).to(tl.int8)
        if C % BLOCK_N == 0 and not COUNTS:  # as in :func:`_gather`
            place = tl.program_id(1) * BLOCK_N // C
            y, x, inside = _source(row, column, place // KW, place % KW, height, width, SH, SW, PH, PW, False)
            inside = (inside & there)[:, None]
            at = ((n * height + y) * width + x)[:, None]
        else:
            place = j if COUNTS else j // C
            y, x, inside = _source(
                row[:, None], column[:, None], (place // KW)[None, :], (place % KW)[None, :], height, width,
                SH, SW, PH, PW, False,
            )  # fmt: skip
            inside = inside & there[:, None] & wanted[None, :]
            at = (n[:, None] * height + y) * width + x
        if COUNTS:
            a = inside.to(tl.int8)
        else:
            a = tl.load(a_ptr + at.to(tl.int64) * C + (j % C)[None, :], mask=inside, other=128)
            a = (a ^ 128).to(tl.int8, bitcast=True)
        acc = tl.dot(tl.trans(e), a, acc, out_dtype=tl.int32)
    at = (tl.program_id(2).to(tl.int64) * (filters + 1) + f[:, None]) * (KH * KW * (C + 1)) + j[None, :]
    at += KH * KW * C if COUNTS else 0
    tl.store(out_ptr + at, acc, mask=(f <= filters)[:, None] & wanted[None, :])


@triton.jit
def finish(
    sums_ptr, out_ptr, e_scale_ptr, e_offset_ptr, e_qmin_ptr, a_scale_ptr, a_offset_ptr, a_qmin_ptr, filters, parts,
    C: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """GC from the sums of :func:`correlate`, a program per filter and block: float32 ``[filters, P, C]``.

    The parts are added in int64 and put together in float64: one rounding at the end, whatever the parts.
    """
    f = tl.program_id(0)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = j < PLACES * C
    marks = PLACES * C + j // C
    both, errors, activations, number = (
        tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64),
        tl.zeros((BLOCK,), tl.int64),
    )  # fmt: skip
    mine, last = sums_ptr + f * (PLACES * (C + 1)), sums_ptr + filters * (PLACES * (C + 1))
    for _ in range(parts):
        both += tl.load(mine + j, mask=inside, other=0)
        errors += tl.load(mine + marks, mask=inside, other=0)
        activations += tl.load(last + j, mask=inside, other=0)
        number += tl.load(last + marks, mask=inside, other=0)
        mine += (filters + 1) * (PLACES * (C + 1))
        last += (filters + 1) * (PLACES * (C + 1))
    r, s = tl.load(e_scale_ptr).to(tl.float64), tl.load(a_scale_ptr).to(tl.float64)
    e = tl.load(e_offset_ptr).to(tl.float64) + r * (tl.load(e_qmin_ptr).to(tl.float64) + 128.0)  # of code 128
    a = tl.load(a_offset_ptr).to(tl.float64) + s * (tl.load(a_qmin_ptr).to(tl.float64) + 128.0)
    total = r * s * both.to(tl.float64) + r * a * errors.to(tl.float64) + s * e * activations.to(tl.float64)
    total += e * a * number.to(tl.float64)
    tl.store(out_ptr + f * (PLACES * C) + j, total.to(tl.float32), mask=inside)
