"""Products of a linear layer on integer codes by int8 matrix products, which tensor cores make exactly.

Rows ``X = s (u - z) + m`` on one grid (codes ``u`` in 0..255, integer ``z``, ``|m| <= s/2``) times columns
``Y = t v + o`` (codes ``v`` in -128..127; ``t`` and ``o`` per column), summed over ``k``::

    sum X Y  =  s t (sum (u - 128) v + (128 - z) sum v)  +  s o sum (u - z)  +  m sum Y

The sums are integers that int32 holds, and exact; only the last few float32 operations round. FW is of this form
(rows: samples; columns: the weight's, a grid each), and EB, where the weight has one grid (with one per column of FW
the scales would stand inside the sum). In GC both operands have one grid::

    sum E A  =  r s sum (e - z) (a - y)  +  m s sum (a - y)  +  n r sum (e - z)  +  count m n

Scales and zeros stay on the device, and nothing waits for it but the trial, once per shape of a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch

from fractrain.kernels.cpu.cpu_features import runs_exactly
from fractrain.kernels.cuda.launch import rescale
from fractrain.numerics.backend import Quantized
from fractrain.numerics.grid import Grid

DEVICES: Final = {"cuda"}  # whose int8 products are faster than their float32 ones
MOST_TERMS: Final = (2**31 - 1) // (255 * 255)  # that int32 holds whatever the codes
LEAST_ROWS: Final = 17  # torch._int_mm refuses fewer,
MULTIPLE: Final = 8  # and sums or columns that are no multiple of this


@dataclass(frozen=True)
class Shape:
    """Of a product ``[rows, terms] x [terms, columns]``."""

    rows: int
    terms: int
    columns: int

    @property
    def fits(self) -> bool:
        """Whether the library multiplies it, and int32 holds its sums."""
        whole = self.terms % MULTIPLE == 0 and self.columns % MULTIPLE == 0
        return whole and self.rows >= LEAST_ROWS and self.terms <= MOST_TERMS


@dataclass(frozen=True)
class GemmPlan:
    """Which backward products of a linear layer run on integer codes; as :class:`.integer_backward.Plan`."""

    eb: bool
    gc: bool

    def only(self, eb: bool, gc: bool) -> GemmPlan:
        """The part of it that is wanted."""
        return GemmPlan(self.eb and eb, self.gc and gc)

    def __bool__(self) -> bool:
        return self.eb or self.gc


def possible(shape: Shape, device: torch.device) -> bool:
    """Whether a product of this shape is at hand and exact on this device; tried once, which waits for it."""
    return device.type in DEVICES and shape.fits and _tried(shape, device)


@lru_cache(maxsize=4096)
def _tried(shape: Shape, device: torch.device) -> bool:
    return runs_exactly(lambda: _exact(shape, device))


def _exact(shape: Shape, device: torch.device) -> bool:
    gen = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (shape.rows, shape.terms), dtype=torch.int8, generator=gen).to(device)
    y = torch.randint(-128, 128, (shape.columns, shape.terms), dtype=torch.int8, generator=gen).to(device)
    x[1::2], y[::2] = -128, -128  # sums of the greatest magnitude
    want = x.double() @ y.double().t()  # float64 holds them
    return torch.equal(_sums(x, y.t()).double(), want)


def _sums(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x y`` in int32, of int8 ``[R, K]`` and ``[K, C]`` (best as the transpose of a contiguous tensor)."""
    out: torch.Tensor = torch._int_mm(x, y)
    return out


def forward(a: Quantized, w: Quantized, bias: torch.Tensor | None = None) -> torch.Tensor:
    """FW: ``[..., K]`` on one grid, times a weight ``[C, K]`` with one grid or one per row, to float32 ``[..., C]``."""
    v, scale, rest = _columns(w)
    return _affine(a, v.t(), v.sum(1, dtype=torch.int32), scale, rest, bias)


def input_gradient(e: Quantized, w: Quantized) -> torch.Tensor:
    """EB: ``[..., C]`` on one grid, times a weight ``[C, K]`` on one grid, to float32 ``[..., K]``."""
    v, scale, rest = _columns(w)
    turned = v.t().contiguous()
    return _affine(e, turned.t(), turned.sum(1, dtype=torch.int32), scale, rest, None)


def weight_gradient(e: Quantized, a: Quantized) -> torch.Tensor:
    """GC: errors ``[..., C]`` and activations ``[..., K]``, each on one grid, to float32 ``[C, K]``."""
    (pe, ze, se, me), (pa, za, sa, ma) = _rows(e), _rows(a)
    pe, pa = pe.t().contiguous(), pa.t().contiguous()
    count = pe.shape[1]
    e_sum, a_sum = (p.sum(1, dtype=torch.int32) for p in (pe, pa))
    up_e, up_a = 128 - ze, 128 - za  # what takes 128 to the zero
    rows = up_a * e_sum + count * up_e * up_a
    columns = up_e * a_sum
    e_whole, a_whole = e_sum + count * up_e, a_sum + count * up_a
    scale = (se * sa).float().expand(pa.shape[0])
    of_rows = (ma * se * e_whole + count * me * ma).float()
    of_columns = (me * sa * a_whole).float()
    out = _sums(pe, pa.t())
    return rescale(out, (rows, columns, scale, of_rows, torch.ones_like(scale), of_columns))


def _affine(
    x: Quantized, y: torch.Tensor, y_sum: torch.Tensor, scale: torch.Tensor, rest: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Rows on one grid times int8 columns ``y [K, C]`` of scales ``[C]`` or one, and what is left of their offsets."""
    p, zero, s, m = _rows(x)
    count, columns = y.shape
    up = 128 - zero
    x_sum = p.sum(1, dtype=torch.int32) + count * up
    whole = scale * y_sum + count * rest  # sum Y, float64
    of_columns = m * whole if bias is None else m * whole + bias.detach()
    out = _sums(p, y)
    nothing = torch.zeros(p.shape[0], dtype=torch.int32, device=p.device)
    terms = (nothing, up * y_sum, (s * scale).float(), x_sum.float(), (s * rest).float(), of_columns.float())
    done = rescale(out, [t.expand(columns) if t.dim() == 0 else t for t in terms])
    return done.view(*x.codes.shape[:-1], columns)


def _rows(x: Quantized) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes less 128, int8 ``[R, K]``; and 0-dim: zero (int32), scale and rest of the offset (float64)."""
    scale, low, _ = _grid(x)
    zero = (-low / scale).round().clamp(0, 255)
    p = (x.codes ^ 128).view(torch.int8).reshape(-1, x.codes.shape[-1])
    return p, zero.to(torch.int32), scale, low + scale * zero


def _columns(w: Quantized) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes about zero, int8 ``[C, K]``, scale and rest of the offset (float64 ``[C]`` or 0-dim)."""
    scale, low, levels = _grid(w)
    shift = torch.minimum(torch.maximum((-low / scale).round(), levels - 127), torch.full_like(low, 128))
    v = w.codes - shift.to(torch.uint8).view(-1, 1)  # wraps around
    return v.view(torch.int8), scale, low + shift * scale


def _grid(q: Quantized) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale, value of code 0 and greatest code, float64, 0-dim or one per row."""
    g = q.grid if isinstance(q.grid, Grid) else q.grid()
    flat = (
        p.double().reshape(-1) if p.numel() > 1 else p.double().view(()) for p in (g.scale, g.offset, g.qmin, g.qmax)
    )
    scale, offset, qmin, qmax = flat
    return scale, offset + scale * qmin, qmax - qmin
