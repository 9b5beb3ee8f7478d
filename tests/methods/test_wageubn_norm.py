"""wageubn's batch normalisation against float64 loops, numbers by hand and torch's own autograd."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn

from fractrain.methods import registry
from fractrain.util.errors import ConfigError

wageubn = sys.modules[registry.get("wageubn").__module__]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_batch_normalisation_equals_the_float64_loop() -> None:
    norm = nn.BatchNorm2d(3)
    norm.weight.data, norm.bias.data = torch.tensor([1.01, 0.5, -1.3]), torch.tensor([0.0, 0.126, -2.0])
    layer = wageubn.DirectBatchNorm2d(norm, "bn").train()
    x = normal(4, 3, 2, 5, scale=2.0) + 1.0
    y = layer(x)
    inexact = 0
    for c in range(3):
        values = x[:, c].double().reshape(-1).tolist()
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / len(values)
        qmean, std = round(mean * 2**15) / 2**15, round(math.sqrt(var) * 2**15) / 2**15 + 2**-15
        gamma, beta = (round(p[c].item() * 128) / 128 for p in (norm.weight, norm.bias))
        for v, got in zip(values, y[:, c].detach().reshape(-1).tolist(), strict=True):
            want = round((v - qmean) / std * 128) / 128 * gamma + beta
            inexact += got != pytest.approx(want, abs=1e-6)
            assert got == pytest.approx(want, abs=1.01 * abs(gamma) / 128)
        assert float(layer.running_mean[c]) == pytest.approx(0.1 * mean, rel=1e-5)
        assert float(layer.running_var[c]) == pytest.approx(0.9 + 0.1 * var, rel=1e-5)  # biased, as in the source
    assert inexact <= 1  # an element on a rounding edge


def test_batch_normalisation_in_evaluation_by_hand() -> None:
    norm = nn.BatchNorm2d(1)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    layer = wageubn.DirectBatchNorm2d(norm, "bn").eval()
    got = layer(torch.tensor([[[[2.0, -1.5]]]]))  # 1 / (2 + 2^-15) * 128 = 63.999, -2.5 / 2 * 128 = -160
    assert got.flatten().tolist() == [0.5, -1.25]
    assert float(layer.running_mean) == 1.0


def test_gradient_of_batch_normalisation_goes_straight_through() -> None:
    norm = nn.BatchNorm2d(2)
    norm.weight.data, norm.bias.data = torch.tensor([0.7, -1.1]), torch.tensor([0.3, 0.0])
    layer = wageubn.DirectBatchNorm2d(norm, "bn").train()
    x, g = normal(5, 2, 3, 3).requires_grad_(), normal(5, 2, 3, 3, seed=1)
    layer(x).backward(g)
    z = x.detach().double().requires_grad_()
    gamma, beta = (p.detach().double().requires_grad_() for p in (norm.weight, norm.bias))

    def q(v: torch.Tensor, bits: int) -> torch.Tensor:
        return v + ((v * 2 ** (bits - 1)).round() / 2 ** (bits - 1) - v).detach()

    mean = z.mean((0, 2, 3), keepdim=True)
    std = q(((z - mean) ** 2).mean((0, 2, 3), keepdim=True).sqrt(), 16) + 2**-15
    view = (1, 2, 1, 1)
    out = q((z - q(mean, 16)) / std, 8) * q(gamma, 8).view(view) + q(beta, 8).view(view)
    out.backward(g.double())
    for ours, want in ((x.grad, z.grad), (norm.weight.grad, gamma.grad), (norm.bias.grad, beta.grad)):
        torch.testing.assert_close(ours.double(), want, rtol=1e-3, atol=1e-4)


def test_a_channel_without_variance_has_a_finite_gradient() -> None:
    x = normal(4, 2, 3, 3)
    x[:, 1] = 0.0
    x.requires_grad_()
    layer = wageubn.DirectBatchNorm2d(nn.BatchNorm2d(2), "bn").train()
    layer(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    with pytest.raises(ConfigError, match=r"bn: .*affine"):
        wageubn.DirectBatchNorm2d(nn.BatchNorm2d(2, affine=False), "bn")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, True), (True, False, True), (True, False, False)])
def test_backward_makes_anew_what_forward_had(training: bool, wanted: tuple[bool, bool, bool]) -> None:
    """Bit for bit the gradients of a graph that keeps everything; of its size only the input is kept."""
    norm = nn.BatchNorm2d(3)
    norm.weight.data, norm.bias.data = torch.tensor([0.7, -1.1, 0.3]), torch.tensor([0.3, 0.0, -1.0])
    norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.5]))
    layer = wageubn.DirectBatchNorm2d(norm, "bn").train(training)
    x, g = normal(6, 3, 4, 4, scale=2.0), normal(6, 3, 4, 4, seed=1)
    inputs = [
        t.detach().clone().requires_grad_(want) for t, want in zip((x, norm.weight, norm.bias), wanted, strict=True)
    ]
    layer.weight, layer.bias = (nn.Parameter(t.detach(), t.requires_grad) for t in inputs[1:])
    kept = []
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = layer(inputs[0])
    y.backward(g)
    assert sum(n for n in kept if n > 3) == x.numel()
    if training:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
    whole = wageubn._normalised(inputs[0], inputs[1], inputs[2], mean, var, 8)
    right = iter(torch.autograd.grad(whole, [t for t in inputs if t.requires_grad], g))
    assert torch.equal(y, whole)
    for got, want in zip((inputs[0], layer.weight, layer.bias), wanted, strict=True):
        assert (got.grad is not None) == want
        assert not want or torch.equal(got.grad, next(right))
