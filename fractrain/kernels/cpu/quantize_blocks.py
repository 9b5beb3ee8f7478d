"""Fused CPU casts to elements with scales, compiled by numba: FP8, MX, NVFP4, INT8 and INT4 blocks.

Bit-equal to the plain torch path of :mod:`fractrain.numerics.scaled`. A matrix is walked in bands of as many rows as a
block has: largest magnitudes of the band's columns, then of its blocks, then the scales, then every element is rounded
by bit arithmetic while the band is in cache. So memory is read once, unless a scale needs the whole tensor first.

Rounding to nearest adds and takes off again 1.5 times the power of two whose last mantissa bit is the element's step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types, uint32
from numba.extending import intrinsic

from fractrain.kernels.cpu.quantize import _OPTIONS, _uniform, builds

# Rules for scales, as in fractrain.numerics.scales; GIVEN: factors per column are handed in.
GIVEN, MULTIPLIER, STEP, E8M0, TWO_LEVEL = range(5)
FLOOR, RCEIL, CEIL, EVEN = range(4)
SPAN = 512  # elements of short rows that are done at a time
_LARGEST = np.float32(np.finfo(np.float32).max)


def _bits_of(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


def _float_of(typing_context: Any, value: Any) -> Any:
    """The float32 of an int32's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


_bits: Any = intrinsic(_bits_of)
_float: Any = intrinsic(_float_of)


@njit(inline="always", **_OPTIONS)
def _nearest(q, mantissa, lowest, largest):  # type: ignore[no-untyped-def]
    # lowest: bits of 2^min_exponent
    q = min(max(q, -largest), largest)
    e = max(np.int32(_bits(q) & np.int32(0x7F800000)), lowest)
    magic = _float(np.int32(e + (np.int32(23 - mantissa) << np.int32(23))) | np.int32(0x00400000))
    r = np.float32(np.float32(q + magic) - magic)
    return _float(np.int32(_bits(r) | np.int32(_bits(q) & np.int32(-0x80000000))))  # zeros keep their sign


@njit(inline="always", **_OPTIONS)
def _stochastic(q, mantissa, lowest, largest, u):  # type: ignore[no-untyped-def]
    q = min(max(q, -largest), largest)
    e = max(np.int32(_bits(q) & np.int32(0x7F800000)), lowest)
    step = np.int32(e - (np.int32(mantissa) << np.int32(23)))
    v = q * _float(np.int32(np.int32(0x7F000000) - step))
    f = np.floor(v)
    up = np.float32(1.0) if u < v - f else np.float32(0.0)
    return np.float32((f + up) * _float(step))


@njit(inline="always", **_OPTIONS)
def _code(r, mantissa, lowest, unit, sign):  # type: ignore[no-untyped-def]
    # unit: one over the smallest step; sign: its place
    b = _bits(r)
    size = np.int32(b & np.int32(0x7FFFFFFF))
    normal = np.int32(size >> np.int32(23 - mantissa)) - np.int32(
        np.int32((lowest >> np.int32(23)) - np.int32(1)) << np.int32(mantissa)
    )
    small = np.int32(np.float32(abs(r)) * unit)
    code = normal if size >= lowest else small
    return np.uint8(code | np.int32(np.int32(np.int32(b >> np.int32(31)) & np.int32(1)) << sign))


@njit(inline="always", **_OPTIONS)
def _exponent_scale(k):  # type: ignore[no-untyped-def]
    # 2^k from k = -127 on, which is subnormal
    return _float(np.int32(np.int32(k + 127) << np.int32(23)) if k >= -126 else np.int32(1 << 22))


@njit(inline="always", **_OPTIONS)
def _power_scale(top, mode, margin, largest, top_exponent, mantissa):  # type: ignore[no-untyped-def]
    # (to, back, exponent + 127) of a block whose amax has the bits top; no branches, so that vectors of blocks are done
    half = np.int32(np.int32(1) << np.int32(22 - mantissa)) if mode == EVEN else np.int32(0)
    b = _bits(np.float32(_float(top) / largest)) if mode == RCEIL else np.int32(top + half)
    # subnormals: below 2^-127 any exponent will do, as it is raised to -127
    low = np.int32(-127) if b >= np.int32(0x400000) else np.int32(-128)
    e = low if b < np.int32(0x800000) else np.int32(np.int32(b >> np.int32(23)) - np.int32(127))
    fraction = np.int32(b - np.int32(0x400000)) if b < np.int32(0x800000) else np.int32(b & np.int32(0x7FFFFF))
    above = np.int32(1) if mode >= RCEIL and mode <= CEIL and fraction > 0 else np.int32(0)
    k = np.int32(e + above - (np.int32(0) if mode == RCEIL else top_exponent))
    k = min(max(k, np.int32(-127)), np.int32(127)) if top > 0 else np.int32(-127)
    return (
        np.float32(_exponent_scale(np.int32(-k)) / margin),
        np.float32(_exponent_scale(k) * margin),
        np.int32(k + 127),
    )


