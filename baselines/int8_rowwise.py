"""int8_rowwise: INT8 mixed-precision training by rows, as torchao's quantized_training does it.

All three products: both operands symmetric INT8, float32 scale max|x|/127 for each row of the first and column of the
second, nearest. So A, E and W are rounded anew for each of their products. Departures: first layer and classifier in
floating point; the source is for linear layers (a row of a convolution's operand: a pixel, or all of a filter).
"""

from __future__ import annotations

from torch import nn

from fractrain.layers.convert import convert_weighted
from fractrain.methods.base import Method, MethodContext
from fractrain.numerics.elements import INT8
from fractrain.numerics.formats import PerBlock
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import Step


class Int8Rowwise(Method):
    """INT8 training with a scale per row of every product's operands (torchao)."""

    name = "int8_rowwise"
    source = "torchao 0.18 prototype.quantized_training, Int8MixedPrecisionTrainingConfig"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize convolutions and linear layers."""
        row = Operand.of(Scaled(PerBlock(1, 0), element=INT8, scale=Step()))
        return convert_weighted(model, Precision.along_reduction(row, row, row), self.state)
