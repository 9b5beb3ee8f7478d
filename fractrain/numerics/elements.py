"""Element formats: what the values of a block are rounded to once its scale is divided out.

A minifloat has a sign, an exponent and a mantissa. An integer of ``b`` bits is the same with a single exponent: its
step never grows. So one class, and one rounding, serves both. Sources: OCP 8-bit floating point (2023), OCP
microscaling formats v1.0 (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import torch

Overflow = Literal["saturate", "special"]


@dataclass(frozen=True)
class Minifloat:
    """Values ``+-k * 2^(e - mantissa_bits)`` up to ``max``; below ``2^min_exponent`` the step stays the same.

    Attributes:
        name: as in precision cards and ledgers.
        bits: width of a code: sign, exponent, mantissa.
        mantissa_bits: of the fraction, without the leading one.
        min_exponent: of the smallest normal value.
        max: largest finite value.
        special: what a value beyond ``max`` becomes where it does not saturate; 0: the format has no such value.
        overflow: ``saturate``: values beyond ``max`` become ``max``; ``special``: inf or nan, as the format has it.
    """

    name: str
    bits: int
    mantissa_bits: int
    min_exponent: int
    max: float
    special: float = 0.0
    overflow: Overflow = "saturate"

    @cached_property
    def code_bits(self) -> int:
        """Bits of a code as it is kept: one more than ``bits`` where there is one magnitude more than these hold."""
        return 1 + int(self._code(self.max)).bit_length()

    @property
    def room(self) -> float:
        """What a power-of-two scale by the largest exponent must be multiplied by, lest the largest values saturate."""
        return float(2.0 ** (self.max_exponent + 1)) / self.max

    @cached_property
    def max_exponent(self) -> int:
        """Exponent of the largest value."""
        return int(torch.frexp(torch.tensor(self.max, dtype=torch.float64)).exponent) - 1

    @property
    def step(self) -> float:
        """Distance of the smallest values, the same up to ``2^min_exponent``."""
        return float(2.0 ** (self.min_exponent - self.mantissa_bits))

    def step_exponents(self, x: torch.Tensor) -> torch.Tensor:
        """Exponent (int32) of the distance between the values around each element."""
        if x.dtype == torch.float32:  # its own bits, below every format's smallest exponent for zero and subnormals
            exponents = ((x.view(torch.int32) >> 23) & 0xFF) - 127
        else:
            exponents = torch.where(x == 0, self.min_exponent, torch.frexp(x).exponent - 1)
        return exponents.clamp(min=self.min_exponent, max=self.max_exponent + 1) - self.mantissa_bits

    def round(self, x: torch.Tensor, u: torch.Tensor | None = None) -> torch.Tensor:
        """Round to values of the format; nan stays nan.

        Args:
            x: float32 or float64.
            u: uniform in [0, 1) for stochastic rounding, of the shape of ``x``; None: to nearest, ties to even.

        Returns:
            Values, in the dtype of ``x``.
        """
        steps = power_of_two(self.step_exponents(x)).to(x.dtype)
        v = x / steps  # exact: a power of two
        q = v.round() if u is None else v.floor() + (u < v - v.floor()).to(x.dtype)
        rounded = q * steps
        if self.overflow == "special" and self.special != 0.0:
            special = torch.full_like(rounded, self.special).copysign(rounded)
            return torch.where(rounded.abs() > self.max, special, rounded)
        return rounded.clamp(-self.max, self.max)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Codes (uint8: sign, exponent, mantissa from the top) of values of the format; of nan its own where it has."""
        code = self._code(values)
        finite_top = 1 << (self.code_bits - 1)
        if self.special == float("inf"):
            inf = ((1 << (self.bits - 1 - self.mantissa_bits)) - 1) << self.mantissa_bits
            code = torch.where(values.isinf(), inf, torch.where(values.isnan(), finite_top - 2, code))
        else:
            code = torch.where(values.isnan(), finite_top - 1, code)
        return (code + finite_top * torch.signbit(values)).to(torch.uint8)

    def _code(self, values: torch.Tensor | float) -> torch.Tensor:
        """Codes of magnitudes, int32; of inf and nan anything."""
        x = torch.as_tensor(values).abs()
        exponents = self.step_exponents(x) + self.mantissa_bits
        k = (x / power_of_two(exponents - self.mantissa_bits).to(x.dtype)).nan_to_num(0.0, 0.0, 0.0)
        return ((exponents - self.min_exponent) << self.mantissa_bits) + k.to(torch.int32)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Values (float32) of codes."""
        return self.table(codes.device)[codes.long()]

    def table(self, device: torch.device | None = None) -> torch.Tensor:
        """Value of every code, float32 ``[2^code_bits]``."""
        return _table(self).to(device)


@lru_cache(maxsize=64)
def _table(element: Minifloat) -> torch.Tensor:
    half, one = 1 << (element.code_bits - 1), 1 << element.mantissa_bits
    values = []
    for code in range(half):
        exponent, fraction = divmod(code, one)
        k = fraction + one if exponent else fraction
        value = float(k * 2.0 ** (max(exponent - 1, 0) + element.min_exponent - element.mantissa_bits))
        if value > element.max:
            infinite = element.special == float("inf") and fraction == 0
            value = element.special if infinite else float("nan")
        values.append(value)
    return torch.tensor(values + [-v for v in values], dtype=torch.float32)


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """``2^exponents`` exactly, float32; from -149 (subnormal) to 127."""
    e = exponents.to(torch.int32)
    normal = (e + 127).clamp(min=1) << 23
    subnormal = torch.ones_like(e) << (e + 149).clamp(0, 22)
    return torch.where(e >= -126, normal, subnormal).view(torch.float32)


def integer(bits: int, fraction_bits: int = 0) -> Minifloat:
    """Symmetric signed integers of ``bits`` bits in units of ``2^-fraction_bits``; the lowest code is not used.

    ``integer(8, 6)`` are the elements of MXINT8, with the largest at 1.984375.
    """
    top = (1 << (bits - 1)) - 1
    name = f"int{bits}"
    return Minifloat(name, bits, bits - 2, bits - 2 - fraction_bits, top * 2.0**-fraction_bits)


E4M3 = Minifloat("e4m3", 8, 3, -6, 448.0, float("nan"))
E5M2 = Minifloat("e5m2", 8, 2, -14, 57344.0, float("inf"))
E2M1 = Minifloat("e2m1", 4, 1, 0, 6.0)
E2M3 = Minifloat("e2m3", 6, 3, 0, 7.5)
E3M2 = Minifloat("e3m2", 6, 2, -2, 28.0)
INT8 = integer(8)
INT4 = integer(4)
