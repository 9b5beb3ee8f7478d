"""mx: training in OCP microscaling formats, blocks of 32 along the reduction of each product, one power of two each.

All six operands in one element format: ``mxfp8`` (E4M3), ``mxfp6`` (E3M2), ``mxfp4`` (E2M1), ``mxint8``.
``rounding=stochastic``: operands of EB and GC stochastic, their scales large enough to saturate nothing (for MXFP4 4/3,
the 3/4 of Tseng et al., arXiv 2502.20586). ``rotation``: operands of EB and GC rotated by random Hadamard matrices of
32, signs anew in every step.

Sources: Rouhani et al., arXiv 2310.10537; OCP MX v1.0. Departures: MXFP6 in E3M2 throughout is our choice of its two;
Tseng et al. keep the forward product in BF16 or FP8, here it is in the same format; first layer, classifier and
products of two activations in floating point; blocks of a convolution lie along its channels, those of GC along pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import nn

from fractrain.layers.convert import convert_weighted
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.numerics.elements import E2M1, E3M2, E4M3, integer
from fractrain.numerics.formats import PerBlock
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.rotation import Rotated
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import E8M0

ELEMENTS = {"mxfp8": E4M3, "mxfp6": E3M2, "mxfp4": E2M1, "mxint8": integer(8, 6)}


class MXSettings(MethodSettings):
    """Settings of mx."""

    format: Literal["mxfp8", "mxfp6", "mxfp4", "mxint8"] = Field("mxfp8", description="format of all operands")
    scale: Literal["floor", "rceil", "ceil", "even"] = Field("floor", description="rule for a block's power of two")
    rounding: Literal["nearest", "stochastic"] = Field("nearest", description="of the operands of EB and GC")
    rotation: bool = Field(False, description="rotate operands of EB and GC by random Hadamard matrices of 32")


class MX(Method):
    """Microscaling formats (MXFP8, MXFP6, MXFP4, MXINT8): blocks of 32 along the reduction share a power of two."""

    name = "mx"
    source = "Rouhani et al., Microscaling Data Formats for Deep Learning (arXiv 2310.10537); OCP MX v1.0"
    Settings = MXSettings

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize convolutions and linear layers."""
        s: MXSettings = self.settings
        element, block = ELEMENTS[s.format], PerBlock(1, 32)
        margin = element.room if s.rounding == "stochastic" else 1.0
        forward = Scaled(block, element=element, scale=E8M0(mode=s.scale))
        back = Scaled(block, s.rounding, element=element, scale=E8M0(margin, s.scale))
        a, b = Operand.of(forward), Operand.of(Rotated(inner=back, size=32, fresh=True) if s.rotation else back)
        return convert_weighted(model, replace(Precision.along_reduction(b, b, b), fw_a=a, fw_w=a), self.state)
