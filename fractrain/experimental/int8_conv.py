"""Convolutions on integer codes on a GPU: int8 products that tensor cores make exactly, by Triton kernels.

The algebra is that of :mod:`fractrain.kernels.cpu.int8`. With one grid per tensor of activations ``A = s (u - z) + m``
(codes ``u`` in 0..255, integer ``z``), weights ``W = t v + o`` about their zero (``v`` in -128..127; ``t`` and ``o``
per filter, or one) and sums over what lies inside the image, FW is::

    sum A W  =  s t sum (u - z) v  +  s o sum (u - z)  +  m sum W

Outside of the image the kernels read the code ``z``, which adds nothing to the first sum. EB is of the same form, where
the weight has one grid (else the scales would stand inside the sum); with strides it multiplies the zeros between the
errors as well. GC has, with ``e`` and ``a`` for what the grids give for code 128, and codes less 128, ``p`` and ``q``::

    sum E A  =  r s sum p q  +  r a sum p  +  s e sum q  +  e a sum 1

Sums are exact in int32. Where GC has too many terms for that, or too few weights to keep the device busy, it is cut
into parts, which are added in int64. The order is always the same; nothing is added by atomic operations. FW and EB
then round a few times in float32, GC once at its end. Grids stay on the device, and nothing waits for it but the trial,
once per geometry and product. **None of this has ever run on a GPU**; the sizes of tiles are guesses.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, Final, Literal

import torch
from torch.nn import functional as F

from fractrain.kernels.cpu.cpu_features import runs_exactly
from fractrain.kernels.cpu.int8 import MAX_TERMS
from fractrain.kernels.cpu.int8_backward import Plan
from fractrain.kernels.cuda.launch import EXACT, current
from fractrain.kernels.geometry import Geometry
from fractrain.numerics.backend import Quantized
from fractrain.numerics.grid import Grid

DEVICES: Final = {"cuda"}
LEAST_MACS: Final = 1 << 19  # products per sample, as on the CPU; where it pays on a GPU has never been measured
MOST_AT_ONCE: Final = (2**31 - 1) // (128 * 128)  # terms of GC that int32 holds whatever the codes
TILE: Final = (128, 128, 64)  # most outputs (GC: filters), filters (GC: weights per filter) and terms at a time
TRIAL: Final = 16  # samples of a trial, or as many times more as fill a tile: what is tried is what will be launched
PROGRAMS: Final = 512  # into which GC is cut, where it has so many terms: a few for each multiprocessor

Product = Literal["forward", "input", "weight"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvLauncher:
    """Launches the kernels of one module; tensors must be on one device, images in channels-last memory."""

    module: ModuleType

    def convolve(
        self, x: Quantized, w: Quantized, bias: torch.Tensor | None, g: Geometry, back: bool = False
    ) -> torch.Tensor:
        """FW, or EB with ``back``: float32 in channels-last memory."""
        codes, count = _dense(x.codes), x.codes.shape[0]
        channels, filters = (g.filters, g.image[0]) if back else (g.image[0], g.filters)
        size, source = (g.image[1:], g.output) if back else (g.output, g.image[1:])
        packed = self._pack(x, w, back)
        out = _channels_last((count, filters, *size), codes)
        outputs, terms = count * size[0] * size[1], channels * g.kernel[0] * g.kernel[1]
        tile = _tile(outputs, filters, terms)
        pixels = codes.permute(0, 2, 3, 1).sum(3, dtype=torch.int32)
        self._launch(
            "convolve", codes, (-(-outputs // tile["BLOCK_M"]), -(-filters // tile["BLOCK_N"])),
            x_ptr=codes, pixels_ptr=pixels, **packed, bias_ptr=out if bias is None else bias.detach(), out_ptr=out,
            **_grid("x", x), count=outputs, height=source[0], width=source[1], rows=size[0], columns=size[1],
            filters=filters, C=channels, **_shape(g), BACK=back, BIAS=bias is not None, **tile,
        )  # fmt: skip
        return out

    def correlate(self, e: Quantized, a: Quantized, g: Geometry) -> torch.Tensor:
        """GC: float32 ``[F, C, kh, kw]`` in channels-last memory."""
        errors, activations = _dense(e.codes), _dense(a.codes)
        (channels, height, width), (rows, columns), filters = g.image, g.output, g.filters
        places, terms = g.kernel[0] * g.kernel[1], errors.shape[0] * rows * columns
        tile = _tile(filters, channels if channels % 16 == 0 else places * channels, terms)
        tiles = -(-filters // tile["BLOCK_M"]), -(-places * channels // tile["BLOCK_N"])
        parts, chunk = _parts(terms, tiles[0] * tiles[1], tile["BLOCK_K"])
        sums = torch.empty((parts, filters + 1, places * (channels + 1)), dtype=torch.int32, device=errors.device)
        launches = [(0, tiles, tile, False)]
        if filters % tile["BLOCK_M"] == 0:  # the last row does not fit into tiles of filters: small tiles of its own
            launches.append((filters, (1, tiles[1]), {**tile, "BLOCK_M": 16}, False))
        counts = _tile(filters + 1, places, terms)
        programs = -(-(filters + 1) // counts["BLOCK_M"]), -(-places // counts["BLOCK_N"])
        launches.append((0, programs, {**counts, "BLOCK_K": tile["BLOCK_K"]}, True))
        for first, programs, blocks, marks in launches:
            self._launch(
                "correlate", errors, (*programs, parts),
                e_ptr=errors, a_ptr=activations, out_ptr=sums, first_row=first, filters=filters, count=terms,
                chunk=chunk, height=height, width=width, rows=rows, columns=columns, C=channels, **_shape(g),
                COUNTS=marks, **blocks,
            )  # fmt: skip
        out = torch.empty((filters, *g.kernel, channels), device=errors.device)
        self._launch(
            "finish", errors, (filters, -(-places * channels // 256)),
            sums_ptr=sums, out_ptr=out, **_grid("e", e), **_grid("a", a), filters=filters, parts=parts,
            C=channels, PLACES=places, BLOCK=256,
        )  # fmt: skip
        return out.permute(0, 3, 1, 2)

    def _pack(self, x: Quantized, w: Quantized, back: bool) -> dict[str, torch.Tensor]:
        """The kernel's arguments that belong to the weight, by name."""
        filters, channels, high, wide = w.codes.shape
        f, c, y_stride, x_stride = w.codes.stride()
        rows, terms = (channels, filters) if back else (filters, channels)
        device = w.codes.device
        packed = torch.empty((rows, high * wide, terms), dtype=torch.int8, device=device)
        add = torch.empty(rows, dtype=torch.int32, device=device)
        factor, slope = torch.empty(2, rows, device=device)
        values = torch.empty((high * wide, rows), device=device)
        made = {"add_ptr": add, "factor_ptr": factor, "slope_ptr": slope, "values_ptr": values}
        params = dict(zip(("scale", "offset", "qmin", "qmax"), _params(w), strict=True))
        self._launch(
            "pack", w.codes, (rows,), codes_ptr=w.codes, **{f"{n}_ptr": p for n, p in params.items()}, **_grid("x", x),
            out_ptr=packed, **made, **{f"{n}_step": int(p.numel() > 1) for n, p in params.items()},
            row_stride=c if back else f, term_stride=f if back else c, y_stride=y_stride, x_stride=x_stride,
            rows=rows, terms=terms, KH=high, KW=wide, BLOCK=256,
        )  # fmt: skip
        return {"w_ptr": packed, **made}

    def _launch(self, name: str, where: torch.Tensor, programs: tuple[int, ...], **args: Any) -> None:
        with current(where):
            getattr(self.module, name)[programs](**args, **EXACT)


