"""Quantizers for GPUs, written in Triton: measure a range, derive its grid, round; all parameters stay on the device.

Bit-equal to the plain torch path in :mod:`fractrain.numerics.quantize`: the same float32 operations in the same
order, with
division rounded correctly and without contraction (``enable_fp_fusion=False`` at every launch). Only what Triton's
interpreter knows is used, so that the kernels can be tested without a GPU. Import this module only where they are run:
:mod:`fractrain.kernels.cuda.launch` does, and holds their launchers and the probe.

Layout: a tensor is ``[rows, columns]`` in memory order; a program takes one part of one row. Parameters are float32
with one value per row (step 1) or one for all rows (step 0). Offsets into tensors have 64 bits, element numbers 32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _ordered(bits):
    """Bits of a float as an integer that orders like it, and back (nan beyond infinity; see ``fused._extremes``)."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _uniform(number, k0, k1):
    """The hash of :func:`fractrain.numerics.stochastic_rounding.uniform`: uint32 element numbers and int32 keys to
    [0, 1).
    """
    h = (number * 0x1E3779B1) ^ k0.to(tl.uint32, bitcast=True)
    h = h ^ (h >> 16)
    h = h * 0x21F0AAAD
    h = (h ^ (h >> 15)) ^ k1.to(tl.uint32, bitcast=True)
    h = h * 0x735A2D97
    h = h ^ (h >> 15)
    return (h >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def _clamp(q, qmin, qmax):
    """As torch's minimum and maximum: nan stays nan (a comparison with it is false)."""
    q = tl.where(q < qmin, qmin, q)
    return tl.where(q > qmax, qmax, q)


@triton.jit
def extremes(x_ptr, low_ptr, high_ptr, columns, parts, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """First stage of a range: ordered bits of the extremes of each part, int32 ``[rows * parts]`` each."""
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    first = (program % parts).to(tl.int64) * (STEPS * BLOCK)
    low = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
    high = tl.full((BLOCK,), -0x80000000, tl.int32)
    for step in range(STEPS):
        column = first + step * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        x = tl.load(x_ptr + row * columns + column, mask=inside, other=0.0)
        key = _ordered(x.to(tl.int32, bitcast=True))
        low = tl.minimum(low, tl.where(inside, key, 0x7FFFFFFF))
        high = tl.maximum(high, tl.where(inside, key, -0x80000000))
    tl.store(low_ptr + program, tl.min(low, 0))
    tl.store(high_ptr + program, tl.max(high, 0))


@triton.jit
def finish(
    low_ptr, high_ptr, out_ptr, bad_ptr, rows, parts, top, smallest,
    GRID: tl.constexpr, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Second stage of a range, one program per row: its extremes, whether one is not finite, and its grid.

    ``out`` is float32 ``[2, rows]`` (low, high), with ``GRID`` ``[6, rows]`` (and scale, offset, qmin, qmax); ``bad``
    is uint8 ``[rows]``.
    """
    row = tl.program_id(0)
    low_keys = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
    high_keys = tl.full((BLOCK,), -0x80000000, tl.int32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        inside = part < parts
        at = row.to(tl.int64) * parts + part
        low_keys = tl.minimum(low_keys, tl.load(low_ptr + at, mask=inside, other=0x7FFFFFFF))
        high_keys = tl.maximum(high_keys, tl.load(high_ptr + at, mask=inside, other=-0x80000000))
    low_bits, high_bits = _ordered(tl.min(low_keys, 0)), _ordered(tl.max(high_keys, 0))
    low, high = low_bits.to(tl.float32, bitcast=True), high_bits.to(tl.float32, bitcast=True)
    largest = tl.maximum(low_bits & 0x7FFFFFFF, high_bits & 0x7FFFFFFF)
    tl.store(bad_ptr + row, (largest >= 0x7F800000).to(tl.uint8))
    tl.store(out_ptr + row, low)
    tl.store(out_ptr + rows + row, high)
    if GRID:
        if SYMMETRIC:
            a, b = tl.abs(low), tl.abs(high)
            span = tl.where((a > b) | (a != a), a, b)
            offset, qmin = 0.0, 0.0 - top
        else:
            span = high - low
            offset, qmin = low, 0.0
        scale = tl.div_rn(span, top)
        tl.store(out_ptr + 2 * rows + row, tl.where(scale < smallest, smallest, scale))
        tl.store(out_ptr + 3 * rows + row, offset)
        tl.store(out_ptr + 4 * rows + row, qmin)
        tl.store(out_ptr + 5 * rows + row, top)


@triton.jit(do_not_specialize=["k0", "k1", "base"])
def quantize(
    x_ptr, values_ptr, codes_ptr, scale_ptr, offset_ptr, qmin_ptr, qmax_ptr, k0_ptr, k1_ptr,
    scale_step, offset_step, qmin_step, qmax_step, columns, parts, shift, k0, k1, base,
    STOCHASTIC: tl.constexpr, CODES: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move a part of a row to its grid: values float32, and with ``CODES`` codes (uint8, or int16 moved by ``shift``).

    ``k0``, ``k1`` and ``base`` are the words of a ``NoiseKey`` as int32, so that one build serves all keys; with
    ``KEYS`` the first two are read from memory (int64), where a recorded launch finds those of its step.
    """
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    column = (program % parts).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    at = row * columns + column
    scale, offset = tl.load(scale_ptr + row * scale_step), tl.load(offset_ptr + row * offset_step)
    qmin, qmax = tl.load(qmin_ptr + row * qmin_step), tl.load(qmax_ptr + row * qmax_step)
    v = tl.div_rn(tl.load(x_ptr + at, mask=inside, other=0.0) - offset, scale)
    if STOCHASTIC:
        if KEYS:
            k0, k1 = tl.load(k0_ptr).to(tl.int32), tl.load(k1_ptr).to(tl.int32)
        f = tl.floor(v)
        number = at.to(tl.uint32) + base.to(tl.uint32, bitcast=True)
        q = _clamp(f + (_uniform(number, k0, k1) < v - f).to(tl.float32), qmin, qmax)
    else:
        # To the nearest integer, ties to even: below 2^22 the sum with 1.5 * 2^23 has no room for a fraction. Clamping
        # first brings every value there and changes nothing, because the limits are integers.
        q = (_clamp(v, qmin, qmax) + 12582912.0) - 12582912.0
    tl.store(values_ptr + at, q * scale + offset, mask=inside)
    if CODES:
        code = (q - (qmin + shift)).to(tl.int32)
        tl.store(codes_ptr + at, code.to(codes_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dequantize(
    codes_ptr, values_ptr, scale_ptr, offset_ptr, qmin_ptr, scale_step, offset_step, qmin_step, columns, parts, shift,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Values of codes, float32; the same as :func:`quantize` gave."""
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    column = (program % parts).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    at = row * columns + column
    scale, offset = tl.load(scale_ptr + row * scale_step), tl.load(offset_ptr + row * offset_step)
    qmin = tl.load(qmin_ptr + row * qmin_step)
    code = tl.load(codes_ptr + at, mask=inside, other=0).to(tl.float32)
    tl.store(values_ptr + at, (code + (qmin + shift)) * scale + offset, mask=inside)


@triton.jit
def rescale(
    sums_ptr, out_ptr, add_rows_ptr, add_columns_ptr, scale_ptr, of_rows_ptr, by_columns_ptr, of_columns_ptr,
    columns, parts, BLOCK: tl.constexpr,
):  # fmt: skip
    """Integer sums to float32: ``(sums + row + column) * scale + row * column + column``, see ``int8_gemm``."""
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    column = (program % parts).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    whole = tl.load(sums_ptr + row * columns + column, mask=inside, other=0)
    whole = whole + tl.load(add_rows_ptr + row) + tl.load(add_columns_ptr + column, mask=inside, other=0)
    y = whole.to(tl.float32) * tl.load(scale_ptr + column, mask=inside, other=0.0)
    y = y + tl.load(of_rows_ptr + row) * tl.load(by_columns_ptr + column, mask=inside, other=0.0)
    y = y + tl.load(of_columns_ptr + column, mask=inside, other=0.0)
    tl.store(out_ptr + row * columns + column, y, mask=inside)
