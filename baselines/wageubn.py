"""wageubn: "full 8-bit integer" training (Yang et al., Neural Networks 125, 2020, arXiv 1909.02384; authors' TF code).

Direct quantisation: Q(x, k) = round(x 2^(k-1)) / 2^(k-1), nearest. R(x): the power of two nearest to max|x| on a log
scale. All per tensor; gradients go straight through.

* W (FW, EB): Q(w, 8) saturated at +-(1 - 2^-7). Stored weights, gamma and beta lie on the grid of Q(., 24).
* A (FW, GC): fixed point, 8 bits, step 2^-fraction_bits, unsigned where the input has no negative values.
* E2, the error at a layer's output (EB, GC): ``flag``: step R(e)/2^7, integers up to +-127; what is below one step gets
  a grid 2^7 times finer (the flag bit says which: each product is 8 x 8 bits, a stored value takes 9). ``shift``: the
  coarse grid alone.
* E1, the error at a layer's input (not an operand of a product): R(e) Q(e/R(e), 8), saturated at +-127/128.
* G, the weight gradient: "constant quantisation", g/R(g) * 2^7 rounded stochastically to integers up to +-127, times
  2^-14 whatever the size of g. Gradients of gamma and beta: Q(., 15).
* BatchNorm: mean and std Q(., 16), eps 2^-15, normalised x, gamma, beta Q(., 8). x is not saturated, as in the source.
* First convolution and last layer: floating point in everything.

Departures. (1) The source never saturates A: with step 2^-7 and values above 2 its activations need more than the 8
bits they are said to have. Here they have 8 and saturate (no gradient where they do), and since the models here add
residuals up without a BatchNorm after the sum (the source's are pre-activation), the default ``fraction_bits`` is 5,
so that 8 bits reach 8; at 7 a ResNet learns poorly. ``bits=12 fraction_bits=7`` is the source's arithmetic for values
below 32, counted as 12 bits. (2) The optimizer is the harness's SGD in floating point: momentum .9 (source .25), its
accumulator not quantized (source Q(., 13)), learning rate not quantized (source 10 bits; .05 times 1, .12, .06, .03),
weight decay added after G (source: before it, and none on gamma and beta). As G has the same size whatever the loss,
the learning rate over 1 - momentum sets the size of updates, 15 times the source's at the CIFAR recipe's start. (3)
The number of levels of G is constant (source: 128, then 32, 8, 2 along the schedule, here ``update_bits`` 8, 6, 4, 2).
(4) E1 is rounded at each layer's input, before the errors of several readers are added (source: after; the identity
shortcut is not rounded in either), and reaches +-127/128, not +-1. (5) Running statistics move with the model's
momentum of .1 (source .003). (6) Initialisation, data, augmentation and schedule are the harness's; the source trains
ImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.autograd.function import once_differentiable

from fractrain.layers.clip import clip
from fractrain.layers.convert import convert, quant_layers
from fractrain.layers.eager import eager
from fractrain.layers.number_types import in_wide_types, widened
from fractrain.layers.recomputation import recomputing
from fractrain.layers.state import QuantState
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.numerics.formats import Bits, Format, Limits, widths_like
from fractrain.numerics.grid import Grid
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.quantize import quantize
from fractrain.util.errors import ConfigError

STATISTICS_BITS, NORM_GRADIENT_BITS, MASTER_BITS = 16, 15, 24
NORM_EPS = 2.0**-15
UPDATE_UNIT = 2.0**-14  # 1 / (128 * 2^(8-1)): the source's constant in G
SMALLEST = 2.0**-100  # least maximum of a tensor to be scaled: keeps every step a normal float32


def direct(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Q(x, bits): nearest multiple of 2^-(bits-1), not saturated."""
    n = 2.0 ** (bits - 1)
    return (x * n).round() / n


def nearest_power(m: torch.Tensor) -> torch.Tensor:
    """R: 2^round(log2 m) for non-negative ``m``, exactly (no logarithm is rounded)."""
    mantissa, exponent = torch.frexp(m.clamp(min=SMALLEST))
    return torch.pow(2.0, (exponent - (mantissa < math.sqrt(0.5)).to(exponent.dtype)).to(m.dtype))


def _codes(bits: Bits, like: torch.Tensor) -> torch.Tensor:
    """2^(bits-1)."""
    return torch.pow(2.0, widths_like(bits, like) - 1.0)


@dataclass(frozen=True)
class DirectWeight(Format):
    """Q(x, k) with codes up to +-(2^(k-1) - 1): the step is 2^-(k-1) whatever the data."""

    def _grid(self, lo: torch.Tensor, hi: torch.Tensor, bits: Bits) -> Grid:
        n = _codes(bits, lo)
        return Grid(1.0 / n, torch.zeros_like(n), 1.0 - n, n - 1.0)