def possible(g: Geometry, product: Product, device: torch.device) -> bool:
    """Whether a product of this geometry is worth it, at hand and exact on this device; tried once, which waits."""
    terms = {"forward": g.terms, "input": g.filters * g.kernel[0] * g.kernel[1], "weight": 1}[product]
    return device.type in DEVICES and g.macs >= LEAST_MACS and terms <= MAX_TERMS and _tried(g, product, device)


def plan(g: Geometry, eb: bool, gc: bool, device: torch.device) -> Plan:
    """Which of the wanted backward products run on integer codes."""
    return Plan(g, eb and possible(g, "input", device), gc and possible(g, "weight", device))


def forward(a: Quantized, w: Quantized, bias: torch.Tensor | None, g: Geometry) -> torch.Tensor:
    """FW: activations ``[N, C, H, W]`` on one grid, weights ``[F, C, kh, kw]`` on one or one per filter."""
    return _launcher().convolve(a, w, bias, g)


def input_gradient(e: Quantized, w: Quantized, g: Geometry) -> torch.Tensor:
    """EB: errors ``[N, F, H', W']`` and weights, each on one grid, to ``[N, C, H, W]``."""
    return _launcher().convolve(e, w, None, g, back=True)


def weight_gradient(e: Quantized, a: Quantized, g: Geometry) -> torch.Tensor:
    """GC: errors and activations, each on one grid, to ``[F, C, kh, kw]``."""
    return _launcher().correlate(e, a, g)


@cache
def load() -> ConvLauncher | None:
    """Import the kernels, or return None where Triton is absent."""
    try:
        from fractrain.experimental import triton_conv
    except ImportError as problem:
        log.warning("int8 convolutions are not available (%s); using float32", problem)
        return None
    return ConvLauncher(triton_conv)


def _launcher() -> ConvLauncher:
    launcher = load()
    assert launcher is not None  # else nothing is possible
    return launcher


@lru_cache(maxsize=4096)
def _tried(g: Geometry, product: Product, device: torch.device) -> bool:
    def exact() -> bool:
        try:
            return _exact(g, product, device)
        except Exception as problem:  # no compiler, too little shared memory: Triton has no base class for them
            raise RuntimeError(f"{type(problem).__name__}: {problem}") from problem

    return load() is not None and runs_exactly(exact)


