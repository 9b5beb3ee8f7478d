"""nvfp4: NVFP4 training as TransformerEngine's recipe defines it ("Pretraining LLMs with NVFP4", arXiv 2509.25149).

E2M1 with an E4M3 scale per block and a float32 scale per tensor. FW: A in blocks of 16 along the reduction, W in 16x16
blocks (``weights_2d``), so that EB reads the same weight. E in blocks of 16 along each reduction, stochastic
(``stochastic``). GC: both operands rotated by 16x16 Hadamard matrices with one vector of signs (``rotation``).
``headroom``: E's scale 17/16 as large, so that rounding it to E4M3 saturates nothing, without which stochastic rounding
is biased. ``four_over_six``: A and W choose between two scales for each block (arXiv 2512.02010).

Departures: ``headroom`` is not in the recipe (it is in Quartet II's comparison); the vector of signs is ours; the
recipe keeps some layers in BF16, here the first and the last in float32; its products of two activations are BF16.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import nn

from fractrain.layers.convert import convert_weighted
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.numerics.elements import E2M1
from fractrain.numerics.formats import PerBlock
from fractrain.numerics.nvfp4 import FourOverSix
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.rotation import Rotated
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import TwoLevel


class NVFP4Settings(MethodSettings):
    """Settings of nvfp4."""

    weights_2d: bool = Field(True, description="weights in 16x16 blocks, else in blocks along each reduction")
    stochastic: bool = Field(True, description="errors are rounded stochastically")
    headroom: bool = Field(True, description="scales of stochastic errors are 17/16 as large, lest they saturate")
    rotation: bool = Field(True, description="operands of GC are rotated by random Hadamard matrices of 16")
    four_over_six: bool = Field(False, description="activations and weights choose between two scales a block")


class NVFP4(Method):
    """NVFP4: E2M1 in blocks of 16 with E4M3 scales; stochastic errors, rotated weight-gradient products."""

    name = "nvfp4"
    source = "TransformerEngine NVFP4BlockScaling; Pretraining LLMs with NVFP4 (arXiv 2509.25149)"
    Settings = NVFP4Settings

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize convolutions and linear layers."""
        s: NVFP4Settings = self.settings
        row, square = PerBlock(1, 16), PerBlock(16, 16)
        kind = FourOverSix if s.four_over_six else Scaled
        a, w = (kind(b, element=E2M1, scale=TwoLevel(bound=256.0 if s.four_over_six else 448.0))
                for b in (row, square if s.weights_2d else row))  # fmt: skip
        margin = 17 / 16 if s.stochastic and s.headroom else 1.0
        e = Scaled(row, "stochastic" if s.stochastic else "nearest", element=E2M1, scale=TwoLevel(margin))
        precision = Precision.along_reduction(*(Operand.of(f) for f in (a, w, e)))
        if s.rotation:
            gc_a, gc_e = (Operand.of(Rotated(inner=f.flipped(), size=16)) for f in (a, e))
            precision = replace(precision, gc_a=gc_a, gc_e=gc_e)
        return convert_weighted(model, precision, self.state)