@dataclass(frozen=True)
class FixedPoint(Format):
    """Step 2^-fraction; codes 0 .. 2^k - 1, or -2^(k-1) .. 2^(k-1) - 1 where there are negative values."""

    fraction: int = 7

    def _grid(self, lo: torch.Tensor, hi: torch.Tensor, bits: Bits) -> Grid:
        n = _codes(bits, lo)
        signed = lo < 0
        step = torch.full_like(n, 2.0**-self.fraction)
        return Grid(step, torch.zeros_like(n), torch.where(signed, -n, 0.0), torch.where(signed, n, 2.0 * n) - 1.0)


@dataclass(frozen=True)
class Shift(Format):
    """Step R(x) / 2^(k-1), codes up to +-(2^(k-1) - 1)."""

    def _grid(self, lo: torch.Tensor, hi: torch.Tensor, bits: Bits) -> Grid:
        n = _codes(bits, lo)
        return Grid(nearest_power(torch.maximum(lo.abs(), hi.abs())) / n, torch.zeros_like(n), 1.0 - n, n - 1.0)


@dataclass(frozen=True)
class Flag(Shift):
    """:class:`Shift`, where values below one step are moved to a grid 2^(k-1) times finer."""

    def points(self, bits: int) -> int:
        """2^k - 1 coarse codes and, between the middle three of them, 2^k - 2 fine ones: k bits and the flag."""
        return (2 << bits) - 3

    def grid(self, limits: Limits, bits: Bits, x: torch.Tensor) -> Grid:
        """Return the coarse or the fine grid, element by element."""
        coarse = super().grid(limits, bits, x)
        n = coarse.qmax + 1.0
        fine = x.abs() < coarse.scale
        top = torch.where(fine, n, coarse.qmax)  # 2^(k-1) fine steps are one coarse step
        return Grid(torch.where(fine, coarse.scale / n, coarse.scale), coarse.offset, -top, top)


class _Direct(torch.autograd.Function):
    """Q(x, bits), straight through."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bits: int) -> torch.Tensor:
        return direct(x, bits)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class DirectBatchNorm2d(nn.Module):
    """Batch normalisation ``[N, C, H, W]`` with direct quantisation of its statistics, output and parameters.

    Args:
        norm: the layer it replaces; parameters and running statistics are taken over.
        site: name in the model.

    Raises:
        ConfigError: the layer has no parameters.
    """

    bits = 8  # of the normalised input, gamma and beta; the precision card shows it

    def __init__(self, norm: nn.BatchNorm2d, site: str) -> None:
        super().__init__()
        if not norm.affine:
            raise ConfigError(f"{site}: wageubn quantizes gamma and beta, but this BatchNorm has none (affine=False)")
        self.weight, self.bias = norm.weight, norm.bias
        self.momentum = 0.1 if norm.momentum is None else norm.momentum
        mean, var = norm.running_mean, norm.running_var
        like = norm.weight.detach()
        self.register_buffer("running_mean", torch.zeros_like(like) if mean is None else mean.clone())
        self.register_buffer("running_var", torch.ones_like(like) if var is None else var.clone())
        self.running_mean: torch.Tensor
        self.running_var: torch.Tensor

    @eager
    @in_wide_types
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise."""
        mean, var = widened(self.running_mean), widened(self.running_var)
        if self.training:
            share = 0.0 if recomputing() else self.momentum
            with torch.no_grad():
                var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_(var.to(self.running_var.dtype), share)
        out: torch.Tensor = _QuantizedBatchNorm.apply(
            x, widened(self.weight), widened(self.bias), mean, var, self.bits, self.training
        )
        return out


def _normalised(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, bits: int
) -> torch.Tensor:
    """``x`` normalised with these statistics, as described above; differentiable in all of them."""
    # A filter whose weights all round to zero has no variance, where the root has no derivative.
    std = _Direct.apply(var.clamp(min=1e-12).sqrt(), STATISTICS_BITS) + NORM_EPS
    mean = _Direct.apply(mean, STATISTICS_BITS)
    gamma, beta = (_Direct.apply(p, bits) for p in (weight, bias))
    view = (1, -1, 1, 1)
    normal = _Direct.apply((x - mean.view(view)) / std.view(view), bits)
    out: torch.Tensor = normal * gamma.view(view) + beta.view(view)
    return out


