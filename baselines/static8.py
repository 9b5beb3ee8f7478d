"""static8: the simplest 8-bit training, one symmetric INT8 grid per tensor; the 8-bit baseline of hardware papers.

FW: A symmetric per tensor, W symmetric per output channel, nearest. EB, GC: E symmetric per tensor, stochastic, shared
by both products. First convolution and classifier stay in floating point. No paper's recipe: ours, as DYNASTY's
abstract names "8-bit quantization" as its baseline and says no more.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from fractrain.layers.convert import convert
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.numerics.formats import PerAxis, Symmetric
from fractrain.numerics.precision import Operand, Precision


class Static8Settings(MethodSettings):
    """Settings of static8."""

    bits: int = Field(8, ge=2, le=16, description="width of A, W and E")


class Static8(Method):
    """Plain INT8 training: A, W, E symmetric at 8 bits in all three products, first and last layer in float (ours)."""

    name = "static8"
    source = "ours: uniform symmetric INT8 training; DYNASTY's abstract (arXiv 2210.17047) names no 8-bit recipe"
    steps_alike = True
    Settings = Static8Settings

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize all layers but the first and the last."""
        bits = self.settings.bits
        precision = Precision.of(
            a=Operand(bits, Symmetric(), running=0.9),
            w=Operand(bits, Symmetric(PerAxis(0))),
            e=Operand(bits, Symmetric(rounding="stochastic")),
        )
        return convert(model, precision, self.state, keep_first=True, keep_last=True)