@njit(inline="always", **_OPTIONS)
def _two_level_scale(top, margin, largest, tensor):  # type: ignore[no-untyped-def]
    # (to, back, code of an E4M3 value), likewise
    relative = np.float32(np.float32(np.float32(_float(top) * margin) / largest) / tensor)
    block = _nearest(
        relative if tensor > np.float32(0.0) else np.float32(0.0), 3, np.int32(121 << 23), np.float32(448.0)
    )
    back = np.float32(block * tensor)
    to = min(np.float32(1.0) / back, _LARGEST) if back > np.float32(0.0) else np.float32(0.0)
    return to, back, np.int32(_code(block, 3, np.int32(121 << 23), np.float32(512.0), np.int32(7)))


@njit(inline="always", **_OPTIONS)
def _plain_scale(amax, rule, mode, margin, largest):  # type: ignore[no-untyped-def]
    # (to, back) by the rules that keep a float32
    if rule == MULTIPLIER:
        to = np.float32(np.float64(largest) / (max(np.float64(amax), 1e-12) * np.float64(margin)))
        if mode:
            to = _float(np.int32(_bits(to) & np.int32(0x7F800000)))
        return to, np.float32(1.0) / to
    back = np.float32(np.float32(amax * margin) / largest)
    return np.float32(1.0) / max(back, np.float32(1e-12)), back


@njit(**_OPTIONS)
def _scales(tops, scale, to, back, kept, wide):  # type: ignore[no-untyped-def]
    # of blocks from the bits of their amax; kept or wide is what is kept of them
    rule, mode, margin, largest, top_exponent, mantissa, tensor = scale
    if rule == E8M0:
        for i in range(tops.shape[0]):
            to[i], back[i], k = _power_scale(tops[i], mode, margin, largest, top_exponent, mantissa)
            kept[i] = np.uint8(k)
    elif rule == TWO_LEVEL:
        for i in range(tops.shape[0]):
            to[i], back[i], k = _two_level_scale(tops[i], margin, largest, tensor)
            kept[i] = np.uint8(k)
    else:
        for i in range(tops.shape[0]):
            to[i], back[i] = _plain_scale(_float(tops[i]), rule, mode, margin, largest)
            wide[i] = back[i]