class _QuantizedBatchNorm(torch.autograd.Function):
    """:func:`_normalised`, which keeps ``x`` for backward and nothing else of its size: the rest is made anew."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor,
        bits: int, own: bool,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, bias, *(() if own else (mean, var)))
        ctx.bits = bits
        return _normalised(x, weight, bias, mean, var, bits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        *given, mean, var = (*ctx.saved_tensors, None, None)[:5]
        wanted = ctx.needs_input_grad[:3]
        with torch.enable_grad():
            x, weight, bias = (t.detach().requires_grad_(want) for t, want in zip(given[:3], wanted, strict=True))
            if mean is None:
                var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            out = _normalised(x, weight, bias, mean, var, ctx.bits)
        found = iter(torch.autograd.grad(out, [t for t in (x, weight, bias) if t.requires_grad], grads[0]))
        return *(next(found) if want else None for want in wanted), None, None, None, None


@eager
def input_hook(precision: Precision, e1: Operand, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    """E1 and the gradient of saturation, as a forward pre-hook, for every input of a layer.

    The gradient that a layer sends back to its input is moved to ``e1``'s grid, and is zero where A saturates; forward
    values are left to the layer.
    """
    if not torch.is_grad_enabled():
        return None
    return tuple(_saturating(precision, e1, x) if x.requires_grad else x for x in inputs)


def _saturating(precision: Precision, e1: Operand, x: torch.Tensor) -> torch.Tensor:
    def backward(g: torch.Tensor) -> torch.Tensor:
        return quantize(g, e1.format.grid(e1.format.limits(g), e1.bits, g))[0]

    a = precision.fw_a
    grid = a.format.grid(a.format.limits(x.detach()), a.bits, x)
    y = clip(x, grid.qmin * grid.scale, grid.qmax * grid.scale)
    _on_gradient(y, backward)
    return y


def _on_gradient(x: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace the gradient of ``x`` by ``change(gradient)`` whenever it has been computed."""
    x.register_hook(change)  # type: ignore[no-untyped-call]


def constant_quantize(state: QuantState, name: str, bits: int, g: torch.Tensor) -> torch.Tensor:
    """G: integers up to +-(2^(bits-1) - 1), stochastic, in units of 2^-14; a gradient of zeros stays zero."""
    n = 2.0 ** (bits - 1)
    step = nearest_power(g.abs().amax()) / n
    grid = Grid(step, torch.zeros_like(step), torch.full_like(step, 1.0 - n), torch.full_like(step, n - 1.0))
    values, _ = quantize(g, grid, state.noise(name), kernels=state.kernels)
    return values / step * UPDATE_UNIT


class WageubnSettings(MethodSettings):
    """Settings of wageubn."""

    bits: int = Field(8, ge=2, le=16, description="activation bits")
    weight_bits: int = Field(8, ge=2, le=16, description="weight bits")
    grad_bits: int = Field(8, ge=2, le=16, description="bits of the errors E1 and E2")
    update_bits: int = Field(8, ge=2, le=16, description="bits of weight gradients (G), in units of 2^-14")
    fraction_bits: int = Field(5, ge=0, le=16, description="activation bits after the binary point (source: 7)")
    error: Literal["flag", "shift"] = Field("flag", description="E2: with a finer grid for small values, or without")


class Wageubn(Method):
    """WAGEUBN: W, A, G, E, BatchNorm on power-of-two grids at 8 bits (stored weights 24), the harness's optimizer."""

    name = "wageubn"
    version = 2  # gradients at the limits of clipping pass, whatever PyTorch's release
    source = "Yang et al., Neural Networks 125 (2020), arXiv 1909.02384; authors' code yang-yk/wageubn"
    steps_alike = True
    Settings = WageubnSettings
    master_weights = "fixed point, step 2^-23 (24 bits); first and last layer float32"
    contract_costless = {
        "update_bits": "weight gradients are no operand of a product",
        "fraction_bits": "moves the binary point, not the width",
    }

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize all layers but the first and the last, all batch normalisation, and gradients."""
        s: WageubnSettings = self.settings
        precision = Precision.of(
            a=Operand(s.bits, FixedPoint(fraction=s.fraction_bits), running=0.9),  # only its sign is used
            w=Operand(s.weight_bits, DirectWeight()),
            e=Operand(s.grad_bits, Flag() if s.error == "flag" else Shift()),
        )
        model = convert(model, precision, self.state, keep_first=True, keep_last=True)
        self._stored: list[nn.Parameter] = []
        e1 = Operand(s.grad_bits, Shift())
        for layer in quant_layers(model):
            if layer.precision is not precision:  # the two kept layers
                continue
            layer.register_forward_pre_hook(partial(input_hook, precision, e1))
            for name, p in layer.named_parameters(recurse=False):
                _on_gradient(p, partial(constant_quantize, self.state, f"{layer.site}.{name}.G", s.update_bits))
                self._stored.append(p)
        self._replace_norms(model)
        self._store()
        return model

    def _replace_norms(self, model: nn.Module) -> None:
        for name, m in list(model.named_modules()):
            if isinstance(m, nn.BatchNorm2d):
                model.set_submodule(name, DirectBatchNorm2d(m, name).train(m.training))
                for p in (m.weight, m.bias):
                    _on_gradient(p, partial(direct, bits=NORM_GRADIENT_BITS))
                    self._stored.append(p)

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        """Round the stored parameters to 24 bits."""
        self._store()

    @torch.no_grad()
    def _store(self) -> None:
        for p in self._stored:
            p.copy_(direct(widened(p), MASTER_BITS))
