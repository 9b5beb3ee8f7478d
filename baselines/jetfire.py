"""jetfire: INT8 with a scale per 32x32 block in all three products (Xi et al., "Jetfire", ICML 2024, arXiv 2403.12422).

A, W and E: symmetric INT8, float32 scale max|x|/127 per 32x32 block of the operand's matrix, nearest; the same blocks
serve both products of a tensor. First layer, classifier and products of two activations in floating point.
Departures: the paper's activations and normalisation work on INT8 blocks as well, here in float32; it is for linear
layers (a convolution's blocks: 32 pixels x 32 channels, filters x channels at each place of the kernel). Written from
the rule of the paper, not from its code.
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


class Jetfire(Method):
    """INT8 training with a scale per 32x32 block of every operand."""

    name = "jetfire"
    source = "Xi et al., Jetfire (arXiv 2403.12422), rule of the paper"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize convolutions and linear layers."""
        block = Operand.of(Scaled(PerBlock(32, 32), element=INT8, scale=Step()))
        return convert_weighted(model, Precision.of(block, block, block), self.state)
