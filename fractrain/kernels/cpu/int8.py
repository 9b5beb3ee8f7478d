"""FW of a convolution on integer codes: unsigned 8-bit activations times signed 8-bit weights, summed in int32.

With activations ``A = s (u - z) + m`` (codes ``u`` in 0..255; the integer ``z`` and ``|m| <= s/2`` take up the offset,
and ``m`` is 0 behind a ReLU and on symmetric grids) and filters ``W = t v + o`` (codes ``v`` in -128..127; ``t`` and
``o`` per filter), and with sums over the places of the kernel that lie inside the image, since zero padding adds
nothing::

    sum A W  =  s t sum (u - z) v  +  s o sum (u - z)  +  m sum W

The first sum is the int8 convolution, exact as long as int32 does not overflow; the second a box sum of integers that
is the same for all filters; the third does not depend on the sample. Only the last few float32 operations round, so
the result is nearer to exact arithmetic than a float32 convolution of the same operands - and not bit-equal to it.

The sums are made by :mod:`fractrain.kernels.cpu.int8_forward` where processor and geometry allow, else by oneDNN.
Whether
its int8 convolutions exist, and are exact, depends on build and processor (without VNNI instructions pairs of products
saturate at 16 bits). So every geometry is tried once per process, on the most extreme codes as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from fractrain.kernels.cpu import int8_forward as integer_forward
from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.cpu_features import runs_exactly
from fractrain.kernels.cpu.tensors import nhwc
from fractrain.kernels.cpu.uniform import probed
from fractrain.kernels.geometry import Geometry
from fractrain.numerics.backend import Quantized
from fractrain.numerics.formats import Affine, PerAxis, PerTensor, Symmetric
from fractrain.numerics.grid import Grid, RowGrid
from fractrain.numerics.precision import Operand

MIN_MACS = 1 << 19  # per sample; below, what comes with the int8 convolution costs more than it saves
MAX_TERMS = (2**31 - 1) // (255 * 128)  # products that int32 holds whatever the codes

log = logging.getLogger(__name__)


def fit_int8(a: Operand, w: Operand) -> bool:
    """Whether the operands of FW have codes of at most 8 bits on grids per tensor (A) and per filter or tensor (W)."""
    return tensor_fits_int8(a) and weight_fits_int8(w)


def tensor_fits_int8(operand: Operand) -> bool:
    """Whether an activation or error has codes of at most 8 bits on one grid, or on one per sample."""
    if isinstance(operand.bits, torch.Tensor):
        return _per_sample(operand) and operand.widest <= 8
    return _narrow(operand) and operand.format.granularity == PerTensor()


def some_samples_fit_int8(operand: Operand) -> bool:
    """As :func:`tensor_fits_int8`; with one width per sample it is enough that some have at most 8 bits."""
    if isinstance(operand.bits, torch.Tensor):
        return _per_sample(operand) and int(operand.bits.min()) <= 8
    return tensor_fits_int8(operand)


def weight_fits_int8(operand: Operand) -> bool:
    """Whether a weight has codes of at most 8 bits on one grid, or one per filter."""
    return _narrow(operand) and operand.format.granularity in (PerTensor(), PerAxis(0))


def _per_sample(operand: Operand) -> bool:
    bits, form = operand.bits, operand.format
    assert isinstance(bits, torch.Tensor)
    return bits.dim() == 1 and bits.device.type == "cpu" and type(form) is Affine and form.granularity == PerTensor()


def _narrow(operand: Operand) -> bool:
    return isinstance(operand.bits, int) and operand.bits <= 8 and type(operand.format) in (Affine, Symmetric)


@lru_cache(maxsize=4096)
def runs_on_int8(geometry: Geometry) -> bool:
    """Whether the int8 convolution of this geometry is worth it, exact and at hand.

    By the size of a sample, not of the batch, so that the number of workers does not change the path.
    """
    if geometry.macs < MIN_MACS or geometry.terms > MAX_TERMS or probed() is None:
        return False
    if _own(geometry):
        return True
    if geometry.image[0] == 1:  # seen in torch 2.15: wrong sums where strides are unequal and images narrow
        return False
    try:
        exact = _exact(geometry, _sums)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as problem:
        _report(f"are not available ({str(problem).splitlines()[0]})")
        return False
    if not exact:
        _report("are not exact on this machine")
    return exact


@lru_cache(maxsize=1)  # one line per process, not per layer
def _report(why: str) -> None:
    log.warning("int8 convolutions %s; using float32", why)


@lru_cache(maxsize=4096)
def _own(geometry: Geometry) -> bool:
    """Whether the sums are made by this package's own kernels."""
    return integer_forward.possible(geometry) and runs_exactly(lambda: _exact(geometry, _own_sums))


def _exact(g: Geometry, sums: Callable[..., torch.Tensor]) -> bool:
    gen = torch.Generator().manual_seed(0)
    u = torch.randint(0, 256, (3, *g.image), dtype=torch.uint8, generator=gen)
    v = torch.randint(-128, 128, (g.filters, g.image[0], *g.kernel), dtype=torch.int8, generator=gen)
    u[1:], v[::2] = 255, -128  # sums of the greatest magnitude in half of the filters
    u = u.contiguous(memory_format=torch.channels_last)
    for zero in (0, 101):
        got = sums(u, zero, 1.0, v, torch.ones(g.filters), g)
        want = F.conv2d(u.double() - zero, v.double(), None, g.stride, g.padding)
        dense = got.is_contiguous(memory_format=torch.channels_last)
        if not dense or got.shape != want.shape or not torch.equal(got, want.float()):
            return False
    return True


