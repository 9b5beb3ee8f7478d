"""Compiled kernels on the CPU for :class:`fractrain.numerics.scaled.Scaled`.

They serve formats of that very class with a known scale rule, on dense float32 matrices whose blocks end with each
matrix; a probe once per process checks that they give the plain path's bits on this machine.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.tensors import parallel as in_parallel
from fractrain.kernels.cpu.uniform import load_fused
from fractrain.numerics.backend import ScaledBlocks, ScaledFormat
from fractrain.numerics.blocks import PerBlock, Place
from fractrain.numerics.elements import E2M1, E4M3, INT8, Minifloat
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import E8M0, Multiplier, Scale, Scales, Step, TwoLevel
from fractrain.numerics.stochastic_rounding import NoiseKey

log = logging.getLogger(__name__)

PARTS = 64  # pieces of work, at most
ROW = 4096  # elements of a row that short rows are taken together to
MODES = {"floor": 0, "rceil": 1, "ceil": 2, "even": 3}
BYTE_SCALES = 3  # rules from this one on keep a byte per scale
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Grid:
    """How matrices are walked: rows, columns, rows of a band, columns of a block."""

    rows: int
    columns: int
    high: int
    width: int

    @property
    def counts(self) -> tuple[int, int]:
        """Bands, and blocks in each."""
        return -(-self.rows // self.high), -(-self.columns // self.width)


def quantize_fused(
    fmt: ScaledFormat, m: torch.Tensor, noise: NoiseKey | None, known: torch.Tensor | None, place: Place
) -> ScaledBlocks | None:
    """See :meth:`fractrain.numerics.backend.Backend.quantize_blocks`."""
    kernels = _kernels(fmt, m, place, noise)
    if kernels is None:
        return None
    rows, columns = m.shape[0] * m.shape[1], m.shape[2]
    parallel = in_parallel(m)
    data = m.detach().reshape(rows, columns).contiguous().numpy()  # copies what is strided: weights by kernel place
    amax = whole = None
    if fmt.block.rows == 0 or fmt.scale.whole or known is not None:
        long = _long_rows(data).view(np.int32)
        tops = np.empty((min(PARTS, len(long)), long.shape[1]), np.int32)
        kernels.column_tops[parallel](long, len(tops), tops)
        amax = torch.from_numpy(tops.reshape(-1, columns).max(0).view(np.float32))
        whole = amax.amax()
        whole = whole if place.reduce is None else place.reduce(whole)
    if fmt.block.rows == 0:
        assert amax is not None
        assert whole is not None
        given = fmt.scale.scales(_column_amax(fmt, amax, known, place), fmt.element, whole)
        grid = _Grid(rows, columns, rows, fmt.block.cols or columns)
        return _run(kernels, parallel, data, grid, fmt, _rule(fmt.scale, fmt.element, None), given, noise, place, whole)
    tensor = None
    if isinstance(fmt.scale, TwoLevel):
        assert whole is not None
        tensor = whole * fmt.scale.margin / (fmt.scale.bound * fmt.element.max)
    grid = _grid(rows, columns, _high(fmt, m.shape), fmt.block.cols)
    rule = _rule(fmt.scale, fmt.element, tensor)
    return _run(
        kernels, parallel, data.reshape(grid.rows, grid.columns), grid, fmt, rule, None, noise, place, whole, tensor
    )


def restore_fused(
    fmt: ScaledFormat, codes: torch.Tensor, back: torch.Tensor, shape: torch.Size, place: Place
) -> torch.Tensor | None:
    """Values of matrices of a shape from their codes and scales; None where the plain path must."""
    if place.kernels == "reference" or codes.device.type != "cpu" or type(fmt).__name__ not in SERVED:
        return None
    module = load_blocks() if place.kernels == "fused" else probed_blocks()
    rows, columns = shape[0] * shape[1], shape[2]
    paired = fmt.element.code_bits == 4
    if module is None or _straddles(fmt, shape) or (paired and columns % 2):
        return None
    values = blocks.empty(shape)
    if fmt.block.rows:
        grid = _grid(rows, columns, _high(fmt, shape), fmt.block.cols)
        scales = back.reshape(grid.counts).numpy()
    else:  # the same scales for every row: long rows, and as many bands as there are pieces of work
        many = _together(rows, columns)
        high = -(-(rows // many) // PARTS)
        grid = _Grid(rows // many, columns * many, high, 1)
        spread = back.reshape(-1).repeat_interleave(fmt.block.cols or columns)[:columns].repeat(many)
        scales = spread.expand(grid.counts).contiguous().numpy()
    module.restore[in_parallel(values)](
        codes.numpy().reshape(grid.rows, -1), fmt.element.table().numpy(), grid.high, grid.width, scales,
        values.numpy().reshape(grid.rows, grid.columns),
    )  # fmt: skip
    return values


SERVED = ("Scaled", "FourOverSix", "Eden")  # whose codes are restored alike


def _kernels(fmt: ScaledFormat, m: torch.Tensor, place: Place, noise: NoiseKey | None) -> ModuleType | None:
    """The compiled kernels where they serve, else None."""
    if place.kernels == "reference" or m.device.type != "cpu" or m.dtype != torch.float32:
        return None
    if type(fmt).__name__ != "Scaled" or type(fmt.scale) not in (Multiplier, Step, E8M0, TwoLevel) or not m.numel():
        return None
    odd = place.keep and fmt.element.code_bits == 4 and m.shape[2] % 2 != 0
    if (
        _straddles(fmt, m.shape)
        or odd
        or fmt.element.overflow != "saturate"
        or (noise is not None and not isinstance(noise.k0, int))
    ):
        return None
    return load_blocks() if place.kernels == "fused" else probed_blocks()


def _high(fmt: ScaledFormat, shape: torch.Size) -> int:
    """Rows of a block of matrices ``[G, R, C]``, which has no more than there are."""
    return min(fmt.block.rows, shape[1])


def _straddles(fmt: ScaledFormat, shape: torch.Size) -> bool:
    """Whether blocks of one matrix would reach into the next."""
    high = _high(fmt, shape)
    return shape[0] > 1 and high != 1 and (high == 0 or shape[1] % high != 0)


def _grid(rows: int, columns: int, high: int, cols: int) -> _Grid:
    """Short rows whose blocks end with them are taken several at a time."""
    width = min(cols or columns, columns)
    if high == 1 and columns % width == 0:
        many = _together(rows, columns)
        return _Grid(rows // many, columns * many, 1, width)
    return _Grid(rows, columns, high, width)


def _together(rows: int, columns: int) -> int:
    """How many short rows are taken as one long one."""
    many = max(ROW // columns, 1)
    while rows % many:
        many -= 1
    return many


def _long_rows(data: Array) -> Array:
    """The same elements in the same order, in rows long enough to be fast."""
    return data.reshape(len(data) // _together(*data.shape), -1)


def _column_amax(fmt: ScaledFormat, amax: torch.Tensor, known: torch.Tensor | None, place: Place) -> torch.Tensor:
    """Amax of blocks that span all rows, as the plain path has them: ``[1, 1, 1, blocks, 1]``."""
    width = fmt.block.cols or len(amax)
    padded = torch.nn.functional.pad(amax, (0, -len(amax) % width)).view(-1, width).amax(1)
    if place.reduce is not None and not place.rows:
        padded = place.reduce(padded)
    if known is not None and len(padded) == 1:
        padded = known.reshape(1).to(torch.float32)
    return padded.view(1, 1, 1, -1, 1)


def _rule(scale: Scale, element: Minifloat, tensor: torch.Tensor | None) -> tuple[Any, ...]:
    """A scale rule as the kernels take it: (rule, mode, margin, largest, its exponent, mantissa bits, tensor scale)."""
    number = {Multiplier: 1, Step: 2, E8M0: 3, TwoLevel: 4}[type(scale)]
    mode = MODES[scale.mode] if isinstance(scale, E8M0) else int(isinstance(scale, Multiplier) and scale.power_of_two)
    margin = np.float64(scale.margin) if isinstance(scale, Multiplier) else np.float32(scale.margin)
    return (
        number, mode, margin, np.float32(element.max), np.int32(element.max_exponent), element.mantissa_bits,
        np.float32(0.0 if tensor is None else float(tensor)),
    )  # fmt: skip


def _run(
    kernels: ModuleType, parallel: bool, data: Array, grid: _Grid, fmt: ScaledFormat, rule: tuple[Any, ...],
    given: Scales | None, noise: NoiseKey | None, place: Place, whole: torch.Tensor | None,
    tensor: torch.Tensor | None = None,
) -> ScaledBlocks:  # fmt: skip
    """Round, with scales by the rule or ``given`` ones, and pack codes and scales where they are wanted."""
    e, (bands, across) = fmt.element, grid.counts
    byte, halved = rule[0] >= BYTE_SCALES, e.code_bits == 4
    kept = np.empty((bands, across if byte else 0), np.uint8)
    wide = np.empty((bands, 0 if byte else across), np.float32)
    high, buffer = grid.high, None
    if given is not None:
        data = _long_rows(data)
        rule, high = (0, *rule[1:]), -(-len(data) // PARTS)
    values, codes = blocks.empty(data.shape), np.empty((0, data.shape[1]), np.uint8)
    if place.keep:
        count = -(-data.size // 2) if halved else data.size
        buffer = blocks.empty((count + kept.nbytes + wide.nbytes,), torch.uint8)
        codes = (blocks.empty((data.size,), torch.uint8) if halved else buffer[:count]).numpy().reshape(data.shape)
    factors = np.empty((2, data.shape[1]), np.float32)
    if given is not None:
        for row, factor in enumerate((given.to, given.back)):
            spread = factor.reshape(-1).repeat_interleave(grid.width)[: grid.columns].numpy()
            factors[row] = np.tile(spread, len(factors[row]) // grid.columns)
    tops = np.empty(min(PARTS, -(-len(data) // high)), np.int32)
    kernels.round_blocks[parallel](
        data, data.view(np.int32), high, grid.width, rule, _element(e), factors, values.numpy(), codes, kept, wide,
        tops, _key(noise),
    )  # fmt: skip
    if buffer is not None:
        if halved:
            kernels.pair[parallel](codes.reshape(-1).view(np.uint16), buffer[:count].numpy())
        packed = (kept if byte else wide).reshape(-1).view(np.uint8)
        buffer[count:].copy_(given.packed.reshape(-1) if given is not None else torch.from_numpy(packed))
    if whole is None:
        whole = torch.tensor(tops.max(keepdims=True).view(np.float32)[0])
    return ScaledBlocks(values, buffer, tensor if given is None else given.tensor, whole)


def _element(e: Minifloat) -> tuple[Any, ...]:
    """An element as the kernels take it: mantissa bits, bits of its smallest normal, largest, 1 / step, sign."""
    lowest = np.int32((e.min_exponent + 127) << 23)
    return e.mantissa_bits, lowest, np.float32(e.max), np.float32(1 / e.step), np.int32(e.code_bits - 1)


def _key(noise: NoiseKey | None) -> tuple[bool, np.uint32, np.uint32, np.uint32]:
    if noise is None:
        return False, np.uint32(0), np.uint32(0), np.uint32(0)
    return True, np.uint32(int(noise.k0)), np.uint32(int(noise.k1)), np.uint32(noise.base)


@lru_cache(maxsize=1)
def load_blocks() -> ModuleType | None:
    """Import the kernels, or return None where numba is absent or cannot work."""
    if load_fused() is None:
        return None
    from fractrain.kernels.cpu import quantize_blocks

    return quantize_blocks


@lru_cache(maxsize=1)
def probed_blocks() -> ModuleType | None:
    """Return the kernels if they give exactly the plain path's bits on this machine, else None."""
    module = load_blocks()
    if module is None:
        return None
    x = torch.randn(37, 48, generator=torch.Generator().manual_seed(0)) * 3.0
    for fmt in (
        Scaled(PerBlock(1, 32), "stochastic", element=E4M3, scale=E8M0()),
        Scaled(PerBlock(32, 1), element=E2M1, scale=E8M0(mode="rceil")),
        Scaled(PerBlock(16, 16), "stochastic", element=E2M1, scale=TwoLevel()),
        Scaled(PerBlock(1, 0), element=INT8, scale=Step()), Scaled(PerBlock(0, 1), element=E4M3),
    ):  # fmt: skip
        key = None if fmt.rounding == "nearest" else NoiseKey(123, 456, 7)
        plain = fmt.quantize(x, fmt.bits, key, None, Place(keep=True, kernels="reference"))
        fast = fmt.quantize(x, fmt.bits, key, None, Place(keep=True, kernels="fused"))
        assert plain.codes is not None
        assert fast.codes is not None
        same = torch.equal(plain.values, fast.values) and torch.equal(plain.codes.codes, fast.codes.codes)
        if not (same and torch.equal(plain.codes.values(), fast.codes.values())):
            log.warning("fused casts to blocks differ from the plain path on this machine; using the plain path")
            return None
    return module
