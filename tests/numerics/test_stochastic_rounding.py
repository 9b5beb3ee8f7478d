"""Rounding noise: a pure function of (seed, step, name, element), and as good as random for what it is used for."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_helpers import plain_uniform, run, tensor
from scipy import stats
from torch import nn

from fractrain.layers.conv_linear import QuantConv2d, QuantLinear
from fractrain.layers.state import QuantState
from fractrain.numerics.formats import Affine, PerAxis
from fractrain.numerics.precision import FLOAT, Operand, Precision
from fractrain.numerics.quantize import quantize
from fractrain.numerics.stochastic_rounding import NoiseKey, element_numbers, noise_key, uniform

CPU = torch.device("cpu")


def draws(key: NoiseKey, n: int) -> torch.Tensor:
    return uniform(key, torch.arange(n))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 2))
def test_uniform_equals_plain_integers(k0: int, k1: int, number: int) -> None:
    assert float(uniform(NoiseKey(k0, k1), torch.tensor([number]))) == plain_uniform(k0, k1, number)
    assert float(uniform(NoiseKey(k0, k1, number), torch.tensor([0]))) == plain_uniform(k0, k1, number)


def test_fused_noise_equals_plain_integers() -> None:
    # u < frac decides: values j + u_j -/+ 2^-24 on a grid of step 1 must round down / up
    key = NoiseKey(0xFFFFFFFF, 0x80000001, 4_000_000_000)  # all high bits in use
    n = 200
    u = torch.tensor([plain_uniform(key.k0, key.k1, key.base + i) for i in range(n)], dtype=torch.float64)
    grid_of = torch.zeros(1, n)
    fmt = Affine()
    grid = fmt.grid((torch.tensor(0.0), torch.tensor(3.0)), 2, grid_of)
    assert float(grid.scale) == 1.0
    for kernels in ("fused", "reference"):
        for delta, up in ((2.0**-24, 1.0), (0.0, 0.0)):  # strict: u < frac
            x = (u + delta).clamp(0, 1 - 2.0**-24).float().view(1, -1)
            got = quantize(x, grid, key, 0, kernels)[0]  # type: ignore[arg-type]
            assert (got == up).all()


def test_key_depends_on_every_argument_and_on_nothing_else() -> None:
    base = noise_key(1, 2, "a.E")
    assert noise_key(1, 2, "a.E") == base
    others = [noise_key(2, 2, "a.E"), noise_key(1, 3, "a.E"), noise_key(1, 2, "b.E"), noise_key(2, 1, "a.E"),
              noise_key(1, 2, "a.A"), noise_key(-1, 2, "a.E"), noise_key(1 + 2**63, 2, "a.E")]  # fmt: skip
    assert len({base, *others}) == 1 + len(others)
    # frozen: other numbers would change every stochastic run
    assert others[0] != noise_key(7, 11, "conv1.E") == NoiseKey(0xAB1B6676, 0xC903CBBF)


def test_no_two_keys_meet_in_a_small_run() -> None:
    keys = {noise_key(s, t, f"layer{i}.{o}") for s in range(3) for t in range(200) for i in range(20) for o in "AE"}
    assert len(keys) == 3 * 200 * 20 * 2


def test_torchs_generators_are_neither_used_nor_moved() -> None:
    before = torch.random.get_rng_state()
    x = tensor((4, 5), 0)
    first = run(x, Affine(), 3, NoiseKey(1, 2))[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(run(x, Affine(), 3, NoiseKey(1, 2))[0], first)


def test_noise_does_not_depend_on_the_memory_layout() -> None:
    x = tensor((3, 4, 5, 6), 0)
    for kernels in ("fused", "reference"):
        a = run(x, Affine(), 3, NoiseKey(3, 4, 77), kernels)[0]  # type: ignore[arg-type]
        b = run(x.contiguous(), Affine(), 3, NoiseKey(3, 4, 77), kernels)[0]  # type: ignore[arg-type]
        assert torch.equal(a, b)
    numbers = element_numbers(x.shape, CPU)
    for n, c, h, w in itertools.product(range(3), range(4), range(5), range(6)):
        assert numbers[n, c, h, w] == ((n * 5 + h) * 6 + w) * 4 + c
    assert torch.equal(element_numbers(torch.Size((3, 4, 5)), CPU).view(-1), torch.arange(60))


@pytest.mark.parametrize("shape", [(6, 7), (6, 3, 4, 5), (6, 3, 5)], ids=str)
def test_parts_of_a_batch_draw_their_own_numbers(shape) -> None:
    x = tensor(shape, 0)
    fmt = Affine(PerAxis(0))  # one range per sample, so that ranges do not depend on the split
    each = x[0].numel()
    whole = run(x, fmt, 3, NoiseKey(5, 6))[0]
    parts = [run(x[i : i + 2], fmt, 3, NoiseKey(5, 6, i * each))[0] for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)


STOCHASTIC = Operand(3, Affine(PerAxis(0), rounding="stochastic"))


@pytest.mark.parametrize("kernels", ["fused", "reference"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_workers_with_half_the_batch_compute_the_same_products(kind: str, kernels) -> None:
    def layer(offset: int):
        torch.manual_seed(0)
        state = QuantState(seed=3, kernels=kernels)
        state.step, state.sample_offset = 9, offset
        p = Precision.of(STOCHASTIC, FLOAT, STOCHASTIC)
        if kind == "conv":
            return QuantConv2d(nn.Conv2d(3, 4, 3, padding=1), p, state, "c")
        return QuantLinear(nn.Linear(5, 4), p, state, "l")

    x = tensor((6, 3, 5, 5) if kind == "conv" else (6, 5), 1)
    g = tensor((6, 4, 5, 5) if kind == "conv" else (6, 4), 2)

    def products(offset: int, part: slice):
        m = layer(offset)
        a = x[part].clone().requires_grad_()
        y = m(a)
        y.backward(g[part])
        return y.detach(), a.grad, m.weight.grad, m.bias.grad

    y, dx, dw, db = products(0, slice(0, 6))
    (y1, dx1, dw1, db1), (y2, dx2, dw2, db2) = products(0, slice(0, 2)), products(2, slice(2, 6))
    torch.testing.assert_close(torch.cat((y1, y2)), y, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat((dx1, dx2)), dx, rtol=0, atol=1e-6)
    torch.testing.assert_close(dw1 + dw2, dw, rtol=0, atol=1e-4)
    torch.testing.assert_close(db1 + db2, db, rtol=0, atol=1e-4)
    wrong = products(0, slice(2, 6))[1]  # without its offset the second worker draws other numbers
    assert not torch.allclose(wrong, dx[2:], atol=1e-6)


# -- statistics ------------------------------------------------------------------------------------------------------
# Bounds are quantiles at 1e-6 each side: only by a fluke of that size would a sound generator fail these fixed draws.

FLUKE = 1e-6
STREAMS = [noise_key(s, t, name) for s, t, name in ((0, 0, "a"), (1, 5, "layer1.0.conv1.E"), (123456789, 64000, "x"))]


@pytest.mark.parametrize("key", STREAMS)
@pytest.mark.parametrize("stride", [1, 2, 16, 1024])
def test_draws_are_uniform(key: NoiseKey, stride: int) -> None:
    n, bins = 1 << 17, 256
    u = uniform(key, torch.arange(n) * stride)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    counts = torch.histc(u, bins, 0, 1)
    chi2 = float(((counts - n / bins) ** 2 / (n / bins)).sum())
    assert stats.chi2.ppf(FLUKE, bins - 1) < chi2 < stats.chi2.ppf(1 - FLUKE, bins - 1)
    low = torch.bincount((u * 2**24).long() % bins, minlength=bins)  # the last bits, which decide small fractions
    chi2 = float(((low - n / bins) ** 2 / (n / bins)).sum())
    assert stats.chi2.ppf(FLUKE, bins - 1) < chi2 < stats.chi2.ppf(1 - FLUKE, bins - 1)


@pytest.mark.parametrize("key", STREAMS)
@pytest.mark.parametrize(
    "lag", [1, 2, 3, 16, 64, 576, 1024, 2048, 3072, 4096, 8192, 12288, 16384, 32768, 49152, 802816]
)
def test_draws_of_neighbours_and_of_neighbouring_samples_are_independent(key: NoiseKey, lag: int) -> None:
    # 3072, 4096, ... are the sizes of one sample in CIFAR networks: the same place in two samples
    n, bins = 1 << 17, 16
    a, b = uniform(key, torch.arange(n)), uniform(key, torch.arange(n) + lag)
    table = (
        torch.bincount((a * bins).long() * bins + (b * bins).long(), minlength=bins * bins).double().view(bins, bins)
    )
    chi2 = float(stats.contingency.chi2_contingency(table.numpy(), correction=False).statistic)
    freedom = (bins - 1) ** 2
    assert stats.chi2.ppf(FLUKE, freedom) < chi2 < stats.chi2.ppf(1 - FLUKE, freedom)
    r = float(torch.corrcoef(torch.stack((a, b)))[0, 1])
    assert abs(r) < stats.norm.ppf(1 - FLUKE) / n**0.5


def test_other_names_steps_and_seeds_are_uncorrelated() -> None:
    n = 1 << 14
    keys = [noise_key(0, 0, "c.E"), noise_key(0, 1, "c.E"), noise_key(0, 2, "c.E"), noise_key(1, 0, "c.E"),
            noise_key(0, 0, "c.A"), noise_key(0, 0, "d.E"), noise_key(0, 0, "c.E#1")]  # fmt: skip
    u = torch.stack([draws(k, n) for k in keys]).double()
    c = torch.corrcoef(u)
    bound = stats.norm.ppf(1 - FLUKE) / n**0.5
    off = c[~torch.eye(len(keys), dtype=torch.bool)]
    assert float(off.abs().max()) < bound


def test_steps_of_one_element_are_independent() -> None:
    # what a weight sees over training: the same element, one step after another
    n = 20_000
    keys = [noise_key(0, t, "c.E") for t in range(n)]
    u = torch.tensor([plain_uniform(k.k0, k.k1, 17) for k in keys])
    bound = stats.norm.ppf(1 - FLUKE)
    assert abs(float(u.mean()) - 0.5) < bound * (1 / 12 / n) ** 0.5
    c = float(torch.corrcoef(torch.stack((u[:-1], u[1:])))[0, 1])
    assert abs(c) < bound / n**0.5


@pytest.mark.parametrize("bit", range(32))
def test_each_bit_of_the_element_number_changes_half_of_the_24_bits(bit: int) -> None:
    n = 1 << 13
    numbers = torch.randint(0, 2**31, (n,), generator=torch.Generator().manual_seed(bit))
    key = STREAMS[1]
    a = (uniform(key, numbers) * 2**24).long()
    b = (uniform(key, numbers ^ (1 << bit)) * 2**24).long()
    flips = torch.tensor([float(((a ^ b) >> i & 1).sum()) for i in range(24)]) / n
    band = 5 * (0.25 / n) ** 0.5  # of a fair coin
    assert float((flips - 0.5).abs().max()) < band + 0.01
    assert abs(float(flips.mean()) - 0.5) < band


def test_each_bit_of_seed_and_step_changes_half_of_the_key() -> None:
    flips = []
    for bit in range(64):
        for s in range(50):
            a = noise_key(s * 7919, 3, "c.E")
            b = noise_key((s * 7919) ^ (1 << bit), 3, "c.E")
            flips.append(bin(a.k0 ^ b.k0).count("1") + bin(a.k1 ^ b.k1).count("1"))
            c = noise_key(s * 7919, 3 ^ (1 << (bit % 30)), "c.E")
            flips.append(bin(a.k0 ^ c.k0).count("1") + bin(a.k1 ^ c.k1).count("1"))
    n = len(flips)
    assert abs(sum(flips) / n - 32) < 5 * 4 / n**0.5  # 64 fair bits: mean 32, standard deviation 4
    assert min(flips) > 6