def _sums(u: torch.Tensor, zero: int, scale: float, v: torch.Tensor, scales: torch.Tensor, g: Geometry) -> torch.Tensor:
    """``scale * scales * sum (u - zero) v`` as float32 in channels-last memory, summed in int32."""
    stride, padding, dilation = list(g.stride), list(g.padding), [1, 1]
    w = torch.ops.onednn.qconv_prepack(v, scales, scale, zero, stride, padding, dilation, 1, list(u.shape))
    y: torch.Tensor = torch.ops.onednn.qconv_pointwise(
        u, scale, zero, w, scales, _zeros(g.filters), None, stride, padding, dilation, 1, 1.0, 0, torch.float32,
        "none", [], "",
    )  # fmt: skip
    return y


def _own_sums(
    u: torch.Tensor, zero: int, scale: float, v: torch.Tensor, scales: torch.Tensor, g: Geometry
) -> torch.Tensor:
    """As :func:`_sums`."""
    codes, shift = v.view(torch.uint8) ^ 128, np.full(g.filters, 128, np.int32)
    nothing = np.zeros((1, 1, g.filters), np.float32)
    return integer_forward.convolve(u, zero, codes, shift, (scales * scale).numpy(), nothing[0, 0], nothing, g)


@lru_cache(maxsize=256)
def _zeros(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int64)


def convolve(
    a: Quantized, w: Quantized, bias: torch.Tensor | None, g: Geometry, values: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Convolve a quantized activation ``[N, C, H, W]`` with a quantized weight ``[F, C, kh, kw]``.

    Args:
        a, w: operands that :func:`fit_int8` accepts.
        bias: per filter, or None.
        g: geometry that :func:`runs_on_int8`.
        values: of the weight, if at hand.

    Returns:
        float32 ``[N, F, H', W']`` in channels-last memory; None where compiled kernels did not quantize the activation.
    """
    own = _own(g)
    if a.rows is None or (a.rows.vary and not own):
        return None
    rows = w.rows or filter_grid(w, a.rows)
    shift, leftover = rows.module.centre(rows.scale, rows.offset, rows.qmin, rows.qmax)
    y = blocks.empty((a.codes.shape[0], g.filters, *g.output), channels_last=True) if own else None
    for which in samples_by_grid(a) if a.rows.vary else [np.arange(a.codes.shape[0])]:
        scale, _, zero, rest = a.rows.steps(int(which[0]))
        table = np.zeros((1, 1, g.filters), np.float32)
        if rest:
            values = w.values() if values is None else values
            inside = F.conv2d(torch.ones(1, 1, *g.image[1:]), values.sum(1, keepdim=True), None, g.stride, g.padding)
            table = inside[0].permute(1, 2, 0).numpy() * np.float32(rest)
        if bias is not None:
            table = table + bias.detach().numpy()
        slope, table = (scale * leftover).astype(np.float32), np.ascontiguousarray(table, np.float32)
        if own:
            scales = rows.scale * np.float32(scale)
            y = integer_forward.convolve(a.codes, zero, w.codes, shift, scales, slope, table, g, which, y)
            continue
        v = (w.codes - torch.from_numpy(shift.astype(np.uint8)).view(-1, 1, 1, 1)).view(torch.int8)  # wraps around
        y = _sums(a.codes, zero, scale, v, torch.from_numpy(rows.scale), g)
        if rest or bias is not None or slope.any():
            _add_affine(a, zero, slope, table, g, y)
    return y


def samples_by_grid(*operands: Quantized) -> list[np.ndarray]:
    """The samples by equal grids of all operands; those that have no codes are left out."""
    vary: list[RowGrid] = []
    for q in operands:
        if q.rows is not None and q.rows.vary:
            vary.append(q.rows)
    if not vary:
        return [np.arange(operands[0].codes.shape[0])]
    groups: dict[tuple[float, ...], list[int]] = {}
    coded = [r.coded for r in vary if r.coded is not None]
    left = set.intersection(*(set(c.tolist()) for c in coded)) if coded else None
    for i, key in enumerate(zip(*(p.tolist() for r in vary for p in (r.scale, r.offset)), strict=True)):
        if left is None or i in left:
            groups.setdefault(key, []).append(i)
    return [np.array(g) for g in groups.values()]


def filter_grid(w: Quantized, like: RowGrid) -> RowGrid:
    """The grid of a weight in plain memory layout, per filter."""
    g = w.grid if isinstance(w.grid, Grid) else w.grid()
    params = [p.reshape(-1).expand(w.codes.shape[0]).numpy() for p in (g.scale, g.offset, g.qmin, g.qmax)]
    return RowGrid(like.module, like.parallel, *map(np.ascontiguousarray, params))


def _add_affine(a: Quantized, zero: int, slope: np.ndarray, table: np.ndarray, g: Geometry, y: torch.Tensor) -> None:
    from fractrain.kernels.cpu.int8_affine_loops import add_affine

    assert a.rows is not None
    codes, out = nhwc(a.codes), nhwc(y)
    channels = g.image[0]
    words = codes.view(np.uint64) if channels % 8 == 0 else codes
    zeros = np.int32(zero * channels)
    add_affine[a.rows.parallel](words, zeros, slope, table, g.kernel, g.stride, g.padding, out)
