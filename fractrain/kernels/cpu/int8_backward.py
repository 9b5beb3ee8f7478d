"""EB and GC of a convolution on integer codes, summed by AVX512's VNNI instructions where the processor has them.

With errors ``E = r (e - z) + m`` (codes ``e`` in 0..255, integer ``z``, ``|m| <= r/2``), weights ``W = t v + o`` (``t``
and ``o`` per filter, see :mod:`fractrain.kernels.cpu.int8`) and activations ``A = s a + b``, sums over what lies
inside::

    dA = r sum_f t (sum_k (e - z) v) + r sum_f o (sum_k (e - z)) + m sum W
    dW = r s sum (e - z) a + m s sum a + b (r sum (e - z) + m count)

EB sums over filters whose scales differ, so only its sums over the kernel are integers (exact); those over the filters
are float32, fewer roundings than a float32 convolution has. GC is exact up to one rounding at the end: its sums are
integers, put together in float64, and it depends neither on the number of threads nor on the order of samples.

oneDNN has no such products; the kernels are in :mod:`fractrain.kernels.cpu.int8_backward_loops`. Each geometry is
tried once per
process, on the most extreme codes as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.cpu_features import byte_products, parts_of, runs_exactly
from fractrain.kernels.cpu.int8 import MIN_MACS, filter_grid, samples_by_grid
from fractrain.kernels.cpu.tensors import nhwc
from fractrain.kernels.cpu.uniform import probed
from fractrain.kernels.geometry import Geometry
from fractrain.numerics.backend import Quantized
from fractrain.numerics.grid import Grid, RowGrid

MOST_WEIGHTS = 1 << 20  # beyond, sums per thread take more memory than is worth it
MOST_TERMS = (2**31 - 1) // (255 * 128)  # that int32 holds whatever the codes

# Number of axes and type of each array that a product has and the other has not
_INPUT_KINDS = ((5, np.int8), (1, np.float32), (1, np.float32), (3, np.float32), (3, np.float32), (3, np.float32))
_WEIGHT_KINDS = ((2, np.uint64), (6, np.int8), (5, np.int32), (5, np.int64), (4, np.int32), (4, np.int32))


@dataclass(frozen=True)
class Plan:
    """Which products of a geometry run on integer codes."""

    geometry: Geometry
    eb: bool
    gc: bool

    def only(self, eb: bool, gc: bool) -> Plan:
        """The part of it that is wanted."""
        return Plan(self.geometry, self.eb and eb, self.gc and gc)

    def __bool__(self) -> bool:
        return self.eb or self.gc


@lru_cache(maxsize=4096)
def possible(g: Geometry) -> Plan:
    """Which products of a geometry are worth it, exact and at hand."""
    if g.macs < MIN_MACS or not byte_products():
        return Plan(g, False, False)
    plan = _plan(g)
    if not plan or runs_exactly(lambda: _exact(plan)):
        return plan
    return Plan(g, False, False)


def _plan(g: Geometry) -> Plan:
    """Which products the kernels are written for."""
    (channels, _, width), (rows, columns), weights = g.image, g.output, g.terms * g.filters
    fits = channels % 16 == 0 and g.filters % 16 == 0 and weights <= MOST_WEIGHTS
    within = all(p < k for p, k in zip(g.padding, g.kernel, strict=True))
    eb = g.stride == (1, 1) and g.kernel in ((3, 2), (3, 3), (3, 4)) and within and width >= 4
    gc = g.kernel[1] <= 3 and rows * columns <= MOST_TERMS
    return Plan(g, fits and eb, fits and gc)


def _exact(plan: Plan) -> bool:
    """Whether the products of random and of the most extreme codes are right, on integers that float32 holds."""
    g = plan.geometry
    gen = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (2, g.filters, *g.output), dtype=torch.uint8, generator=gen)
    a = torch.randint(0, 256, (2, *g.image), dtype=torch.uint8, generator=gen)
    w = torch.randint(0, 256, (g.filters, g.image[0], *g.kernel), dtype=torch.uint8, generator=gen)
    small[1], a[1], w[::2] = 255, 255, 0
    e, a = (t.contiguous(memory_format=torch.channels_last) for t in (small, a))
    for offset in (-101.0, 0.0):
        grids = ((e, 2, offset), (a, 2, 0.0), (w, g.filters, -128.0))
        (qe, ve), (qa, va), (qw, vw) = ((_plain(t, n, o), t.double() + o) for t, n, o in grids)
        da, dw = products(qe, qa, qw, plan)
        args = (None, g.stride, g.padding, (1, 1), False, (0, 0), 1, [plan.eb, plan.gc, False])
        right = torch.ops.aten.convolution_backward(ve, va, vw, *args)
        for got, exact in zip((da, dw), right, strict=False):
            if got is not None and not _close(got, exact):
                return False
    return True


def _close(got: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether two results agree but for the rounding of float32 sums over filters."""
    return got.shape == exact.shape and bool((got - exact).abs().max() <= 2e-6 * exact.abs().max())


def _plain(codes: torch.Tensor, rows: int, offset: float) -> Quantized:
    """Codes on a grid of step 1."""
    module = probed()
    assert module is not None
    zeros = np.zeros(rows, np.float32)
    grid = RowGrid(module, False, zeros + 1, zeros + np.float32(offset), zeros, zeros + 255)
    one, low, top = torch.ones(()), torch.zeros(()), torch.tensor(255.0)
    return Quantized(codes, Grid(one, torch.tensor(offset), low, top), "fused", grid)