@njit(**_OPTIONS)
def _band_tops(x, columns, width, room):  # type: ignore[no-untyped-def]
    # x: bits of a band, flat -> bits of the largest magnitude of each block, first in room, whose length is columns
    # times a power of two
    source = x
    if x.shape[0] > columns or width == 1:
        source = room
        room[:] = np.int32(0)
        for start in range(0, x.shape[0], room.shape[0]):
            part = x[start : start + room.shape[0]]
            for i in range(part.shape[0]):
                room[i] = max(room[i], np.int32(part[i] & np.int32(0x7FFFFFFF)))
        half = room.shape[0] // 2
        while half >= columns:
            upper = room[half : 2 * half]
            for i in range(half):
                room[i] = max(room[i], upper[i])
            half //= 2
    if width > 1:
        for block in range(-(-columns // width)):
            part = source[block * width : min((block + 1) * width, columns)]
            top = np.int32(0)
            for c in range(part.shape[0]):
                top = max(top, np.int32(part[c] & np.int32(0x7FFFFFFF)))
            room[block] = top


@njit(**_OPTIONS)
def _spread(factors, columns, width, out):  # type: ignore[no-untyped-def]
    # factors of blocks over their columns, and these again and again
    if width > 1:
        for block in range(factors.shape[0]):
            part = out[block * width : min((block + 1) * width, columns)]
            for c in range(part.shape[0]):
                part[c] = factors[block]
    else:
        for c in range(columns):
            out[c] = factors[c]
    done = columns
    while done < out.shape[0]:
        again = out[done : 2 * done]
        for c in range(done):
            again[c] = out[c]
        done *= 2


@njit(**_OPTIONS)
def _round_band(x, first, element, noise, to, back, values, codes):  # type: ignore[no-untyped-def]
    # x, values and codes: of a band, flat; first: number of its first element
    mantissa, lowest, largest, unit, sign = element
    stochastic, k0, k1, base = noise
    for start in range(0, x.shape[0], to.shape[0]):
        a, out = x[start : start + to.shape[0]], values[start : start + to.shape[0]]
        count = a.shape[0]
        if stochastic:
            number = uint32(base + first + start)
            for c in range(count):
                u = _uniform(uint32(number + uint32(c)), k0, k1)
                out[c] = _stochastic(np.float32(a[c] * to[c]), mantissa, lowest, largest, u)
        else:
            for c in range(count):
                out[c] = _nearest(np.float32(a[c] * to[c]), mantissa, lowest, largest)
        if codes.shape[0] > 0:
            code = codes[start : start + to.shape[0]]
            for c in range(count):
                code[c] = _code(out[c], mantissa, lowest, unit, sign)
        for c in range(count):
            out[c] = out[c] * back[c]


def _round(x, bits, high, width, scale, element, given, values, codes, kept, wide, tops, noise):  # type: ignore[no-untyped-def]
    # x [rows, columns] and its bits; given [2, columns]: factors where the rule is GIVEN; kept, wide [bands, blocks]:
    # scales; tops [parts]: largest magnitude's bits of each part of the bands. codes may be empty.
    rows, columns = x.shape
    parts, bands, span = tops.shape[0], -(-rows // high), columns
    while 2 * span <= min(SPAN, high * columns):  # short rows are taken together
        span *= 2
    for part in prange(parts):
        to, back, room, whole = (
            np.empty(span, np.float32),
            np.empty(span, np.float32),
            np.empty(span, np.int32),
            np.int32(0),
        )
        own, own_back = np.empty(-(-columns // width), np.float32), np.empty(-(-columns // width), np.float32)
        if scale[0] == GIVEN:
            _spread(given[0], columns, 1, to)
            _spread(given[1], columns, 1, back)
        for band in range(part * bands // parts, (part + 1) * bands // parts):
            first, last = band * high, min(rows, (band + 1) * high)
            if scale[0] != GIVEN:
                _band_tops(bits[first:last].reshape(-1), columns, width, room)
                found = room[: own.shape[0]]
                _scales(found, scale, own, own_back, kept[band], wide[band])
                for i in range(found.shape[0]):
                    whole = max(whole, found[i])
                _spread(own, columns, width, to)
                _spread(own_back, columns, width, back)
            _round_band(
                x[first:last].reshape(-1), first * columns, element, noise, to, back,
                values[first:last].reshape(-1), codes[first:last].reshape(-1),
            )  # fmt: skip
        tops[part] = whole


def _column_tops(bits, parts, out):  # type: ignore[no-untyped-def]
    # largest magnitude's bits per column, in `parts` stretches of rows: out [parts, columns]
    rows, columns = bits.shape
    for p in prange(parts):
        top = out[p]
        for c in range(columns):
            top[c] = np.int32(0)
        for r in range(p * rows // parts, (p + 1) * rows // parts):
            row = bits[r]
            for c in range(columns):
                top[c] = max(top[c], np.int32(row[c] & np.int32(0x7FFFFFFF)))


def _pair(codes, out):  # type: ignore[no-untyped-def]
    # two codes of four bits to a byte; codes as 16-bit words
    for p in prange(64):
        n = out.shape[0]
        for i in range(p * n // 64, (p + 1) * n // 64):
            word = codes[i]
            out[i] = np.uint8((word & np.uint16(15)) | ((word >> np.uint16(4)) & np.uint16(240)))


def _restore(codes, table, high, width, scales, values):  # type: ignore[no-untyped-def]
    # codes [rows, columns] (halved: columns / 2); scales [bands, blocks]
    rows, columns = values.shape
    paired = codes.shape[1] != columns
    for band in prange(scales.shape[0]):
        back = np.empty(columns, np.float32)
        if scales.shape[1] == columns:
            for c in range(columns):
                back[c] = scales[band, c]
        else:
            for block in range(scales.shape[1]):
                back[block * width : (block + 1) * width] = scales[band, block]
        for r in range(band * high, min(rows, (band + 1) * high)):
            code, out = codes[r], values[r]
            if paired:
                for c in range(code.shape[0]):
                    out[2 * c] = table[code[c] & np.uint8(15)] * back[2 * c]
                    out[2 * c + 1] = table[code[c] >> np.uint8(4)] * back[2 * c + 1]
            else:
                for c in range(columns):
                    out[c] = table[code[c]] * back[c]


round_blocks, column_tops = builds(_round), builds(_column_tops)
pair, restore = builds(_pair), builds(_restore)
