"""The precision of one layer: a number format and a width for each operand of each of the three products.

Forward ``FW: Y = A W``, error back-propagation ``EB: dA = dY W^T``, gradient computation ``GC: dW = A^T dY``; E = dY.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from fractrain.numerics.formats import Affine, Bits, Format, PerAxis, PerTensor, check_bits
from fractrain.util.errors import ConfigError

FLOAT_BITS = 32
DEFAULT_FORMAT = Affine()


@dataclass(frozen=True, eq=False)
class Operand:
    """One operand of one product.

    Attributes:
        bits: width: a constant 2..16 (32 = not quantized), an integer tensor with one width per sample ``[N]``, or one
            per tile of the matrix view ``[row tiles, column tiles]``; 0 in a tensor skips the sample or tile.
        format: grid and rounding; ignored at 32 bits.
        running: for activations: fraction of the old value kept when the running range used in evaluation is updated
            (None: evaluation measures each batch).
        history: delayed scaling: the scale is that of the largest amax of so many earlier uses, and of 1 before the
            first; evaluation leaves the history as it is. 0: of the tensor itself. Only for one scale per tensor.
    """

    bits: Bits = FLOAT_BITS
    format: Format = DEFAULT_FORMAT
    running: float | None = None
    history: int = 0

    def __post_init__(self) -> None:
        if self.history and not (self.format.bits is not None and self.format.granularity == PerTensor()):
            raise ConfigError(f"delayed scaling needs a float format with one scale per tensor, got {self.describe()}")
        if not self.is_float:
            check_bits(self.bits)
            own = self.format.bits
            if own is not None and (isinstance(self.bits, torch.Tensor) or self.bits != own):
                given = "a map of widths" if isinstance(self.bits, torch.Tensor) else f"{self.bits} bits"
                raise ConfigError(f"format {self.format.name} has {own} bits per element, got {given}")

    @classmethod
    def of(cls, format: Format, running: float | None = None, history: int = 0) -> Operand:
        """An operand in a format that has a width of its own."""
        return cls(FLOAT_BITS if format.bits is None else format.bits, format, running, history)

    def flipped(self) -> Operand:
        """For the transposed tensor: blocks of columns become blocks of rows."""
        return replace(self, format=self.format.flipped())

    @cached_property
    def is_float(self) -> bool:
        """Whether the operand is left in floating point."""
        return isinstance(self.bits, int) and self.bits >= FLOAT_BITS

    @property
    def widest(self) -> int:
        """Largest width in use."""
        return int(self.bits.max()) if isinstance(self.bits, torch.Tensor) else self.bits

    def at(self, bits: Bits) -> Operand:
        """The same operand at another width."""
        return replace(self, bits=bits)

    def same_as(self, other: Operand) -> bool:
        """Whether both give the same quantized tensor."""
        if self.is_float and other.is_float:
            return True
        if isinstance(self.bits, torch.Tensor) or isinstance(other.bits, torch.Tensor):
            return self.bits is other.bits and self.format == other.format
        return (self.bits, self.format, self.history) == (other.bits, other.format, other.history)

    def describe(self) -> str:
        """For precision cards: ``affine 8 b per tensor, nearest``."""
        if self.is_float:
            return "float32"
        bits = "mapped" if isinstance(self.bits, torch.Tensor) else f"{self.bits} b"
        f = self.format
        delayed = f", delayed by {self.history}" if self.history else ""
        return f"{f.name} {bits}, {type(f.granularity).__name__}, {f.rounding}{delayed}"


FLOAT = Operand()


@dataclass(frozen=True, eq=False)
class Precision:
    """Operands of the three products.

    Attributes:
        fw_a, fw_w: activation and weight in the forward product.
        eb_e, eb_w: error and weight in error back-propagation.
        gc_a, gc_e: activation and error in gradient computation.
    """

    fw_a: Operand = FLOAT
    fw_w: Operand = FLOAT
    eb_e: Operand = FLOAT
    eb_w: Operand = FLOAT
    gc_a: Operand = FLOAT
    gc_e: Operand = FLOAT

    @classmethod
    def of(cls, a: Operand, w: Operand, e: Operand) -> Precision:
        """The usual case: each tensor is quantized once and used in both of its products."""
        return cls(fw_a=a, fw_w=w, eb_e=e, eb_w=w, gc_a=a, gc_e=e)

    @classmethod
    def along_reduction(cls, a: Operand, w: Operand, e: Operand) -> Precision:
        """Formats whose blocks lie along the reduction of each product.

        Given with blocks of columns, as A and W have them in FW and E in EB; W in EB and both operands of GC get blocks
        of rows.
        """
        return cls(fw_a=a, fw_w=w, eb_e=e, eb_w=w.flipped(), gc_a=a.flipped(), gc_e=e.flipped())

    @cached_property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return all(o.is_float for o in self.operands().values())

    @cached_property
    def is_constant(self) -> bool:
        """Whether no width varies from sample to sample or from tile to tile."""
        return not any(isinstance(o.bits, torch.Tensor) for o in self.operands().values())

    @cached_property
    def one_activation(self) -> bool:
        """Whether FW and GC multiply the same quantized activation."""
        return self.gc_a.same_as(self.fw_a)

    @cached_property
    def one_error(self) -> bool:
        """Whether EB and GC multiply the same quantized error."""
        return self.eb_e.same_as(self.gc_e)

    def operands(self) -> dict[str, Operand]:
        """The six operands by name."""
        return {n: getattr(self, n) for n in ("fw_a", "fw_w", "eb_e", "eb_w", "gc_a", "gc_e")}

    def with_bits(self, a: Bits | None = None, w: Bits | None = None, e: Bits | None = None) -> Precision:
        """The same formats at other widths (None: unchanged); sets both uses of each tensor."""
        changes: dict[str, Any] = {}
        for bits, fields in ((a, ("fw_a", "gc_a")), (w, ("fw_w", "eb_w")), (e, ("eb_e", "gc_e"))):
            if bits is not None:
                changes |= {f: getattr(self, f).at(bits) for f in fields}
        return replace(self, **changes)


def fractrain_precision(a: Bits, w: Bits, e: Bits, running: float = 0.9) -> Precision:
    """The quantizer of the FracTrain authors' code (used by its static baseline, PFQ, DFQ and FracTrain).

    Weights: one range per output filter, nearest. Activations: one range per tensor, nearest; running range in
    evaluation. Errors: one range per tensor, stochastic, the same quantized error in both backward products.
    """
    return Precision.of(
        a=Operand(a, Affine(), running=running),
        w=Operand(w, Affine(granularity=PerAxis(0))),
        e=Operand(e, Affine(rounding="stochastic")),
    )