def products(
    e: Quantized, a: Quantized | None, w: Quantized | None, plan: Plan
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """EB and GC as ``want`` says.

    Args:
        e: error ``[N, F, H', W']`` on one grid, or one per sample, in channels-last memory.
        a: activation ``[N, C, H, W]``, likewise; for GC.
        w: weight ``[F, C, kh, kw]``, one grid per filter or one; for EB.
        plan: a part of what is :func:`possible`.

    Returns:
        Gradients of input (channels-last memory) and weight, float32; None where not wanted. Samples whose error has
        no codes are in neither: their place in the input's is not written.
    """
    g = plan.geometry
    da = blocks.empty((e.codes.shape[0], *g.image) if plan.eb else (0, 1, 1, 1), channels_last=True)
    first, *others = samples_by_grid(e, a) if plan.gc and a is not None else samples_by_grid(e)
    total = _products(e, a, w, plan, first, da)
    for which in others:
        total = total + _products(e, a, w, plan, which, da)
    dw = torch.from_numpy(total.astype(np.float32, copy=False)).permute(0, 3, 1, 2) if plan.gc else None
    return da if plan.eb else None, dw


def _products(
    e: Quantized, a: Quantized | None, w: Quantized | None, plan: Plan, which: np.ndarray, da: torch.Tensor
) -> np.ndarray:
    """EB of samples of one grid into ``da``; return their GC ``[F, kh, kw, C]`` in float64 (if it is wanted)."""
    from fractrain.kernels.cpu import int8_backward_loops as fused_backward  # needs numba

    g, first = plan.geometry, int(which[0])
    assert e.rows is not None
    scale, _, zero, rest = e.rows.steps(first)
    (rows, columns), n, parts = g.output, len(which), min(parts_of(e.codes), len(which))
    top = g.kernel[0] - 1 - g.padding[0] if plan.eb else 0
    # by torch, here and below, whose memory is so aligned that vectors do not straddle cache lines
    planes = torch.empty(parts, *_planes(plan), dtype=torch.uint8).numpy()
    inputs = _input_arrays(w, e.rows, zero, rest, planes.shape, g) if plan.eb else _nothing(_INPUT_KINDS)
    sums = _weight_arrays(parts, g) if plan.gc else _nothing(_WEIGHT_KINDS)
    left = fused_backward.LEFT - (g.kernel[1] - 1 - g.padding[1])
    codes = e.codes if a is None or not plan.gc else a.codes
    fused_backward.backward[parts > 1](
        nhwc(e.codes), nhwc(codes), which, zero, top, plan.eb, plan.gc,
        *inputs[:4], g.kernel, left, np.float32(scale), *inputs[4:], da.numpy().transpose(0, 2, 3, 1),
        g.stride, g.padding, max(1, MOST_TERMS // (rows * columns)), *sums, planes,
    )  # fmt: skip
    dw = np.empty((g.filters, *g.kernel, g.image[0]))
    if not plan.gc:
        return dw
    assert a is not None
    assert a.rows is not None
    fused_backward.finish_weights(*sums[3:], n, g.stride, g.padding, zero, scale, rest, *a.rows.steps(first)[:2], dw)
    return dw


@lru_cache(maxsize=4096)
def _planes(plan: Plan) -> tuple[int, int, int]:
    """Filters, rows and bytes per row of one sample's error as the kernels read it."""
    from fractrain.kernels.cpu.int8_backward_loops import plane_row

    g, (rows, columns) = plan.geometry, plan.geometry.output
    return g.filters, g.image[1] + g.kernel[0] - 1 if plan.eb else rows, plane_row(columns)


def _nothing(kinds: tuple[tuple[int, type], ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.zeros((1,) * axes, kind) for axes, kind in kinds)


def _input_arrays(
    w: Quantized | None, like: RowGrid, zero: int, rest: float, planes: tuple[int, ...], g: Geometry
) -> tuple[np.ndarray, ...]:
    """For EB: packed weights, their scales, what is left of their offsets, table of ``rest``; room for sums."""
    assert w is not None
    from fractrain.kernels.cpu import int8_backward_loops as fused_backward

    channels, height, width = g.image
    rows = w.rows or filter_grid(w, like)
    shift, leftover = rows.module.centre(rows.scale, rows.offset, rows.qmin, rows.qmax)
    packed = torch.empty(channels // 16, g.filters, g.kernel[0] + 1, 16, 4, dtype=torch.int8).numpy()
    sums, table = np.empty((*g.kernel, channels)), np.empty((height, width, channels), np.float32)
    words = packed.view(np.int32)[..., 0]
    fused_backward.pack_weights(nhwc(w.codes), shift, rows.scale, leftover, np.int32(zero), words, sums)
    fused_backward.input_table(sums, rest, g.padding, g.output, table)
    parts, _, lines, columns = planes
    return packed, rows.scale, leftover.astype(np.float32), table, *np.empty((2, parts, lines, columns), np.float32)


def _weight_arrays(parts: int, g: Geometry) -> tuple[np.ndarray, ...]:
    """For GC: room for a line of the image, the packed image, and sums; what is not written later must be zero."""
    (channels, height, width), (rows, columns) = g.image, g.output
    groups = -(-columns // 4)
    pixels = max((4 * groups - 1) * g.stride[1] + g.kernel[1], width + 2 * g.padding[1])
    weights = (parts, g.kernel[0], g.filters, g.kernel[1], channels)
    packed = torch.zeros((parts, channels // 16, height + 2 * g.padding[0], groups, g.kernel[1], 64), dtype=torch.int8)
    return (
        np.zeros((parts, pixels * channels // 8), np.uint64), packed.numpy(),
        np.zeros(weights, np.int32), np.zeros(weights, np.int64),
        np.zeros((parts, rows, columns, g.filters), np.int32), np.zeros((parts, height, width, channels), np.int32),
    )  # fmt: skip
