"""dorefa: "DoReFa-Net" (Zhou et al., arXiv 1606.06160; formulas as in its authors' tensorpack code, ``dorefa.py``).

With q(x, k) = round(x (2^k - 1)) / (2^k - 1) on [0, 1]:

* W (FW, EB): ``2 q(tanh(w) / (2 max|tanh(w)|) + 1/2, k) - 1``, nearest, one range per tensor, values in [-1, 1]. The
  gradient goes straight through q and exactly through tanh and the division by the maximum.
* A (FW, GC): clipped to [0, clip], divided by clip, q, times clip; nearest. Fixed range: nothing is measured, and
  evaluation needs no running range.
* E (EB, GC): per sample, with m = max|e|: ``2 m (q(e / (2 m) + 1/2 + noise, k) - 1/2)``, noise uniform over one step:
  stochastic rounding on 2^k points from -m to m. As in the source zero is no point of the grid.
* First convolution and last layer: floating point. BatchNorm, stored weights, optimizer: floating point.

A width of 32 leaves an operand in floating point: ``bits=4 weight_bits=4 grad_bits=32`` is FW-4/BW-32.

Departures. (1) The source builds its networks with the clip in place of ReLU and a BatchNorm before every clip; models
here keep their ReLU, and the clip sits at the input of every quantized layer (also at 32 bits). Identity shortcuts
therefore carry unclipped values, as in the source's pre-activation ResNet, but block inputs are sums that no BatchNorm
brings back to [0, 1]. At the source's ``clip=1`` most of the inputs of a ResNet's blocks are 1 and it hardly learns,
in 32 bits as little as in 8. On such inputs the source is silent; the default of 8 is ours, found on the embedded
digits. Where a BatchNorm follows it is the source's formula on an input divided by 8. The classifier's input is not
clipped. (2) 1-bit weights (their own formula) and 1-bit activations are not offered. (3) Where all weights, or all
errors of a sample, are zero the source divides by zero; here errors stay zero, and zero weights are not scaled. (4)
Data, schedule and SGD are the harness's (the source: other networks, Adam).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from pydantic import Field
from torch import nn

from fractrain.layers.clip import clip
from fractrain.layers.convert import convert, quant_layers
from fractrain.layers.matmul import Matmul
from fractrain.methods.base import Method, MethodContext, MethodSettings, Width
from fractrain.numerics.backend import Kernels
from fractrain.numerics.formats import Affine, Bits, Format, Limits, PerAxis, widths_like
from fractrain.numerics.grid import Grid
from fractrain.numerics.precision import Operand, Precision

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Clipped(Affine):
    """Activations: ``2^k`` points from 0 to ``clip`` whatever the data, which is clipped to them."""

    clip: float = 1.0

    def limits(self, x: torch.Tensor, kernels: Kernels = "auto") -> Limits:
        """Return 0 and ``clip``; both are nan if ``x`` has inf or nan."""
        low, high = super().limits(x, kernels)
        zero = (low + high) * 0.0
        return zero, zero + self.clip


def _largest(t: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of a tensor; 1 if all is zero."""
    top = t.abs().amax()
    return torch.where(top > 0, top, 1.0)


@dataclass(frozen=True)
class TanhWeight(Affine):
    """Weights: ``tanh(w) / max|tanh(w)|`` on ``2^k`` points from -1 to 1."""

    def forward_transform(self, x: torch.Tensor) -> torch.Tensor:
        """Squash into [-1, 1]; the largest magnitude becomes 1."""
        t = x.tanh()
        return t / _largest(t)

    def backward_transform(self, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        """Exact gradient of :meth:`forward_transform`; several equal maxima share the maximum's part."""
        t = x.tanh()
        top = _largest(t)
        at_top = (t.abs() == top).to(t.dtype)
        share = t.sign() * at_top / at_top.sum().clamp(min=1.0)
        inner = (grad - share * ((grad * t).sum() / top)) / top
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
        n = torch.pow(2.0, widths_like(bits, lo)) - 1.0
        return Grid(((hi - lo) / n.clamp(min=1.0)).clamp(min=TINY), lo, torch.zeros_like(n), n)


def clip_input(top: float, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Clip a layer's input to [0, top] (a forward pre-hook); the gradient is zero where it was outside."""
    return (clip(inputs[0], 0.0, top), *inputs[1:])


class DoReFaSettings(MethodSettings):
    """Settings of dorefa."""

    bits: Width = Field(8, description="activation bits, 2..16 or 32 (float)")
    weight_bits: Width = Field(8, description="weight bits, 2..16 or 32 (float)")
    grad_bits: Width = Field(8, description="error bits, 2..16 or 32 (float)")
    clip: float = Field(8.0, gt=0, allow_inf_nan=False, description="activations are clipped to [0, clip] (source: 1)")


class DoReFa(Method):
    """DoReFa-Net: tanh weights, activations clipped (source at 1, default here 8), errors per sample, stochastic."""

    name = "dorefa"
    version = 2  # gradients at the limits of clipping pass, whatever PyTorch's release
    source = "Zhou et al., DoReFa-Net (arXiv 1606.06160); tensorpack examples/DoReFa-Net"
    steps_alike = True
    Settings = DoReFaSettings

    @classmethod
    def unsuitable(cls, model: nn.Module) -> str | None:
        """Activations are clipped to [0, clip]: no model whose layers read signed values."""
        if any(isinstance(m, Matmul | nn.MultiheadAttention) for m in model.modules()):
            return "activations are clipped to [0, clip], but those of attention and LayerNorm have both signs"
        return None

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize and clip all layers but the first and the last."""
        s: DoReFaSettings = self.settings
        precision = Precision.of(
            a=Operand(s.bits, Clipped(clip=s.clip)),
            w=Operand(s.weight_bits, TanhWeight()),
            e=Operand(s.grad_bits, SampleError(PerAxis(0), rounding="stochastic")),
        )
        model = convert(model, precision, self.state, keep_first=True, keep_last=True)
        for layer in quant_layers(model):
            if layer.precision is precision:  # kept layers have a float precision of their own
                layer.register_forward_pre_hook(partial(clip_input, s.clip))
        return model
