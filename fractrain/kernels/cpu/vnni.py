"""Short pieces of machine code for sums of byte products, put together for numba: AVX512 with VNNI (x86 only).

``vpdpbusd`` multiplies four unsigned by four signed bytes and adds the products to a 32-bit sum, in sixteen lanes at
once, exactly. Neither numba nor numpy can express it, so the loops around it are written here in LLVM's terms; the
kernels that use them are in :mod:`fractrain.kernels.cpu.int8_backward_loops`. Arrays come with an offset in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
_BYTE, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_INT, LANES), ir.VectorType(_FLOAT, LANES)


_intrinsic: Any = intrinsic  # untyped
_cgutils: Any = cgutils


def _bytes(n: int) -> ir.VectorType:
    return ir.VectorType(_BYTE, n)


def has_vnni() -> bool:
    """Whether this processor has the instructions and numba compiles for it."""
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:  # type: ignore[attr-defined]
        return False  # numba was told to compile for another one
    features = llvm.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "avx512bw", "avx512vl", "avx512vnni"))


class _Writer:
    """Writes instructions at the builder's place.

    Args:
        context: numba's.
        builder: LLVM's.
        kinds, values: numba types and LLVM values of the arguments; arrays become their addresses.
    """

    def __init__(self, context: Any, builder: Any, kinds: Sequence[Any], values: Sequence[Any]) -> None:
        self.b = builder
        self.args = [
            builder.ptrtoint(context.make_array(kind)(context, builder, value).data, _LONG)
            if isinstance(kind, types.Array) else value
            for kind, value in zip(kinds, values, strict=True)
        ]  # fmt: skip

    def at(self, address: Any, *steps: tuple[Any, int]) -> Any:
        """``address + sum of stride * index``."""
        for stride, index in steps:
            address = self.b.add(address, self.b.mul(stride, _LONG(index))) if index else address
        return address

    def plus(self, address: Any, count: int) -> Any:
        return self.b.add(address, _LONG(count)) if count else address

    def load(self, address: Any, kind: Any, align: int = 1) -> Any:
        got = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        got.align = align
        return got

    def store(self, value: Any, address: Any, align: int = 1) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = align

    def call(self, name: str, kind: Any, *values: Any) -> Any:
        function = ir.FunctionType(kind, [v.type for v in values])
        return self.b.call(_cgutils.get_or_insert_function(self.b.module, function, name), values)

    def dot(self, total: Any, unsigned: Any, signed: Any) -> Any:
        return self.call("llvm.x86.avx512.vpdpbusd.512", _INTS, total, unsigned, signed)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        return self.call("llvm.fma.v16f32", _FLOATS, x, y, z)

    def splat(self, value: Any, lanes: int = LANES) -> Any:
        empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        one = self.b.insert_element(empty, value, _INT(0))
        return self.b.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes))

    def shuffle(self, x: Any, y: Any, order: list[int]) -> Any:
        return self.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_INT, len(order)), order))

    def variables(self, values: Sequence[Any]) -> list[Any]:
        """Places that LLVM turns into registers."""
        places = [_cgutils.alloca_once(self.b, v.type) for v in values]
        for place, value in zip(places, values, strict=True):
            self.b.store(value, place)
        return places

    def loop(self, count: Any) -> Any:
        return _cgutils.for_range(self.b, count, intp=_LONG)


def _longs(count: int) -> list[Any]:
    return [types.int64] * count


def weight_sums(filters: int, width: int) -> Any:
    """Make ``f(a, at, e, at, sums, at, rows, groups, a_row, e_row, e_filter, s_filter, s_place)``, for GC.

    For ``filters`` filters, ``width`` places of a kernel row and 16 channels, with groups of four places of an image
    row: ``sums[filter, place, channel] += sum over rows, groups and the four of e[filter] * a[place, channel]``.

    ``a``: int8 ``[row, group, place, 16 channels, 4]``; ``e``: uint8, a plane per filter; ``sums``: int32. ``*_row``,
    ``*_filter`` and ``*_place`` are strides in bytes.
    """

    @_intrinsic
    def tile(typing, a, i, e, j, sums, k, rows, groups, a_row, e_row, e_filter, s_filter, s_place):  # type: ignore[no-untyped-def]
        def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            w = _Writer(context, builder, signature.args, values)
            a, i, e, j, sums, k, rows, groups, a_row, e_row, e_filter, s_filter, s_place = w.args
            a, e, sums, b = builder.add(a, i), builder.add(e, j), builder.add(sums, k), builder
            tiles = [(f, p) for f in range(filters) for p in range(width)]
            places = [w.at(sums, (s_filter, f), (s_place, p)) for f, p in tiles]
            totals = dict(zip(tiles, w.variables([w.load(p, _INTS, 4) for p in places]), strict=True))
            with w.loop(rows) as row:
                a_at, e_at = b.add(a, b.mul(row.index, a_row)), b.add(e, b.mul(row.index, e_row))
                with w.loop(groups) as group:
                    a_here = b.add(a_at, b.mul(group.index, _LONG(64 * width)))
                    e_here = b.add(e_at, b.mul(group.index, _LONG(4)))
                    own = [w.load(w.plus(a_here, 64 * p), _INTS) for p in range(width)]
                    for f in range(filters):
                        error = w.splat(w.load(w.at(e_here, (e_filter, f)), _INT))
                        for p in range(width):
                            b.store(w.dot(b.load(totals[f, p]), error, own[p]), totals[f, p])
            for place, total in zip(places, totals.values(), strict=True):
                w.store(b.load(total), place, 4)
            return context.get_dummy_value()

        kinds = (a, *_longs(1), e, *_longs(1), sums, *_longs(8))
        return types.void(*kinds), write

    return tile


def input_sums(pixels: int, height: int) -> Any:
    """Make ``f(w, at, e, at, scales, box, at, table, at, out, at, filters, e_filter, e_row, step, scale)``, for EB.

    For ``pixels`` neighbours in a row of the result and 16 channels::

        out = (sum over filters of scales * (sum over the kernel of e * w, plus a constant) + box) * scale + table

    ``w``: int8 ``[filter, height + 1, 16 channels, 4 places]``, the last row the constants as int32; ``e``: uint8, a
    plane per filter; ``scales``: float32 ``[filters]``; ``box``: float32 per pixel; ``table``, ``out``: float32, pixels
    ``step`` bytes apart.
    """

    @_intrinsic
    def tile(typing, v, i, e, j, scales, box, k, table, m, out, o, filters, e_filter, e_row, step, scale):  # type: ignore[no-untyped-def]
        def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            w, b = _Writer(context, builder, signature.args, values), builder
            v, i, e, j, scales, box, k, table, m, out, o, filters, e_filter, e_row, step, scale = w.args
            v, e, box, table, out = b.add(v, i), b.add(e, j), b.add(box, k), b.add(table, m), b.add(out, o)
            totals = w.variables([ir.Constant(_FLOATS, [0.0] * LANES)] * pixels)
            with w.loop(filters) as f:
                v_here = b.add(v, b.mul(f.index, _LONG(64 * (height + 1))))
                rows = [w.load(w.plus(v_here, 64 * r), _INTS) for r in range(height + 1)]
                factor = w.splat(w.load(b.add(scales, b.mul(f.index, _LONG(4))), _FLOAT, 4))
                e_here = b.add(e, b.mul(f.index, e_filter))
                e_rows = [w.at(e_here, (e_row, r)) for r in range(height)]
                for p in range(pixels):
                    total = rows[height]
                    for r in range(height):
                        total = w.dot(total, w.splat(w.load(w.plus(e_rows[r], p), _INT)), rows[r])
                    b.store(w.fma(b.sitofp(total, _FLOATS), factor, b.load(totals[p])), totals[p])
            for p in range(pixels):
                shifted = b.fadd(b.load(totals[p]), w.splat(w.load(w.plus(box, 4 * p), _FLOAT, 4)))
                base = w.load(w.at(table, (step, p)), _FLOATS, 4)
                w.store(w.fma(shifted, w.splat(scale), base), w.at(out, (step, p)), 4)
            return context.get_dummy_value()

        kinds = (v, *_longs(1), e, *_longs(1), scales, box, *_longs(1), table, *_longs(1), out, *_longs(5))
        return types.void(*kinds, types.float32), write

    return tile


def output_sums(pixels: int) -> Any:
    """Make ``f(w, at, a, at, row, step, height, words, scales, slope, at, box, at, table, at, base, out, at, own)``.

    For FW, ``pixels`` neighbours in a row of the result and 16 filters::

        out = (sum over the kernel of a * w, plus a constant) * scales + box * slope + table

    ``w``: int8 ``[height + 1, words, 16 filters, 4]``, in the last row the constants as int32; ``a``: uint8, ``words``
    times four bytes for each row of the kernel; ``row``, ``step``: bytes to its next row and to the next pixel;
    ``scales``, ``slope``: float32 per filter; ``box`` float32 per pixel; ``table``, ``out``: float32, pixels ``base``
    and ``own`` bytes apart.
    """

    @_intrinsic
    def tile(typing, v, i, a, j, row, step, height, words, scales, slope, f, box, k, table, m, base, out, o, own):  # type: ignore[no-untyped-def]
        def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            w, b = _Writer(context, builder, signature.args, values), builder
            v, i, a, j, row, step, height, words, scales, slope, f, box, k, table, m, base, out, o, own = w.args
            v, a, box, table, out = b.add(v, i), b.add(a, j), b.add(box, k), b.add(table, m), b.add(out, o)
            line = b.mul(words, _LONG(64))
            totals = w.variables([w.load(b.add(v, b.mul(line, height)), _INTS)] * pixels)
            starts = [w.at(a, (step, p)) for p in range(pixels)]
            with w.loop(height) as r:
                weights, down = b.add(v, b.mul(r.index, line)), b.mul(r.index, row)
                with w.loop(words) as word:
                    here = w.load(b.add(weights, b.mul(word.index, _LONG(64))), _INTS)
                    across = b.add(down, b.mul(word.index, _LONG(4)))
                    for start, total in zip(starts, totals, strict=True):
                        four = w.splat(w.load(b.add(start, across), _INT))
                        b.store(w.dot(b.load(total), four, here), total)
            scale, rise = (w.load(b.add(t, f), _FLOATS, 4) for t in (scales, slope))
            for p in range(pixels):
                shift = w.splat(w.load(w.plus(box, 4 * p), _FLOAT, 4))
                shift = w.fma(shift, rise, w.load(w.at(table, (base, p)), _FLOATS, 4))
                y = w.fma(b.sitofp(b.load(totals[p]), _FLOATS), scale, shift)
                w.store(y, w.at(out, (own, p)), 4)
            return context.get_dummy_value()

        one = _longs(1)
        kinds = (v, *one, a, *_longs(5), scales, slope, *one, box, *one, table, *_longs(2), out, *_longs(2))
        return types.void(*kinds), write

    return tile


@_intrinsic
def to_planes(typing, x, i, step, valid, fill, out, j, plane):  # type: ignore[no-untyped-def]
    """Turn 16 pixels of 16 channels, ``step`` bytes apart, into 16 rows (``plane`` bytes apart) of 16 pixels.

    From the ``valid``-th pixel on nothing is read and ``fill`` is written.
    """

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        w, b = _Writer(context, builder, signature.args, values), builder
        x, i, step, valid, fill, out, j, plane = w.args
        x, out, last = b.add(x, i), b.add(out, j), b.sub(valid, _LONG(1))
        rows = []
        for p in range(LANES):
            there = b.select(b.icmp_signed("<", _LONG(p), valid), _LONG(p), last)
            rows.append(w.load(b.add(x, b.mul(step, there)), _bytes(LANES)))
        low = [n for q in range(8) for n in (q, q + 16)]
        for _ in range(4):  # each perfect shuffle moves one bit of the place from pixel to channel
            pairs = list(zip(rows[:8], rows[8:], strict=True))
            rows = [w.shuffle(*pair, order) for pair in pairs for order in (low, [n + 8 for n in low])]
        inside = b.icmp_signed(
            "<", ir.Constant(_bytes(LANES), list(range(LANES))), w.splat(b.trunc(valid, _BYTE), LANES)
        )
        margin = w.splat(b.trunc(fill, _BYTE), LANES)
        for c in range(LANES):
            w.store(b.select(inside, rows[c], margin), w.at(out, (plane, c)))
        return context.get_dummy_value()

    return types.void(x, *_longs(4), out, *_longs(2)), write


@_intrinsic
def gather_fours(typing, x, i, step, groups, keep, out, j, place):  # type: ignore[no-untyped-def]
    """For each group of four pixels put their 16 channels side by side: ``out[channel, pixel]`` (64 bytes).

    Pixels are ``step`` bytes apart, results ``place``. ``keep``: mask over the four pixels of the last group.
    """

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        w, b = _Writer(context, builder, signature.args, values), builder
        x, i, step, groups, keep, out, j, place = w.args
        x, out, last = b.add(x, i), b.add(out, j), b.sub(groups, _LONG(1))
        four = b.mul(step, _LONG(4))
        order = [LANES * p + c for c in range(LANES) for p in range(4)]
        both = list(range(2 * LANES))
        with w.loop(groups) as group:
            here = b.add(x, b.mul(group.index, four))
            own = [w.load(w.at(here, (step, p)), _bytes(LANES)) for p in range(4)]
            all_ = w.shuffle(w.shuffle(own[0], own[1], both), w.shuffle(own[2], own[3], both), list(range(4 * LANES)))
            mask = b.select(b.icmp_signed("==", group.index, last), keep, _LONG(-1))
            kept = b.and_(b.bitcast(w.shuffle(all_, all_, order), _INTS), w.splat(b.trunc(mask, _INT)))
            w.store(kept, b.add(out, b.mul(group.index, place)))
        return context.get_dummy_value()

    return types.void(x, *_longs(4), out, *_longs(2)), write
