"""switchback: INT8 forward and error products, weight gradients in floating point (Wortsman et al., arXiv 2304.13013).

FW: A INT8 per row, W INT8 per tensor. EB: E INT8 per row, W per tensor. GC: floating point ("switch back"), since its
reduction is the longest and its noise the largest. Symmetric, float32 scale max|x|/127, nearest.
Departures: first layer and classifier in floating point (source: linear layers of a Transformer's blocks); a row of a
convolution's operand is a pixel.
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


class SwitchBack(Method):
    """INT8 forward and error products by rows; weight gradients in floating point."""

    name = "switchback"
    source = "Wortsman et al., Stable and low-precision training (NeurIPS 2023, arXiv 2304.13013), SwitchBack"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize convolutions and linear layers."""
        row = Operand.of(Scaled(PerBlock(1, 0), element=INT8, scale=Step()))
        w = Operand.of(Scaled(element=INT8, scale=Step()))
        return convert_weighted(model, Precision(fw_a=row, fw_w=w, eb_e=row, eb_w=w), self.state)
