"""The one door to compiled kernels: what a kind of device offers, and what quantized tensors are kept as.

A backend gives exactly the bits of the plain path in :mod:`fractrain.numerics.quantize`, or says None where it does not
serve; then the plain path computes them. It is imported when a tensor of its device first comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch

from fractrain.numerics.blocks import PerBlock, Place
from fractrain.numerics.elements import Minifloat
from fractrain.numerics.grid import Grid, RowGrid
from fractrain.numerics.scales import Scale, Scales
from fractrain.numerics.stochastic_rounding import NoiseKey
from fractrain.numerics.tiles import PerTile

Kernels = Literal["auto", "reference", "fused"]
Range = tuple[torch.Tensor, torch.Tensor]
SHIFT16 = 32768.0  # 9..16-bit codes are stored in int16, moved down by 2^15
MODULES = {"cpu": "fractrain.kernels.cpu.backend", "cuda": "fractrain.kernels.cuda.backend"}


@dataclass
class Kept:
    """A quantized tensor as it is kept for backward.

    Attributes:
        codes: what autograd keeps.
    """

    codes: torch.Tensor

    def values(self) -> torch.Tensor:
        """The values, float32; 4-D ones in channels-last memory."""
        raise NotImplementedError

    def nbytes(self) -> int:
        """Bytes kept."""
        raise NotImplementedError

    def with_codes(self, codes: torch.Tensor) -> Self:
        """The same with other codes."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, codes=codes)
        return twin

    def emptied(self) -> Self:
        """The same without its codes, which autograd keeps; :meth:`with_codes` puts them back."""
        return self.with_codes(self.codes.new_empty(0))


@dataclass
class Quantized(Kept):
    """A quantized tensor: integer codes and their grid; ``value = (code + shift + qmin) * scale + offset``.

    Attributes:
        codes: uint8 up to 8 bits, int16 above (code - qmin - 2^15), of the shape and layout of the tensor.
        grid: parameters, broadcastable to the tensor, or what computes them (where they take more room than the codes).
        kernels: which path restores the values.
        rows: the grid per row where it is at hand in that form.
    """

    grid: Grid | Callable[[], Grid]
    kernels: Kernels = "auto"
    rows: RowGrid | None = None

    @property
    def shift(self) -> float:
        """What was taken from the codes to store them."""
        return 0.0 if self.codes.dtype == torch.uint8 else SHIFT16

    @property
    def full_grid(self) -> Grid:
        """The grid, whether it is kept or computed."""
        return self.grid if isinstance(self.grid, Grid) else self.grid()

    def values(self) -> torch.Tensor:
        """Return the values in the type of the grid, in the layout of the codes."""
        done = backend_for(self.codes.device, self.kernels).restore(self)
        if done is not None:
            return done
        g = self.full_grid.full(self.codes.shape)
        return (self.codes.to(g.scale.dtype) + (g.qmin + self.shift)) * g.scale + g.offset

    def take(self, rows: np.ndarray) -> Quantized:
        """Some samples of a tensor that compiled kernels have quantized."""
        assert self.rows is not None
        codes = self.codes[torch.from_numpy(rows)]
        form = torch.channels_last if codes.dim() == 4 else torch.contiguous_format
        return Quantized(codes.contiguous(memory_format=form), self.grid, self.kernels, self.rows.take(rows))

    def nbytes(self) -> int:
        """Bytes kept for backward: the codes, and the parameters of the grid where they are kept."""
        g = self.grid
        kept = (self.codes, *((g.scale, g.offset, g.qmin, g.qmax) if isinstance(g, Grid) else ()))
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


@dataclass(frozen=True)
class Measured:
    """Result of :meth:`Backend.quantize_measured`. On a GPU range and ``bad`` are tensors there: nothing waits.

    Attributes:
        values: quantized values, or None when not wanted.
        codes: integer codes, or None when not wanted.
        limits: the range: of the whole tensor, or on a GPU per row ``[rows, 1, ...]``.
        bad: whether the tensor had inf or nan.
    """

    values: torch.Tensor | None
    codes: Quantized | None
    limits: Range | tuple[float, float]
    bad: bool | torch.Tensor


