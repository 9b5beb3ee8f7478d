"""fp32: plain single-precision training, the yardstick of every accuracy and the 100 % of every cost."""

from __future__ import annotations

from torch import nn

from fractrain.layers.convert import convert
from fractrain.methods.base import Method, MethodContext
from fractrain.numerics.precision import Precision


class FP32(Method):
    """Full precision: nothing is quantized; layers only report their products to the ledger."""

    name = "fp32"
    source = "the models' own papers"
    steps_alike = True

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Wrap layers at 32 bits."""
        return convert(model, Precision(), self.state, keep_last=False, strict=False)
