"""Range batch normalisation against its definition in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from quant_helpers import tensor
from torch import nn

from fractrain.layers.range_norm import CHUNKS, RangeBatchNorm2d, range_constant, replace_batch_norm
from fractrain.layers.state import QuantState
from fractrain.util.errors import ConfigError


def norm(channels: int = 3, bits: int = 16) -> RangeBatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    with torch.no_grad():
        bn.weight.copy_(torch.linspace(0.5, 1.5, channels))
        bn.bias.copy_(torch.linspace(-1, 1, channels))
    return RangeBatchNorm2d(bn, QuantState(), "bn1", bits, 16)


def by_definition(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Loop over channels and chunks of the flattened (sample, row, column) axis."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c].reshape(-1)
        chunks = values.reshape(math.gcd(CHUNKS, values.size), -1)
        spread = np.mean([part.max() for part in chunks]) - np.mean([part.min() for part in chunks])
        scale = 1 / (spread * range_constant(max(2, chunks.shape[1])) + 1e-5)
        y[:, c] = (x[:, c] - values.mean()) * scale * weight[c] + bias[c]
    return y


def test_wide_range_norm_is_its_definition() -> None:
    m = norm()
    x = tensor((8, 3, 6, 6), 0, scale=2.0, shift=1.0)
    want = by_definition(
        x.double().contiguous().numpy(), m.weight.detach().double().numpy(), m.bias.detach().double().numpy()
    )
    np.testing.assert_allclose(m(x).detach().double().contiguous().numpy(), want, rtol=0, atol=2e-3)  # 16-bit steps


def test_the_constant_estimates_the_deviation_of_a_gaussian() -> None:
    gen = torch.Generator().manual_seed(0)
    for n in (64, 256, 4096):
        x = torch.randn(2000, n, generator=gen)
        estimate = float((x.amax(1) - x.amin(1)).mean()) * range_constant(n)
        assert estimate == pytest.approx(1.0, abs=0.13)  # the paper's constant is too small by 6 to 12 %
        assert estimate < 1.0


def test_running_statistics_and_evaluation() -> None:
    m = norm()
    mean = m.running_mean.clone()
    x = tensor((8, 3, 6, 6), 0, shift=2.0)
    m(x)
    torch.testing.assert_close(m.running_mean, mean * 0.9 + x.mean((0, 2, 3)) * 0.1, rtol=1e-3, atol=1e-3)
    m.eval()
    kept = m.running_mean.clone()
    m(x)
    assert torch.equal(m.running_mean, kept)


def test_a_trained_norm_hands_over_its_statistics_and_mode() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for i in range(50):
        net(tensor((8, 3, 6, 6), i, shift=3.0))
    net.eval()
    x = tensor((8, 3, 6, 6), 99, shift=3.0)
    want = net(x).detach()
    replace_batch_norm(net, QuantState(), 16, 16)
    assert isinstance(net[1], RangeBatchNorm2d)
    assert not net[1].training
    torch.testing.assert_close(net(x).detach(), want, rtol=0, atol=1e-2)


def test_gradients_are_straight_through_and_stochastic_by_step() -> None:
    def grads(bits: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        m = norm()
        m.grad_bits = bits
        m.state.step = step
        x = tensor((4, 3, 4, 4), 0).requires_grad_()
        m(x).backward(tensor((4, 3, 4, 4), 1))
        assert m.weight.grad is not None
        return x.grad, m.weight.grad  # type: ignore[return-value]

    assert torch.equal(grads(3, 0)[0], grads(3, 0)[0])
    assert not torch.equal(grads(3, 0)[0], grads(3, 1)[0])
    exact, near = grads(16, 0)[1], grads(8, 0)[1]
    assert float((exact - near).abs().max()) < 0.05 * float(exact.abs().max())


def test_a_norm_without_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="0: batch normalisation without parameters"):
        replace_batch_norm(nn.Sequential(nn.BatchNorm2d(3, affine=False)), QuantState(), 8, 8)


def test_a_constant_channel_does_not_take_the_range_of_the_scales() -> None:
    m = norm(bits=8)
    x = tensor((8, 3, 6, 6), 0, scale=2.0, shift=1.0)
    alone = m(x).detach()
    x[:, 1] = 0.25  # without a range: 1 / eps would be its scale, and one step of the others 1e5 / 255
    y = m(x).detach()
    assert float((y[:, 1] - m.bias.detach()[1]).abs().max()) < 0.02
    for c in (0, 2):  # within the steps of 8 bits
        assert float((y[:, c] - alone[:, c]).abs().max()) < 0.1


def test_chunks_hold_two_values_at_least() -> None:
    m = norm(channels=1)
    y = m(torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(4, 1, 1, 1)).detach()  # four chunks of one value have no range
    scale = 1 / (2 * range_constant(2) + 1e-5)
    want = torch.tensor([-1.0, 1.0, -1.0, 1.0]) * scale * 0.5 - 1.0  # gamma 0.5, beta -1
    torch.testing.assert_close(y.flatten(), want, rtol=0, atol=2e-3)
