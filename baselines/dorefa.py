"""dorefa: "DoReFa-Net" (Zhou et al., arXiv 1606.06160; formulas as in its authors' tensorpack code, ``dorefa.py``).

With q(x, k) = round(x (2^k - 1)) / (2^k - 1) on [0, 1]:

* W (FW, EB): ``2 q(tanh(w) / (2 max|tanh(w)|) + 1/2, k) - 1``, nearest, one range per tensor, values in [-1, 1]. The
  gradient goes straight through q and exactly through tanh and the division by the maximum.
* A (FW, GC): clipped to [0, 1], then q, nearest. Fixed range: nothing is measured, evaluation needs no running range.
* E (EB, GC): per sample, with m = max|e|: ``2 m (q(e / (2 m) + 1/2 + noise, k) - 1/2)``, noise uniform over one step:
  stochastic rounding on 2^k points from -m to m. As in the source zero is no point of the grid.
* First convolution and last layer: floating point. BatchNorm, stored weights, optimizer: floating point.

A width of 32 leaves an operand in floating point: ``bits=4 weight_bits=4 grad_bits=32`` is FW-4/BW-32.

Departures: (1) The source builds its networks with the clip in place of ReLU; models here keep their ReLU, and the clip
sits at the input of every quantized layer (also at 32 bits). Identity shortcuts therefore carry unclipped values, as
in the source's pre-activation ResNet, but block inputs are sums that no BatchNorm brings back into [0, 1], and the
classifier's input is not clipped. (2) 1-bit weights (their own formula) and 1-bit activations are not offered. (3) A
sample whose error is all zero stays zero; the source divides by zero. (4) Data, schedule and SGD are the harness's (the
source: Adam, other networks; in its SVHN example weight decay on the classifier alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field, field_validator
from torch import nn

from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.quant.convert import convert, quant_layers
from fractrain.quant.formats import Affine, Bits, Format, Limits, PerAxis
from fractrain.quant.grid import Grid
from fractrain.quant.kernels import Kernels
from fractrain.quant.precision import FLOAT_BITS, Operand, Precision

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class UnitInterval(Affine):
    """Activations: ``2^k`` points from 0 to 1 whatever the data, which is clipped to them."""

    def limits(self, x: torch.Tensor, kernels: Kernels = "auto") -> Limits:
        """Return 0 and 1; both are nan if ``x`` has inf or nan."""
        low, high = super().limits(x, kernels)
        zero = (low + high) * 0.0
        return zero, zero + 1.0


@dataclass(frozen=True)
class TanhWeight(Affine):
    """Weights: ``tanh(w) / max|tanh(w)|`` on ``2^k`` points from -1 to 1."""

    def forward_transform(self, x: torch.Tensor) -> torch.Tensor:
        """Squash into [-1, 1]; the largest magnitude becomes 1."""
        t = x.tanh()
        return t / t.abs().amax().clamp(min=TINY)

    def backward_transform(self, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Exact gradient of :meth:`forward_transform`; several equal maxima share the maximum's part."""
        t = x.tanh()
        size = t.abs()
        top = size.amax().clamp(min=TINY)
        at_top = (size == top).to(t.dtype)
        share = t.sign() * at_top / at_top.sum().clamp(min=1.0)
        inner = grad / top - share * ((grad * t).sum() / top.square())
        return inner * (1.0 - t.square())

    def limits(self, x: torch.Tensor, kernels: Kernels = "auto") -> Limits:
        """Return -1 and 1; both are nan if ``x`` has nan."""
        low, high = super().limits(x, kernels)
        zero = (low + high) * 0.0
        return zero - 1.0, zero + 1.0


@dataclass(frozen=True)
class SampleError(Format):
    """Errors: ``2^k`` points from ``-m`` to ``m``, m the largest magnitude in the sample (or whole tensor)."""

    def limits(self, x: torch.Tensor, kernels: Kernels = "auto") -> Limits:
        """Return -m and m."""
        low, high = super().limits(x, kernels)
        m = torch.maximum(low.abs(), high.abs())
        return -m, m

    def _grid(self, lo: torch.Tensor, hi: torch.Tensor, bits: Bits) -> Grid:
        # No lower bound but float32's own on the step: errors of samples that are learned become very small.
        n = torch.pow(2.0, torch.as_tensor(bits, device=lo.device).to(lo.dtype)) - 1.0
        return Grid(((hi - lo) / n.clamp(min=1.0)).clamp(min=TINY), lo, torch.zeros_like(n), n)


def clip_input(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Clip a layer's input to [0, 1] (a forward pre-hook); the gradient is zero where it was outside."""
    return (inputs[0].clamp(0.0, 1.0), *inputs[1:])


class DoReFaSettings(MethodSettings):
    """Settings of dorefa; each width is 2..16, or 32 for floating point."""

    bits: int = Field(8, ge=2, le=FLOAT_BITS, description="activation bits, 2..16 or 32 (float)")
    weight_bits: int = Field(8, ge=2, le=FLOAT_BITS, description="weight bits, 2..16 or 32 (float)")
    grad_bits: int = Field(8, ge=2, le=FLOAT_BITS, description="error bits, 2..16 or 32 (float)")

    @field_validator("bits", "weight_bits", "grad_bits")
    @classmethod
    def _width(cls, value: int) -> int:
        if 16 < value < FLOAT_BITS:
            raise ValueError("widths are 2..16, or 32 for floating point")
        return value


class DoReFa(Method):
    """DoReFa-Net: tanh weights, activations clipped to [0, 1], errors scaled per sample with stochastic rounding."""

    name = "dorefa"
    source = "Zhou et al., DoReFa-Net (arXiv 1606.06160); tensorpack examples/DoReFa-Net"
    Settings = DoReFaSettings

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize and clip all layers but the first and the last."""
        s: DoReFaSettings = self.settings
        precision = Precision.of(
            a=Operand(s.bits, UnitInterval()),
            w=Operand(s.weight_bits, TanhWeight()),
            e=Operand(s.grad_bits, SampleError(PerAxis(0), rounding="stochastic")),
        )
        model = convert(model, precision, self.state, keep_first=True, keep_last=True)
        for layer in quant_layers(model):
            if layer.precision is precision:  # kept layers have a float precision of their own
                layer.register_forward_pre_hook(clip_input)
        return model
