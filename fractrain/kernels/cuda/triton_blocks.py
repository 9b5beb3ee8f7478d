"""Casts to elements with scales on GPUs, written in Triton: FP8, MX, NVFP4, INT8 and INT4 blocks.

Bit-equal to the plain torch path of :mod:`fractrain.numerics.scaled`, whose scales they are given: an element is read
once, scaled, rounded by bit arithmetic, and stored as value and code. Every float32 operation is one of the plain
path's or exact. Only what Triton's interpreter knows is used, so that the kernels can be tested without a GPU. Import
this module only where they are run: :mod:`fractrain.kernels.cuda.scaled_blocks` does.

Layout: matrices ``[groups, rows, columns]`` in memory order, scales ``[groups, bands, across]``: a block has ``high``
rows and ``width`` columns, and those at the edges fewer. Element ``i`` has code ``i``; with ``PAIRS`` two share a byte.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"
from __future__ import annotations

import triton
import triton.language as tl

from fractrain.kernels.cuda.triton_quantize import _clamp, _uniform


@triton.jit
def _block(at, rows, columns, high, width, bands, across):
    """Number of the block that an element is in."""
    line = at // columns
    band = (line // rows) * bands + (line % rows) // high
    return band * across + (at % columns) // width


@triton.jit
def _rounded(
    x, number, k0, k1, largest, unit,
    MANTISSA: tl.constexpr, LOWEST: tl.constexpr, SIGN: tl.constexpr, NAN: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """A scaled number as a value of the format, and its code (int32).

    ``LOWEST``: bits of the smallest normal value; ``unit``: one over the smallest step; ``SIGN``: place of the sign in
    a code; ``NAN``: code of nan.
    """
    x = _clamp(x, 0.0 - largest, largest)
    bits = x.to(tl.int32, bitcast=True)
    exponent = tl.maximum(bits & 0x7F800000, LOWEST)
    if STOCHASTIC:
        step = exponent - (MANTISSA << 23)
        v = x * (0x7F000000 - step).to(tl.float32, bitcast=True)
        f = tl.floor(v)
        r = (f + (_uniform(number, k0, k1) < v - f).to(tl.float32)) * step.to(tl.float32, bitcast=True)
    else:  # the sum with 1.5 times the power of two whose last bit is the step has no room for a fraction of it
        magic = ((exponent + ((23 - MANTISSA) << 23)) | 0x00400000).to(tl.float32, bitcast=True)
        size = (tl.abs(x) + magic) - magic
        r = (size.to(tl.int32, bitcast=True) | (bits & -0x80000000)).to(tl.float32, bitcast=True)
    kept = r.to(tl.int32, bitcast=True)
    size = kept & 0x7FFFFFFF
    normal = (size >> (23 - MANTISSA)) - (((LOWEST >> 23) - 1) << MANTISSA)
    code = tl.where(size >= LOWEST, normal, (tl.abs(r) * unit).to(tl.int32))
    code = tl.where(r == r, code, NAN)
    return r, code | (((kept >> 31) & 1) << SIGN)


@triton.jit(do_not_specialize=["k0", "k1", "base"])
def round_blocks(
    x_ptr, to_ptr, back_ptr, values_ptr, codes_ptr, k0_ptr, k1_ptr,
    count, rows, columns, high, width, bands, across, largest, unit, k0, k1, base,
    MANTISSA: tl.constexpr, LOWEST: tl.constexpr, SIGN: tl.constexpr, NAN: tl.constexpr, STOCHASTIC: tl.constexpr,
    KEYS: tl.constexpr, CODES: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Values (float32) of elements, and with ``CODES`` their codes (uint8); keys as in ``triton_quantize.quantize``."""
    if KEYS:
        k0, k1 = tl.load(k0_ptr).to(tl.int32), tl.load(k1_ptr).to(tl.int32)
    each: tl.constexpr = 2 if PAIRS else 1
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    packed = tl.zeros((BLOCK,), tl.int32)
    for part in tl.static_range(each):
        at = byte * each + part
        inside = at < count
        block = _block(at, rows, columns, high, width, bands, across)
        x = tl.load(x_ptr + at, mask=inside, other=0.0) * tl.load(to_ptr + block, mask=inside, other=0.0)
        number = at.to(tl.uint32) + base.to(tl.uint32, bitcast=True)
        r, code = _rounded(x, number, k0, k1, largest, unit, MANTISSA, LOWEST, SIGN, NAN, STOCHASTIC)
        tl.store(values_ptr + at, r * tl.load(back_ptr + block, mask=inside, other=0.0), mask=inside)
        packed = packed | tl.where(inside, code << (4 * part), 0)
    if CODES:
        tl.store(codes_ptr + byte, packed.to(tl.uint8), mask=byte * each < count)


@triton.jit
def restore_blocks(
    codes_ptr, table_ptr, back_ptr, values_ptr, count, rows, columns, high, width, bands, across,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Values, float32, of codes by a table of the format's values; the same as :func:`round_blocks` gave."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    block = _block(at, rows, columns, high, width, bands, across)
    if PAIRS:
        code = (tl.load(codes_ptr + at // 2, mask=inside, other=0).to(tl.int32) >> (4 * (at % 2)).to(tl.int32)) & 15
    else:
        code = tl.load(codes_ptr + at, mask=inside, other=0).to(tl.int32)
    value = tl.load(table_ptr + code, mask=inside, other=0.0)
    tl.store(values_ptr + at, value * tl.load(back_ptr + block, mask=inside, other=0.0), mask=inside)
