"""sbm: "Scalable Methods for 8-bit Training" (Banner et al., NeurIPS 2018, arXiv 1805.11046), in two variants.

``variant=fractrain`` (default): the quantizer of the FracTrain authors' code, which their tables call SBM. FW: A affine
per tensor (extremes of the batch, running range in evaluation), W affine per output filter, both nearest. EB, GC: E
affine per tensor, stochastic, the same quantized E in both products. All convolutions; classifier and BatchNorm in
floating point.

``variant=banner``: as published. W affine per tensor; A affine with the mean over samples of each sample's extremes; E
stochastic in EB, *floating point in GC* (gradient bifurcation); Range BN at 8 bits; first layer and classifier
quantized. Used by no table.
Departures of ``banner`` from the released code. (1) That rounds activations stochastically through an argument slip; we
round to nearest. (2) Range BN quantizes its input with the extremes of the batch, not with the mean of the samples'
extremes, in evaluation too, where the source uses running ones: outputs then depend on the rest of the batch. (3) Its
running statistics keep 0.9 of the old value (source: 0.1). (4) The classifier's bias is not quantized. (5) Where a
chunk's largest value is reached more than once, its gradient is divided among them (source: to one).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from fractrain.layers.convert import convert, convert_body
from fractrain.layers.range_norm import replace_batch_norm
from fractrain.methods.base import LAYERS_INERT, KeptLayers, Layers, Method, MethodContext, MethodSettings
from fractrain.numerics.formats import Affine
from fractrain.numerics.precision import FLOAT, Operand, Precision, fractrain_precision


class SBMSettings(MethodSettings):
    """Settings of sbm."""

    variant: Literal["fractrain", "banner"] = Field("fractrain", description="whose SBM: see `sbm` in the docs")
    bits: int = Field(8, ge=2, le=16, description="forward bits (A and W)")
    grad_bits: int = Field(8, ge=2, le=16, description="error bits")
    running: float = Field(0.9, ge=0, lt=1, description="fraction of the old activation range kept (variant fractrain)")
    keep: KeptLayers = ()
    layers: Layers = "convolutions"


class SBM(Method):
    """Static 8-bit training (SBM): as the FracTrain authors ran it, or as Banner et al. published it."""

    name = "sbm"
    source = "Banner et al., NeurIPS 2018 (arXiv 1805.11046); FracTrain authors' train_base.py"
    steps_alike = True
    Settings = SBMSettings
    contract_inert = LAYERS_INERT
    contract_variations = {"keep": ("stem.0",)}

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize by variant."""
        s: SBMSettings = self.settings
        if s.variant == "fractrain":
            precision = fractrain_precision(s.bits, s.bits, s.grad_bits, s.running)
            return convert_body(model, precision, self.state, s.keep, s.layers == "all")
        # Banner's running range keeps a tenth of the old value.
        a = Operand(s.bits, Affine(statistic="mean"), running=0.1)
        w = Operand(s.bits, Affine())
        e = Operand(s.grad_bits, Affine(rounding="stochastic"))
        convert(
            model,
            Precision(fw_a=a, fw_w=w, eb_e=e, eb_w=w, gc_a=a, gc_e=FLOAT),
            self.state,
            keep_last=False,
            keep=s.keep,
        )
        return replace_batch_norm(model, self.state, s.bits, s.grad_bits)
