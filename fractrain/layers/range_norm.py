"""Range batch normalisation (Banner et al. 2018, section 3): the range of a batch instead of its variance."""

from __future__ import annotations

import math

import torch
from torch import nn

from fractrain.layers.eager import eager
from fractrain.layers.number_types import in_wide_types, widened
from fractrain.layers.recomputation import recomputing
from fractrain.layers.state import QuantState
from fractrain.numerics.formats import Affine
from fractrain.numerics.quantize import quantize
from fractrain.util.errors import ConfigError

CHUNKS = 16  # the range is the mean over this many chunks of the batch (Banner et al.'s code)


def range_constant(n: int) -> float:
    """Scale of a Gaussian from the expected range of ``n`` values (Banner et al., section 3, and their code)."""
    return 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))


class RangeBatchNorm2d(nn.Module):
    """Normalise by ``(mean of maxima - mean of minima) * c`` over chunks of each channel; everything at ``bits``.

    Input ``[N, C, H, W]``; x, scale, gamma and beta are quantized (affine per tensor, straight-through), and the output
    gradient at ``grad_bits`` with stochastic rounding.

    Args:
        norm: the BatchNorm2d it replaces; its parameters and running statistics are taken over.
        state: shared state.
        site: name in the model.
        bits, grad_bits: widths.

    Raises:
        ConfigError: the layer has no parameters.
    """

    def __init__(self, norm: nn.BatchNorm2d, state: QuantState, site: str, bits: int, grad_bits: int) -> None:
        super().__init__()
        if not norm.affine:
            raise ConfigError(f"{site}: batch normalisation without parameters (affine=False) has no range form")
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.momentum = 0.1 if norm.momentum is None else norm.momentum
        self.state, self.site, self.bits, self.grad_bits = state, site, bits, grad_bits
        mean, var = norm.running_mean, norm.running_var
        self.register_buffer("running_mean", torch.zeros_like(norm.weight.detach()) if mean is None else mean.clone())
        self.register_buffer(
            "running_scale", torch.ones_like(norm.weight.detach()) if var is None else (var + self.eps).rsqrt()
        )
        self.running_mean: torch.Tensor
        self.running_scale: torch.Tensor

    @eager
    @in_wide_types
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise."""
        x = _FakeQuant.apply(x, self.bits, self.state)
        if self.training:
            mean, scale = self._batch_statistics(x)
            share = 0.0 if recomputing() else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_scale.lerp_(scale.to(self.running_scale.dtype), share)
        else:
            mean, scale = widened(self.running_mean), widened(self.running_scale)
        view = (1, -1, 1, 1)
        scale = _FakeQuant.apply(scale, self.bits, self.state)
        gamma, beta = (_FakeQuant.apply(widened(p), self.bits, self.state) for p in (self.weight, self.bias))
        y = (x - mean.view(view)) * scale.view(view) * gamma.view(view) + beta.view(view)
        out: torch.Tensor = _QuantGrad.apply(y, self.grad_bits, self.state, f"{self.site}.E")
        return out

    def _batch_statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = x.shape[1]
        flat = x.transpose(0, 1).reshape(c, -1)
        chunks = math.gcd(CHUNKS, flat.shape[1])
        while chunks > 1 and flat.shape[1] // chunks < 2:  # one value has no range (few samples of 1x1 pixels)
            chunks //= 2
        y = flat.view(c, chunks, -1)
        spread = y.amax(dim=2).mean(dim=1) - y.amin(dim=2).mean(dim=1)
        scale = 1.0 / (spread * range_constant(max(2, y.shape[2])) + self.eps)
        # A constant channel has nothing to scale. Its 1 / eps would take the whole range of the quantized scales, which
        # are rounded on one grid, and leave those of all other channels at its lowest points.
        return flat.mean(dim=1), torch.where(spread > 0, scale, 0.0)


class _FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor, bits: int, state: QuantState) -> torch.Tensor:
        f = Affine()
        return quantize(x, f.grid(f.limits(x), bits, x), kernels=state.kernels)[0]

    @staticmethod
    def backward(ctx: object, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grads[0], None, None


class _QuantGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor, bits: int, state: QuantState, name: str) -> torch.Tensor:
        ctx.args = (bits, state, name)  # type: ignore[attr-defined]
        return x.clone()  # not a view: what follows may work in place

    @staticmethod
    def backward(ctx: object, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        bits, state, name = ctx.args  # type: ignore[attr-defined]
        g = grads[0].contiguous(memory_format=torch.channels_last)
        f = Affine(rounding="stochastic")
        base = state.sample_offset * (g.numel() // g.shape[0])
        grid = f.grid(f.limits(g), bits, g)
        return quantize(g, grid, state.noise(name, base), kernels=state.kernels)[0], None, None, None


def replace_batch_norm(model: nn.Module, state: QuantState, bits: int, grad_bits: int) -> nn.Module:
    """Replace every BatchNorm2d of the model in place and return the model."""
    for name, m in list(model.named_modules()):
        if isinstance(m, nn.BatchNorm2d):
            new = RangeBatchNorm2d(m, state, name, bits, grad_bits).train(m.training)
            model.set_submodule(name, new)
    return model
