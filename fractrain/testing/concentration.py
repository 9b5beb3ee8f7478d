"""Gradient concentration: how fast the mean of repeated stochastic gradients nears the gradient without their noise.

The squared error of the mean of ``B`` independent gradients falls as ``1 / B`` (slope -1) if they are unbiased; a bias
is a floor that it meets. The reference has the same nearest-rounded operands and leaves the stochastic ones in floating
point, so that the curve shows stochastic rounding alone. Source: Quartet II (arXiv 2601.22813), figure of that name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fractrain.layers.conv_linear import QuantLinear
from fractrain.methods.base import Method, MethodContext
from fractrain.numerics.precision import FLOAT, Precision

ROWS, WIDTH = 256, 128  # of the layer's input, and of the layer
COUNTS = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class ConcentrationCurve:
    """How one gradient concentrates.

    Attributes:
        gradient: ``dA`` or ``dW``.
        counts: gradients averaged.
        errors: relative squared error of their mean.
    """

    gradient: str
    counts: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Of the error over the count, both in logarithms, between first and last."""
        return math.log(self.errors[-1] / self.errors[0]) / math.log(self.counts[-1] / self.counts[0])

    @property
    def floor(self) -> float:
        """What is left of the error beyond a fall as ``1 / B``, at the end of the curve."""
        return max(0.0, self.errors[-1] - self.errors[0] * self.counts[0] / self.counts[-1])

    def text(self) -> str:
        """One line."""
        errors = ", ".join(f"{b}: {e:.2e}" for b, e in zip(self.counts, self.errors, strict=True))
        return f"{self.gradient}: slope {self.slope:+.2f}, floor {self.floor:.1e} (error of the mean of {errors})"


def concentration(kind: type[Method], settings: Mapping[str, Any]) -> tuple[ConcentrationCurve, ...]:
    """Curves of a linear layer's two gradients, on normal numbers; none where no operand of theirs is stochastic."""
    method = kind(kind.Settings(**settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3)))
        x, e = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    if kind.unsuitable(plain):
        return ()
    layer = next(iter(list(method.prepare(plain, MethodContext(batch_size=ROWS)).children())[1:2]), None)
    if not isinstance(layer, QuantLinear):
        return ()
    declared = layer.precision
    noiseless = _without_noise(declared)
    wanted = {"dA": ("eb_e", "eb_w"), "dW": ("gc_a", "gc_e")}
    ops, still = declared.operands(), noiseless.operands()
    noisy = [g for g, names in wanted.items() if any(ops[n] is not still[n] for n in names)]
    if not noisy:
        return ()
    layer.precision = noiseless
    exact = _gradients(layer, x, e, 0)
    layer.precision = declared
    sums = {g: torch.zeros_like(exact[g]) for g in noisy}
    errors: dict[str, list[float]] = {g: [] for g in noisy}
    for step in range(COUNTS[-1]):
        found = _gradients(layer, x, e, step)
        for g in noisy:
            sums[g] += found[g]
            if step + 1 in COUNTS:
                error = (sums[g] / (step + 1) - exact[g]).square().sum() / exact[g].square().sum()
                errors[g].append(float(error))
    return tuple(ConcentrationCurve(g, COUNTS, tuple(errors[g])) for g in noisy)


def _without_noise(precision: Precision) -> Precision:
    """The same with its stochastic operands in floating point."""
    stochastic = {n: FLOAT for n, o in precision.operands().items() if o.format.rounding == "stochastic"}
    return replace(precision, **stochastic)


def _gradients(layer: QuantLinear, x: torch.Tensor, e: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
    """DA and dW in float64 in one step."""
    layer.state.step = step
    layer.weight.grad = None
    leaf = x.clone().requires_grad_()
    layer(leaf).backward(e)
    assert leaf.grad is not None
    return {"dA": leaf.grad.double(), "dW": layer.weight.grad.double()}
