"""fp8: FP8 training as torchao's float8 and TransformerEngine define it.

Operands of convolutions and linear layers; products of two activations, first layer and classifier in floating point.
``recipe``: ``tensorwise``: A, W in E4M3, E in E5M2, scale max/amax per tensor. ``rowwise``: all in E4M3, scale a power
of two per row of each product's operand. ``rowwise_with_gw_hp``: so FW; EB with W per tensor; GC in float.
``delayed``: as tensorwise, scales from the largest amax of the last ``history`` steps.

Departures: the sources are for linear layers (rows of a convolution: a pixel, or all of a filter); delayed: bias and
margin are not settings; a history of zeros gives scale 1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from fractrain.layers.convert import convert_weighted
from fractrain.methods.base import Method, MethodContext, MethodSettings, Variation
from fractrain.numerics.elements import E4M3, E5M2
from fractrain.numerics.formats import PerBlock
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import Multiplier


class FP8Settings(MethodSettings):
    """Settings of fp8."""

    recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed"] = Field(
        "tensorwise", description="where scales come from, and what is quantized"
    )
    history: int = Field(1024, ge=1, le=1 << 20, description="recipe delayed: steps of the amax history")


class FP8(Method):
    """FP8 training: E4M3 activations and weights, E5M2 errors (by rows: E4M3), scales by recipe."""

    name = "fp8"
    source = "torchao 0.18 float8 recipes; TransformerEngine DelayedScaling"
    Settings = FP8Settings
    contract_variations = {"history": Variation(2, {"recipe": "delayed"})}

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize by recipe."""
        s: FP8Settings = self.settings
        power = Multiplier(power_of_two=True)
        row = Operand.of(Scaled(PerBlock(1, 0), scale=power))
        history = s.history if s.recipe == "delayed" else 0
        a, e = (Operand.of(Scaled(element=x), history=history) for x in (E4M3, E5M2))
        whole = Operand.of(Scaled(scale=power))
        precision = {
            "rowwise": Precision.along_reduction(row, row, row),
            "rowwise_with_gw_hp": Precision(fw_a=row, fw_w=row, eb_e=row, eb_w=whole),
        }.get(s.recipe, Precision.of(a, a, e))
        return convert_weighted(model, precision, self.state)
