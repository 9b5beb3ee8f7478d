"""static: fixed widths from the first step to the last, with the quantizer of the FracTrain authors' code.

FW: A affine per tensor (extremes of the batch; running range in evaluation), W affine per output filter, both nearest.
EB, GC: E affine per tensor, stochastic, the same quantized E in both products. All convolutions; classifier and
BatchNorm in floating point. At 8/8 this is ``sbm`` in its variant ``fractrain``; the static points of the FracTrain
figures are FW 2-8 / BW 6-16 of the same code.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from fractrain.layers.convert import convert_body
from fractrain.methods.base import LAYERS_INERT, KeptLayers, Layers, Method, MethodContext, MethodSettings, Width
from fractrain.numerics.precision import fractrain_precision


class StaticSettings(MethodSettings):
    """Settings of static; 32 leaves an operand in floating point."""

    bits: Width = Field(8, description="activation bits (FW), and weight bits unless weight_bits is given")
    grad_bits: Width = Field(8, description="error bits (BW)")
    weight_bits: Width | None = Field(None, description="weight bits; none: as many as activation bits")
    running: float = Field(0.9, ge=0, lt=1, description="fraction of the old activation range kept (evaluation)")
    keep: KeptLayers = ()
    layers: Layers = "convolutions"


class Static(Method):
    """Static precision: A and W at the forward width, E at the backward width, all convolutions, whole training."""

    name = "static"
    source = "Fu et al., FracTrain, NeurIPS 2020 (arXiv 2012.13113): its static points; authors' train_base.py"
    steps_alike = True
    Settings = StaticSettings
    contract_inert = LAYERS_INERT
    contract_variations = {"weight_bits": 4, "keep": ("stem.0",)}

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize all convolutions."""
        s: StaticSettings = self.settings
        precision = fractrain_precision(s.bits, s.weight_bits or s.bits, s.grad_bits, s.running)
        return convert_body(model, precision, self.state, s.keep, s.layers == "all")