def _exact(g: Geometry, product: Product, device: torch.device) -> bool:
    """Whether products of random and of the most extreme codes are right, against float64."""
    gen = torch.Generator().manual_seed(0)
    count = TRIAL * -(-TILE[0] // (TRIAL * g.output[0] * g.output[1]))
    sizes = {"e": (count, g.filters, *g.output), "a": (count, *g.image), "w": (g.filters, g.image[0], *g.kernel)}
    codes = {name: torch.randint(0, 256, size, dtype=torch.uint8, generator=gen) for name, size in sizes.items()}
    codes["e"][::2], codes["a"][::2], codes["w"][::2] = 255, 255, 0
    codes = {name: _dense(c.to(device)) for name, c in codes.items()}
    # Grids on which zero is a code, so that results are integers; and one on which it is not.
    for offsets in ((-101.0, 0.0, -128.0), (0.0, -101.0, -128.0), (-101.25, 0.5, -127.75)):
        (e, ve), (a, va), (w, vw) = (_plain(c, o) for c, o in zip(codes.values(), offsets, strict=True))
        if product == "forward":
            got, right = forward(a, w, None, g), _float64(va, vw, g)
            size = _float64(va.abs(), vw.abs(), g)
        elif product == "input":
            got, (right, _) = input_gradient(e, w, g), _backward64(ve, va, vw, g)
            size = _backward64(ve.abs(), va, vw.abs(), g)[0]
        else:
            got, (_, right) = weight_gradient(e, a, g), _backward64(ve, va, vw, g)
            size = _backward64(ve.abs(), va.abs(), vw, g)[1]
        close = torch.equal(got, right.float()) if offsets[0] % 1 == 0 else _near(got, right, size)
        if got.shape != right.shape or not close:
            return False
    return True


def _near(got: torch.Tensor, want: torch.Tensor, size: torch.Tensor) -> bool:
    """Whether a float32 result is that of float64 but for its last few roundings, given the sums of absolute values."""
    return bool(((got - want).abs() <= 2e-6 * size).all())


def _plain(codes: torch.Tensor, offset: float) -> tuple[Quantized, torch.Tensor]:
    """Codes on a grid of step 1, and their values in float64."""
    scale, low, least, most = (torch.tensor(v, device=codes.device) for v in (1.0, offset, 0.0, 255.0))
    return Quantized(codes, Grid(scale, low, least, most)), codes.double() + offset


def _float64(a: torch.Tensor, w: torch.Tensor, g: Geometry) -> torch.Tensor:
    return F.conv2d(a, w, None, g.stride, g.padding)


def _backward64(
    e: torch.Tensor, a: torch.Tensor, w: torch.Tensor, g: Geometry
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    args = (None, g.stride, g.padding, (1, 1), False, (0, 0), 1, [True, True, False])
    da, dw, _ = torch.ops.aten.convolution_backward(e, a, w, *args)
    return da, dw


def _dense(codes: torch.Tensor) -> torch.Tensor:
    """As the kernels read it."""
    return codes.contiguous(memory_format=torch.channels_last)


def _channels_last(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device, memory_format=torch.channels_last)


def _params(q: Quantized) -> tuple[torch.Tensor, ...]:
    """Scale, offset, least and greatest code, float32, one each or one per row."""
    g = q.grid if isinstance(q.grid, Grid) else q.grid()
    return tuple(p.float().reshape(-1).contiguous() for p in (g.scale, g.offset, g.qmin, g.qmax))


def _grid(name: str, q: Quantized) -> dict[str, torch.Tensor]:
    """A kernel's arguments that tell the one grid of a tensor."""
    return dict(zip((f"{name}_scale_ptr", f"{name}_offset_ptr", f"{name}_qmin_ptr"), _params(q), strict=False))


def _shape(g: Geometry) -> dict[str, int]:
    names = ("KH", "KW", "SH", "SW", "PH", "PW")
    return dict(zip(names, (*g.kernel, *g.stride, *g.padding), strict=True))


def _tile(rows: int, columns: int, terms: int) -> dict[str, int]:
    """Sizes of tiles: powers of two, at least what an int8 product of tensor cores takes."""
    least = (16, 16, 32)
    sizes = (
        min(most, max(low, 1 << (n - 1).bit_length()))
        for n, low, most in zip((rows, columns, terms), least, TILE, strict=True)
    )
    tile = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), sizes, strict=True))
    large = tile["BLOCK_M"] * tile["BLOCK_N"] > 1 << 13
    return {**tile, "num_warps": 8 if large else 4}  # with 4, sums of a large tile do not fit into registers


def _parts(terms: int, tiles: int, block: int) -> tuple[int, int]:
    """Into how many parts GC's terms are cut, and how many terms each has: whole blocks."""
    parts = max(-(-terms // MOST_AT_ONCE), min(PROGRAMS // tiles, terms // (8 * block)), 1)
    chunk = min(-(-terms // (parts * block)), MOST_AT_ONCE // block) * block
    return -(-terms // chunk), chunk
