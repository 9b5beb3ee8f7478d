"""Uniform number formats: which grid a tensor's values are moved to, and how they are rounded to it.

A format says everything but the width, which comes separately because it changes while training: a constant, one value
per sample, or one per tile of the tensor's matrix view. Quantized values are ``value = code * scale + offset`` with
integer codes in ``[qmin, qmax]``:

* :class:`Affine` (asymmetric): ``offset`` = smallest value, codes ``0 .. 2^b - 1``;
* :class:`Symmetric`: ``offset`` = 0, codes ``-(2^(b-1) - 1) .. 2^(b-1) - 1``, so zero is exact.

A method with another uniform grid (DoReFa's tanh weights, ...) subclasses :class:`Format` and says its grid; what is no
grid (floats, block scales, rotations) overrides :meth:`Format.quantize`, as :mod:`fractrain.numerics.scaled` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from fractrain.numerics.backend import Kept, Kernels, Uniform
from fractrain.numerics.blocks import ACTIVATION
from fractrain.numerics.blocks import PerBlock as PerBlock
from fractrain.numerics.blocks import Place as Place
from fractrain.numerics.blocks import Role as Role
from fractrain.numerics.grid import MIN_SCALE, Grid
from fractrain.numerics.quantize import quantize, row_limits, tile_limits
from fractrain.numerics.stochastic_rounding import NoiseKey
from fractrain.numerics.tiles import PerTile as PerTile
from fractrain.numerics.tiles import expand_tiles as expand_tiles
from fractrain.numerics.tiles import fit_map
from fractrain.numerics.tiles import matrix_view as matrix_view
from fractrain.numerics.tiles import tile_counts as tile_counts
from fractrain.util.errors import ConfigError

Rounding = Literal["nearest", "stochastic"]
Bits = int | torch.Tensor
Limits = tuple[torch.Tensor, torch.Tensor]

MIN_BITS, MAX_BITS = 2, 16


@dataclass(frozen=True)
class PerTensor:
    """One grid for the whole tensor."""


@dataclass(frozen=True)
class PerAxis:
    """One grid per index of an axis: 0 = output channel of a weight or sample of an activation, 1 = channel."""

    axis: int = 0


Granularity = PerTensor | PerAxis | PerTile | PerBlock


@dataclass(frozen=True)
class Rounded:
    """What :meth:`Format.quantize` returns.

    Attributes:
        values: quantized values, of the shape and dtype of the tensor.
        codes: the same in few bytes, where asked for; else None.
        limits: smallest and largest value that were measured (inf and nan show in them).
    """

    values: torch.Tensor
    codes: Kept | None
    limits: Limits


def widths_like(bits: Bits, like: torch.Tensor) -> torch.Tensor:
    """Widths as numbers of the type of ``like``, on its device; nothing waits for that."""
    if isinstance(bits, torch.Tensor):
        return bits.to(like.device, like.dtype)
    return like.new_full((), float(bits))


def check_bits(bits: Bits) -> None:
    """Refuse widths outside 2..16 (0 = the sample or tile is skipped: its values become 0).

    Raises:
        ConfigError: a width is out of range.
    """
    if isinstance(bits, torch.Tensor):
        low, high = int(bits.min()), int(bits.max())
        bad = bool(((bits != 0) & (bits < MIN_BITS)).any()) or high > MAX_BITS or low < 0
        if bad:
            raise ConfigError(f"widths must be 0 or {MIN_BITS}..{MAX_BITS} bits, got a tensor of {low}..{high}")
    elif not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigError(f"widths must be {MIN_BITS}..{MAX_BITS} bits (32 = not quantized), got {bits}")


@dataclass(frozen=True)
class Format:
    """Base of number formats.

    Attributes:
        granularity: which elements share a grid.
        rounding: to the nearest grid point (ties to even) or stochastic (up with probability = fraction).
        statistic: ``extreme``: the range of all elements; ``mean`` (per tensor only): mean over samples (first axis)
            of each sample's smallest and largest value, as Banner et al. 2018 measure activations.
    """

    granularity: Granularity = PerTensor()
    rounding: Rounding = "nearest"
    statistic: Literal["extreme", "mean"] = "extreme"

    @property
    def name(self) -> str:
        """Short name for precision cards."""
        return type(self).__name__.lower()

    @property
    def bits(self) -> int | None:
        """The only width the format has; None: any."""
        return None

    @property
    def spans_samples(self) -> bool:
        """Whether a group of an activation or error holds elements of all samples of the batch."""
        return not isinstance(self.granularity, PerTile) and self.granularity != PerAxis(0)

    def flipped(self) -> Format:
        """The format for the transposed operand."""
        return self

    def points(self, bits: int) -> int:
        """Most different values in a group; more than ``2^bits`` only where a flag is kept besides the code."""
        return 1 << bits

    def scale_bits(self, shape: torch.Size, weight: bool) -> float:
        """Bits of scales per element of an operand of this shape; a scale of a whole tensor or batch does not count."""
        return 0.0

    def limits(self, x: torch.Tensor, kernels: Kernels = "auto") -> Limits:
        """Measure (smallest, largest) per group.

        Args:
            x: float tensor, not empty.
            kernels: which path measures; both give the same result.

        Returns:
            Two tensors: 0-dim per tensor; broadcastable to ``x`` per axis; ``[row tiles, column tiles]`` per tile.
        """
        g = self.granularity
        if isinstance(g, PerTile):
            return tile_limits(x, g, kernels)
        if isinstance(g, PerAxis) and g.axis != 0:
            shape = [1] * x.dim()
            shape[g.axis] = x.shape[g.axis]
            lo, hi = x.movedim(g.axis, 0).reshape(x.shape[g.axis], -1).aminmax(dim=1)
            return lo.view(shape), hi.view(shape)
        lo, hi = row_limits(x, kernels)
        if isinstance(g, PerAxis):
            return lo.view(-1, *([1] * (x.dim() - 1))), hi.view(-1, *([1] * (x.dim() - 1)))
        if self.statistic == "mean":
            return lo.mean(), hi.mean()
        return lo.amin(0), hi.amax(0)

    def grid(self, limits: Limits, bits: Bits, x: torch.Tensor) -> Grid:
        """Return the grid for the measured limits at the given width(s); shapes broadcast to ``x``."""
        if isinstance(self.granularity, PerTile):
            return self.compact_grid(limits, bits, x).full(x.shape)
        lo, hi = limits
        if isinstance(bits, torch.Tensor):
            if bits.numel() != x.shape[0]:
                raise ConfigError(f"{bits.numel()} widths for a tensor of shape {tuple(x.shape)}: give one per sample")
            bits = bits.to(x.device).view(-1, *([1] * (x.dim() - 1)))
        return self._grid(lo, hi, bits)

    def compact_grid(self, limits: Limits, bits: Bits, x: torch.Tensor) -> Grid:
        """As :meth:`grid`, but per tile with one set of parameters per tile instead of per element."""
        tile = self.granularity
        if not isinstance(tile, PerTile):
            return self.grid(limits, bits, x)
        if isinstance(bits, torch.Tensor):
            bits = fit_map(bits.to(x.device), x.shape, tile)
        return replace(self._grid(*limits, bits), tile=tile)

    def quantize(
        self, x: torch.Tensor, bits: Bits, noise: NoiseKey | None = None, limits: Limits | None = None,
        place: Place = ACTIVATION,
    ) -> Rounded:  # fmt: skip
        """Round a tensor to the format: the one hook that a format which is no uniform grid overrides.

        Args:
            x: float32 or float64, not empty: an activation or error ``[N, ...]`` (4-D: an image ``[N, C, H, W]``), or a
                weight ``[out, in]`` or ``[out, in, height, width]``.
            bits: width or widths, see :class:`fractrain.numerics.precision.Operand`.
            noise: key of stochastic rounding (:func:`fractrain.numerics.stochastic_rounding.uniform`); None: nearest.
            limits: range to use; None: that of ``x``.
            place: which operand it is, and whether codes are wanted.
        """
        limits = self.limits(x, place.kernels) if limits is None else limits
        grid = self.compact_grid(limits, bits, x)  # per tile: a grid of the tensor's size is not kept
        widest = int(bits.max()) if isinstance(bits, torch.Tensor) else bits
        values, codes = quantize(x, grid, noise, widest if place.keep else 0, place.kernels)
        return Rounded(values, codes, limits)

    @cached_property
    def uniform(self) -> Uniform | None:
        """The grid as backends derive it from the range they have measured; None: :meth:`limits` and :meth:`grid` do.

        Of :class:`Affine` and :class:`Symmetric` themselves (a subclass may have another grid), per tensor or per index
        of the first axis, by extremes.
        """
        per_row = self.granularity == PerAxis(0)
        if type(self) not in (Affine, Symmetric) or self.statistic != "extreme":
            return None
        return Uniform(type(self) is Symmetric, per_row) if per_row or self.granularity == PerTensor() else None

    def groups(self, values: torch.Tensor, place: Place = ACTIVATION) -> torch.Tensor | None:
        """Quantized values that share a scale, one group a row, where blocks are the granularity; for checks.

        None where values are not seen as they were rounded.
        """
        return None

    def neighbours(
        self, x: torch.Tensor, limits: Limits | None = None, place: Place = ACTIVATION
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The format's values below and above each element, at its own width, for checks of rounding.

        None where they are not known before rounding.
        """
        return None

    def _grid(self, lo: torch.Tensor, hi: torch.Tensor, bits: Bits) -> Grid:
        raise NotImplementedError

    def forward_transform(self, x: torch.Tensor) -> torch.Tensor:
        """Map the tensor before it is quantized (identity; DoReFa's tanh for example)."""
        return x

    def backward_transform(self, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Gradient with respect to the tensor before :meth:`forward_transform` (straight through)."""
        return grad


@dataclass(frozen=True)
class Affine(Format):
    """Asymmetric uniform grid of ``2^b`` points from the smallest to the largest value."""

    def _grid(self, lo: torch.Tensor, hi: torch.Tensor, bits: Bits) -> Grid:
        if isinstance(bits, torch.Tensor):
            qmax = torch.pow(2.0, bits.to(_wide(lo))) - 1.0  # exact: a power of two up to 2^16
            live = bits > 0
            scale = ((hi - lo) / qmax.clamp(min=1.0)).clamp(min=MIN_SCALE)
            return Grid(scale, torch.where(live, lo, torch.zeros_like(lo)), torch.zeros_like(qmax), qmax)
        top = lo.new_full((), float(2**bits - 1))
        return Grid(((hi - lo) / top).clamp(min=MIN_SCALE), lo, torch.zeros_like(top), top)


@dataclass(frozen=True)
class Symmetric(Format):
    """Symmetric uniform grid of ``2^b - 1`` points around an exact zero."""

    def _grid(self, lo: torch.Tensor, hi: torch.Tensor, bits: Bits) -> Grid:
        bound = torch.maximum(lo.abs(), hi.abs())
        if isinstance(bits, torch.Tensor):
            top = torch.where(bits > 0, torch.pow(2.0, (bits - 1).clamp(min=0).to(_wide(lo))) - 1.0, 0.0)
        else:
            top = lo.new_full((), float(2 ** (bits - 1) - 1))
        scale = (bound / top.clamp(min=1.0)).clamp(min=MIN_SCALE)
        return Grid(scale, torch.zeros_like(bound), -top, top)


def _wide(limit: torch.Tensor) -> torch.dtype:
    """Type of the grid: that of the limits, float32 at least (a 0-dim limit does not promote a vector of widths)."""
    return torch.promote_types(limit.dtype, torch.float32)