@dataclass(frozen=True)
class Uniform:
    """A uniform grid between the extremes: symmetric around zero or not, per tensor or per index of the first axis."""

    symmetric: bool
    per_row: bool


class ScaledFormat(Protocol):
    """What kernels read of :class:`fractrain.numerics.scaled.Scaled`."""

    @property
    def element(self) -> Minifloat: ...  # noqa: D102
    @property
    def scale(self) -> Scale: ...  # noqa: D102
    @property
    def block(self) -> PerBlock: ...  # noqa: D102
    def scales_of(  # noqa: D102
        self, blocks: torch.Tensor, limits: Range | None, place: Place
    ) -> tuple[Scales, torch.Tensor]: ...


@dataclass
class ScaledBlocks:
    """Result of :meth:`Backend.quantize_blocks`.

    Attributes:
        values: quantized matrices.
        codes: codes and packed scales in one buffer, where wanted.
        tensor: scale of the whole tensor, where the rule has one.
        amax: largest magnitude of the tensor (of the batch, where it is spread over processes and scales span it).
    """

    values: torch.Tensor
    codes: torch.Tensor | None
    tensor: torch.Tensor | None
    amax: torch.Tensor


class Backend:
    """Kernels of a kind of device; this one has none. Every method may return None: the plain path must do then."""

    def quantize(
        self, x: torch.Tensor, grid: Grid, noise: NoiseKey | None, code_bits: int
    ) -> tuple[torch.Tensor, Quantized | None] | None:
        """See :func:`fractrain.numerics.quantize.quantize`."""
        return None

    def restore(self, kept: Quantized) -> torch.Tensor | None:
        """Values of codes, float32."""
        return None

    def row_limits(self, x: torch.Tensor) -> Range | None:
        """See :func:`fractrain.numerics.quantize.row_limits`."""
        return None

    def tile_limits(self, x: torch.Tensor, tile: PerTile) -> Range | None:
        """See :func:`fractrain.numerics.quantize.tile_limits`."""
        return None

    def quantize_measured(
        self, x: torch.Tensor, form: Uniform, bits: int | torch.Tensor, noise: NoiseKey | None, code_bits: int,
        known: tuple[float, float] | None, only_codes: bool,
    ) -> Measured | None:  # fmt: skip
        """The common case in one call: measure the range, derive the grid and quantize dense float32.

        Same bits as ``Format.limits``, ``Format.grid`` and :func:`fractrain.numerics.quantize.quantize`, which spend
        more time on one-element tensors than on the data where layers are small, and on a GPU wait for the range.

        Args:
            x: the tensor.
            form: the grid, see ``Format.uniform``.
            bits: width; on the CPU, of a grid per tensor that is not symmetric, also one per sample.
            noise: key for stochastic rounding, or None.
            code_bits: as in :func:`fractrain.numerics.quantize.quantize`; samples of greater width get values only.
            known: range to use instead of measuring it (per tensor only).
            only_codes: leave the values out (they can be restored from the codes).
        """
        return None

    def quantize_blocks(
        self, form: ScaledFormat, m: torch.Tensor, noise: NoiseKey | None, known: torch.Tensor | None, place: Place
    ) -> ScaledBlocks | None:
        """Quantize matrices ``[G, R, C]``.

        Args:
            form: the format.
            m: the matrices.
            noise: key of stochastic rounding, or None.
            known: amax to use instead of the measured one, where one scale holds for all.
            place: which operand.
        """
        return None

    def restore_blocks(
        self, form: ScaledFormat, codes: torch.Tensor, back: torch.Tensor, shape: torch.Size, place: Place
    ) -> torch.Tensor | None:
        """Values of matrices of a shape from their codes and scales."""
        return None


PLAIN = Backend()


@cache
def backend_for(device: torch.device, kernels: Kernels) -> Backend:
    """The backend to ask: with ``auto`` after a probe of this machine, with ``fused`` without, else none."""
    if kernels == "reference" or device.type not in MODULES:
        return PLAIN
    module: Any = import_module(MODULES[device.type])
    backend: Backend = module.backend(kernels)
    return backend
