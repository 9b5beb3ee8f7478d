"""quartet2: "Quartet II: Accurate LLM Pre-Training in NVFP4" (arXiv 2601.22813): unbiased backward products by MS-EDEN.

FW: A and W in NVFP4, blocks of 16 along the reduction, each block at the better of two scales ("4 over 6"). EB and GC:
both operands rotated by Hadamard matrices of 128 with fresh signs, rounded to nearest, and their scales corrected by
<x, x> / <x, q> over 128 values and rounded to E4M3 stochastically.

Departures: the products are the values' own (``correction=codes``: as the released code takes them, in units of the
scales; its mean is off by 0.06 %); A of EB and GC is rounded from the tensor, not from FW's values; first layer,
classifier and products of two activations in floating point.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import nn

from fractrain.layers.convert import convert_weighted
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.numerics.nvfp4 import Eden, FourOverSix
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.rotation import Rotated


class Quartet2Settings(MethodSettings):
    """Settings of quartet2."""

    correction: Literal["values", "codes"] = Field("values", description="what the scales' correction is taken of")


class Quartet2(Method):
    """NVFP4 with unbiased backward products: rotated, nearest, scales corrected by the result (MS-EDEN)."""

    name = "quartet2"
    source = "Quartet II (arXiv 2601.22813) and its authors' released kernels"
    Settings = Quartet2Settings

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize convolutions and linear layers."""
        forward = Operand.of(FourOverSix())
        eden = Eden(released=self.settings.correction == "codes")
        backward = Operand.of(Rotated(inner=eden, size=128, fresh=True))
        precision = replace(Precision.along_reduction(backward, backward, backward), fw_a=forward, fw_w=forward)
        return convert_weighted(model, precision, self.state)
