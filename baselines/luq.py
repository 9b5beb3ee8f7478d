"""luq: INT4 forward, FP4 errors ("Accurate Neural Training with 4-bit Matrix Multiplications", Chmiel et al. 2023).

W and A: INT4, clipped at 12.1 rms - 12.2 mean|x| (SAWB), nearest; W -8..7, A 0..15 where it has no negative value. E:
powers of two up to max|e|, stochastic between them and, below the smallest, between it and zero.

Departures: the released code takes max e for max|e|; ``exponents=7`` is its smallest power, max|e|/2^7: eight powers
and a zero make 17 values, one more than four bits hold (6 fits); a clip that is not positive becomes max|x|; hindsight
estimates of the maximum and repeated sampling are not offered; first layer, classifier and products of two activations
in floating point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import nn

from fractrain.layers.convert import convert_weighted
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.numerics.elements import Minifloat
from fractrain.numerics.formats import Bits, Format, Limits
from fractrain.numerics.grid import Grid
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import Multiplier


@dataclass(frozen=True)
class SAWB(Format):
    """Sixteen points; the step is 2/15 of a clip found from two moments (Choi et al., arXiv 1807.06964)."""

    def limits(self, x: torch.Tensor, kernels: str = "auto") -> Limits:
        """Lowest and highest point; nan where ``x`` has inf or nan."""
        low, high = x.aminmax()
        amax = torch.maximum(-low, high)
        unit = (x / torch.where(amax > 0, amax, 1.0)).abs()  # lest squares overflow
        clip = (12.1 * unit.square().mean().sqrt() - 12.2 * unit.mean()) * amax
        clip = torch.where(clip <= 0, amax, clip)
        step = clip * (2 / 15)
        return torch.where(low < 0, -8 * step, 0 * step), torch.where(low < 0, 7 * step, 15 * step)

    def _grid(self, lo: torch.Tensor, hi: torch.Tensor, bits: Bits) -> Grid:
        step = ((hi - lo) / 15).clamp(min=torch.finfo(torch.float32).tiny)
        bottom = torch.where(lo < 0, -8.0, 0.0)
        return Grid(step, torch.zeros_like(step), bottom, bottom + 15.0)


class LUQSettings(MethodSettings):
    """Settings of luq."""

    exponents: int = Field(7, ge=2, le=14, description="errors: the smallest power is the largest over 2 to this")


class LUQ(Method):
    """INT4 activations and weights clipped by SAWB, errors on powers of two with stochastic rounding and underflow."""

    name = "luq"
    source = "Chmiel et al., LUQ (ICLR 2023, arXiv 2112.10769) and its supplementary code"
    Settings = LUQSettings

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize convolutions and linear layers."""
        powers = Minifloat("e3m0", 4, 0, -self.settings.exponents, 1.0)
        a, e = Operand(4, SAWB()), Operand.of(Scaled(rounding="stochastic", element=powers, scale=Multiplier()))
        return convert_weighted(model, Precision.of(a, a, e), self.state)
