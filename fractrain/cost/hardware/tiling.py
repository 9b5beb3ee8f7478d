"""The best tiling of one matrix product or convolution on an array with three double-buffered memories.

All tilings with sides that are powers of two and all orders of the five loops are tried at once, in arrays of numpy;
chosen is the one with the fewest cycles, then with the least energy. Used by ``bitfusion``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Two = tuple[int, int]

LOOPS = ("batch", "rows", "columns", "reduced", "produced")
WALKS = {"weights": (3, 4), "inputs": (0, 1, 2, 3), "outputs": (0, 1, 2, 4)}
"""Loops in which a tensor goes on to other elements; in the others the same ones are needed again."""


@dataclass(frozen=True)
class Problem:
    """One product.

    Attributes:
        kernel, stride, out_size: height and width; a matrix product has a 1x1 kernel and one position.
        reduced, produced: channels that are summed over, and that are made.
        batch: samples, all of which meet the same weights.
        bits1, bits2: widths of inputs and weights.
        unrolled: the kernel's positions count as channels of the input (im2col).
    """

    kernel: Two
    stride: Two
    out_size: Two
    reduced: int
    produced: int
    batch: int
    bits1: int
    bits2: int
    unrolled: bool = False


@dataclass(frozen=True)
class FusedArray:
    """An array of ``rows x columns`` fused units.

    Attributes:
        rows: units that add up products of different reduced channels.
        columns: units for different produced channels.
        bus: bits a cycle to and from DRAM.
        weight_bits, input_bits, output_bits: sizes of the buffers; half of each holds what is worked on.
        sum_bits: width of a partial sum in buffer and DRAM.
        core: energy of a cycle of the whole array, nJ.
        read, write: energy of a bit of the weights', inputs' and outputs' buffer, nJ.
        dram: energy of a bit from or to DRAM, nJ.
    """

    rows: int
    columns: int
    bus: int
    weight_bits: int
    input_bits: int
    output_bits: int
    sum_bits: int
    core: float
    read: tuple[float, float, float]
    write: tuple[float, float, float]
    dram: float


@dataclass(frozen=True)
class BestTiling:
    """The best tiling's cost.

    Attributes:
        cycles: in all.
        stalls: of these, those that wait for DRAM.
        core, sram, dram: energy, nJ.
    """

    cycles: int
    stalls: int
    core: float
    sram: float
    dram: float


def products_per_cycle(bits1: int, bits2: int) -> tuple[int, int]:
    """Return products that a fused unit makes in a cycle, and cycles that it takes for them.

    Below 8 bits a unit splits; what is wider is cut into pieces of at most 8 bits, which take turns.
    """
    pieces = [-(-bits // 8) for bits in (bits1, bits2)]
    parts = [8 // max(-(-bits // n), 2) for bits, n in zip((bits1, bits2), pieces, strict=True)]
    return parts[0] * parts[1], pieces[0] * pieces[1]


@lru_cache(maxsize=100_000)
def best_tiling(p: Problem, m: FusedArray) -> BestTiling | None:
    """Return the cost of the best tiling; None where not even the smallest tiles fit.

    The layers of a network and the widths of a run repeat, so answers are kept.
    """
    split, turns = products_per_cycle(p.bits1, p.bits2)
    tiles = _tiles(p, m)
    batch, rows, columns, reduced, produced = tiles
    taps, wide = p.kernel[0] * p.kernel[1], m.rows * split
    inputs = reduced * batch * p.bits1
    if p.unrolled:
        inputs = inputs * rows * columns * taps
    else:
        inputs = inputs * (p.kernel[0] + (rows - 1) * p.stride[0]) * (p.kernel[1] + (columns - 1) * p.stride[1])
    bits = {
        "weights": _up(taps * reduced, wide) * wide * produced * p.bits2,
        "inputs": inputs,
        "outputs": rows * columns * _up(produced, m.columns) * m.columns * batch * m.sum_bits,
    }
    half = {"weights": m.weight_bits // 2, "inputs": m.input_bits // 2, "outputs": m.output_bits // 2}
    fits = np.logical_and.reduce([bits[name] <= half[name] for name in bits])
    if not fits.any():
        return None
    tiles, bits = tiles[:, fits], {name: b[fits] for name, b in bits.items()}
    batch, rows, columns, reduced, produced = tiles
    whole = np.array([p.batch, *p.out_size, p.reduced, p.produced])
    counts = _up(whole[:, None], tiles)
    number = counts.prod(axis=0)
    steps = _up(taps * reduced, wide) if p.unrolled else taps * _up(reduced, wide)
    compute = number * batch * rows * columns * _up(produced, m.columns) * steps * turns

    traffic, fill = {}, {}
    for name in bits:
        traffic[name], fill[name] = _traffic(counts, bits[name], half[name], WALKS[name])
    dram = traffic["weights"] + traffic["inputs"] + 2 * traffic["outputs"]  # sums are read and written
    first, last = fill["weights"] + fill["inputs"] + fill["outputs"], fill["outputs"]
    waits = np.maximum(0, _up(dram - first - last, m.bus) - compute) + _up(first, m.bus) + _up(last, m.bus)
    cycles = compute + waits

    positions = number * batch * rows * columns
    macs, sums = positions * produced * reduced * taps, positions * produced * m.sum_bits
    sram = macs * (p.bits2 * m.read[0] + p.bits1 * m.read[1]) + sums * (m.read[2] + m.write[2])
    sram = sram + traffic["weights"] * m.write[0] + traffic["inputs"] * m.write[1]
    sram = sram + traffic["outputs"] * (m.read[2] + m.write[2])
    core, off = compute * m.core, dram * m.dram
    fewest = np.argwhere(cycles == cycles.min())
    order, tile = min(fewest, key=lambda at: core[at[1]] + sram[at[0], at[1]] + off[at[0], at[1]])
    return BestTiling(
        int(cycles[order, tile]), int(waits[order, tile]), float(core[tile]), float(sram[order, tile]),
        float(off[order, tile]),
    )  # fmt: skip


def _traffic(counts: Integers, bits: Integers, half: int, walks: tuple[int, ...]) -> tuple[Integers, Integers]:
    """Bits that pass between DRAM and a buffer, and those that must be there before the first cycle.

    From the innermost loop outward: a tensor is fetched anew in every turn of a loop that walks it, and in every turn
    of any other once it has outgrown its half of the buffer.

    Args:
        counts: turns of each loop ``[5, tilings]``.
        bits: of a tile ``[tilings]``.
        half: bits of the half buffer.
        walks: loops that walk the tensor.

    Returns:
        Two arrays ``[orders, tilings]``.
    """
    orders = np.array(list(_orders(bool((counts[1] == counts[2]).all()))))
    total = np.broadcast_to(bits, (len(orders), len(bits))).copy()
    fill, reused = total.copy(), np.ones(total.shape, dtype=bool)
    for place in range(len(LOOPS) - 1, -1, -1):
        loop = orders[:, place]
        walked = np.isin(loop, walks)[:, None]
        total = np.where(walked | ~reused, total * counts[loop], total)
        reused &= total <= half
        fill = np.where(walked & reused, total, fill)
    return total, fill


@lru_cache(maxsize=2)
def _orders(square: bool) -> tuple[tuple[int, ...], ...]:
    """Orders of the loops, outermost first; where rows and columns are alike, only one of two that differ in them."""
    every = permutations(range(len(LOOPS)))
    return tuple(o for o in every if not square or o.index(1) < o.index(2))


def _tiles(p: Problem, m: FusedArray) -> Integers:
    """Sides of all tiles ``[5, tilings]``: powers of two or the whole, as many rows as columns."""
    squares = [(min(s, p.out_size[0]), min(s, p.out_size[1])) for s in _sides(max(p.out_size), 1)]
    found = product(_sides(p.batch, 1), squares, _sides(p.reduced, 1), _sides(p.produced, m.columns))
    return np.array([(b, *square, i, o) for b, square, i, o in found], dtype=np.int64).T


def _sides(whole: int, unit: int) -> Iterator[int]:
    side = unit
    while side < whole:
        yield side
        side *= 2
    yield whole


def _up(a: Integers, b: Integers | int) -> Integers:
    """Quotient, rounded up."""
    up: Integers = -(-a // b)
    return up
