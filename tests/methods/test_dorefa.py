"""dorefa: its three quantizers against float64 loops and numbers by hand, and what its layers really multiply."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import fractrain
from fractrain.cost import metrics
from fractrain.layers.convert import quant_layers
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.numerics.formats import PerAxis
from fractrain.numerics.quantize import quantize
from fractrain.numerics.stochastic_rounding import NoiseKey, element_numbers, noise_key, uniform
from fractrain.util.errors import NonFiniteError

dorefa = sys.modules[registry.get("dorefa").__module__]
KEY = NoiseKey(0xC0FFEE, 0x1234)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def on_grid(fmt, x: torch.Tensor, bits: int, key: NoiseKey | None = None) -> torch.Tensor:
    x = fmt.forward_transform(x)
    return quantize(x, fmt.grid(fmt.limits(x), bits, x), key)[0]


def resnet(seed: int = 0, n: int = 1) -> ResNetCifar:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetCifar(n, 10)


def layers(*made) -> nn.Sequential:
    """Layers from their classes and sizes, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(*(kind(*sizes) for kind, *sizes in made))


def prepared(model: nn.Module, **settings):
    context = MethodContext(blocks=model.gateable_blocks() if hasattr(model, "gateable_blocks") else ())
    context.ledger.meta["blocks"] = list(context.blocks)
    return registry.create("dorefa", settings).prepare(model, context), context.ledger


def compare(got: torch.Tensor, want: np.ndarray, v: np.ndarray, step: np.ndarray) -> None:
    """Equal, but for elements whose ``v`` is so near the rounding edge that float32 may fall on its other side."""
    sure = np.abs((v - 0.5) - np.round(v - 0.5)) > 1e-6 * (1.0 + np.abs(v))
    difference = np.abs(got.double().numpy() - want)
    assert sure.mean() > 0.9
    slack = 2.0**-21 * (np.abs(want) + np.abs(want).max())  # float32 rounding of code * scale + offset
    assert (difference[sure] <= slack[sure]).all()
    assert (difference <= step + slack).all()


# -- the three quantizers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
def test_weights_equal_the_float64_loop(bits) -> None:
    w = normal(6, 5, 3, 3, scale=0.4)
    flat = w.double().reshape(-1).tolist()
    top = max(abs(math.tanh(x)) for x in flat)
    n = 2**bits - 1
    v = [(math.tanh(x) / (2 * top) + 0.5) * n for x in flat]
    want = [2 * (round(a) / n) - 1 for a in v]
    got = on_grid(dorefa.TanhWeight(), w, bits)
    step = np.full(len(want), 2 / n)
    compare(got.reshape(-1), np.array(want), np.array(v), step)
    assert float(got.abs().max()) == 1.0
    assert len(got.unique()) <= 2**bits


def test_weights_by_hand() -> None:
    # tanh(w) = .8 -.4 .2 -.08; by .8, halved, plus 1/2: 1 .25 .625 .45; by 3: 3 .75 1.875 1.35; rounded 3 1 2 1
    w = torch.tensor([0.8, -0.4, 0.2, -0.08]).atanh()
    got = on_grid(dorefa.TanhWeight(), w, 2)
    torch.testing.assert_close(got, torch.tensor([1.0, -1 / 3, 1 / 3, -1 / 3]))


@pytest.mark.parametrize("weights", ["plain", "two maxima", "large", "zero"])
def test_weight_gradient_is_exact_through_tanh_and_maximum(weights) -> None:
    w = normal(4, 3, seed=1, scale=20.0 if weights == "large" else 0.5).double()
    if weights == "two maxima":
        w[1, 2], w[3, 0] = 2.0, -2.0
    w = w * 0 if weights == "zero" else w
    g = normal(4, 3, seed=2).double()
    got = dorefa.TanhWeight().backward_transform(w, g)
    if weights == "zero":  # tanh(w) / max would be 0 / 0: not scaled
        assert torch.equal(got, g)
        return
    leaf = w.clone().requires_grad_()
    x = leaf.tanh() / (2 * leaf.tanh().abs().amax()) + 0.5
    ((2 * x - 1) * g).sum().backward()
    torch.testing.assert_close(got, leaf.grad, rtol=1e-10, atol=1e-12)
    if weights != "plain":
        return

    def loss(values: np.ndarray) -> float:  # and by differences, without autograd
        t = np.tanh(values)
        return float((t / np.abs(t).max() * g.numpy()).sum())

    for i in np.ndindex(4, 3):
        up, down = w.numpy().copy(), w.numpy().copy()
        up[i] += 1e-6
        down[i] -= 1e-6
        assert (loss(up) - loss(down)) / 2e-6 == pytest.approx(float(got[i]), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("clip", [1.0, 8.0, 0.75])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_activations_equal_the_float64_loop(bits, clip) -> None:
    x = normal(3, 4, 5, 2, scale=1.2 * clip)
    n = 2**bits - 1
    unit = [min(max(a, 0.0), clip) / clip for a in x.double().reshape(-1).tolist()]
    want = [clip * round(a * n) / n for a in unit]
    got = on_grid(dorefa.Clipped(clip=clip), x, bits)
    compare(got.reshape(-1), np.array(want), np.array(unit) * n, np.full(len(want), clip / n))


def test_activations_by_hand() -> None:
    x = torch.tensor([-0.3, 0.1, 0.2, 0.6, 0.9, 1.7])  # clipped, by 3: 0 .3 .6 1.8 2.7 3
    want = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 3.0]) / 3
    torch.testing.assert_close(on_grid(dorefa.Clipped(), x, 2), want)
    torch.testing.assert_close(on_grid(dorefa.Clipped(clip=8.0), 8 * x, 2), 8 * want)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 6, 5)], ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8, 12])
def test_errors_equal_the_float64_loop_sample_by_sample(bits, shape) -> None:
    e = normal(*shape, scale=1e-3) * torch.logspace(-3, 1, shape[0]).view(-1, *([1] * (len(shape) - 1)))
    u = uniform(KEY, element_numbers(e.shape, e.device)).double()
    got = on_grid(dorefa.SampleError(PerAxis(0), rounding="stochastic"), e, bits, KEY)
    n = 2**bits - 1
    for sample, noise, ours in zip(e, u, got, strict=True):
        flat, draws = sample.double().reshape(-1).tolist(), noise.reshape(-1).tolist()
        m = max(abs(a) for a in flat)
        v = [(a / (2 * m) + 0.5) * n for a in flat]
        # noise of U(-1/2, 1/2) steps, then to nearest, is: up with the probability of the fraction
        want = [2 * m * ((math.floor(a) + (d < a - math.floor(a))) / n - 0.5) for a, d in zip(v, draws, strict=True)]
        step = np.full(len(want), 2 * m / n)
        sure = np.abs(np.array(v) % 1.0 - np.array(draws)) > 1e-4
        sure &= np.abs(np.array(v) - np.round(v)) > 1e-4
        difference = np.abs(ours.reshape(-1).double().numpy() - np.array(want))
        assert sure.mean() > 0.6
        assert (difference[sure] <= 1e-3 * step[sure]).all()
        assert (difference <= 1.01 * step).all()


def test_errors_by_hand_and_without_bias() -> None:
    e = torch.tensor([[2.0, -2.0, 1.0, 0.5], [0.02, 0.01, 0.0, -0.02]])  # by 4, plus 1/2, by 3: 3 0 2.25 1.875
    draws = torch.stack(
        [
            on_grid(dorefa.SampleError(PerAxis(0), rounding="stochastic"), e, 2, NoiseKey(i * 7919, i))
            for i in range(4000)
        ]
    )
    points = torch.tensor([-2.0, -2 / 3, 2 / 3, 2.0])
    assert draws[:, 0, 0].unique().tolist() == [2.0]
    assert draws[:, 0, 1].unique().tolist() == [-2.0]
    torch.testing.assert_close(draws[:, 0, 2].unique(), points[2:])  # 2.25: codes 2 and 3
    torch.testing.assert_close(draws[:, 0, 3].unique(), points[1:3])
    assert float((draws[:, 0, 2] > 1).float().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / 4000))
    steps = torch.tensor([[4 / 3], [0.04 / 3]])
    assert ((draws.mean(0) - e).abs() <= 4 * 0.5 * steps / math.sqrt(4000) + 1e-6).all()
    assert (draws[:, 1, 2] != 0).all()  # as in the source, zero is no point of the grid


def test_errors_of_a_sample_depend_on_no_other_sample_and_on_no_scale() -> None:
    fmt = dorefa.SampleError(PerAxis(0), rounding="stochastic")
    e = normal(3, 40)
    whole = on_grid(fmt, e, 8, KEY)
    other = e.clone()
    other[2] *= 1000.0
    assert torch.equal(on_grid(fmt, other, 8, KEY)[:2], whole[:2])
    assert torch.equal(on_grid(fmt, e * 2.0**-70, 8, KEY), whole * 2.0**-70)  # no least step: learned samples count
    e[1] = 0.0
    assert torch.equal(on_grid(fmt, e, 8, KEY)[1], torch.zeros(40))


# -- the method -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "w", "e"), [(8, 8, 8), (4, 4, 32), (4, 3, 6), (32, 8, 8), (32, 32, 32)])
def test_what_the_layers_multiply(a, w, e) -> None:
    model, ledger = prepared(resnet(), bits=a, weight_bits=w, grad_bits=e)
    seen: dict[str, dict[str, torch.Tensor]] = {}

    def observer(layer, name, op, original, values):
        seen.setdefault(name, {})[layer.site] = values.detach().clone()
        if name == "E":
            for before, after in zip(original.double(), values.double(), strict=True):
                codes = (after / before.abs().max() + 1) * (2**e - 1) / 2
                assert float((codes - codes.round()).abs().max()) < 1e-3
                assert -0.1 < float(codes.min()) <= float(codes.max()) < 2**e - 0.9

    inner = [m for m in quant_layers(model) if m.site not in ("stem.0", "head")]
    for layer in quant_layers(model):
        layer.observer = observer
    model(normal(6, 3, 8, 8)).square().sum().backward()
    wanted = {name for name, bits in (("fw_a", a), ("fw_w", w), ("E", e)) if bits < 32}
    assert set(seen) == wanted
    assert all(set(sites) == {m.site for m in inner} for sites in seen.values())  # first and last are not there
    for x in seen.get("fw_a", {}).values():
        codes = x.double() * (2**a - 1) / 8.0
        assert float((codes - codes.round()).abs().max()) < 1e-3
        assert 0.0 <= float(x.min()) <= float(x.max()) <= 8.0
    for x in seen.get("fw_w", {}).values():
        codes = (x.double() + 1) * (2**w - 1) / 2
        assert float((codes - codes.round()).abs().max()) < 1e-3
        assert float(x.abs().max()) == 1.0
    assert metrics.cp(ledger) == pytest.approx(100 * (a * w + e * w + a * e) / 3072, rel=1e-12)


def test_the_input_is_clipped_at_every_quantized_layer_also_at_32_bits() -> None:
    for settings in ({}, {"bits": 32, "weight_bits": 32, "grad_bits": 32}):
        model = layers((nn.Conv2d, 2, 2, 1), (nn.Conv2d, 2, 3, 1), (nn.Flatten,), (nn.Linear, 3, 2))
        prepared(model, clip=2.0, **settings)
        x = torch.tensor([[-1.0, 0.5], [2.5, 1.5]]).view(2, 2, 1, 1).requires_grad_()
        y = model[1](x)
        bounded = model[1](x.detach().clamp(0.0, 2.0))
        assert torch.equal(y, bounded)
        y.square().sum().backward()
        assert (x.grad.flatten()[[0, 2]] == 0).all()
        assert (x.grad.flatten()[[1, 3]] != 0).all()
        plain = F.conv2d(x, model[0].weight, model[0].bias)
        assert torch.equal(model[0](x), plain)  # the first layer is neither clipped nor quantized


def test_weight_gradient_of_a_layer_by_loops() -> None:
    model = layers((nn.Linear, 3, 4), (nn.Linear, 4, 5), (nn.Linear, 5, 2))
    prepared(model, bits=32, grad_bits=32, weight_bits=4, clip=1.0)
    x, g = normal(6, 4).abs(), normal(6, 5, seed=1)
    layer = model[1]
    layer(x).backward(g)
    a, e, w = x.double().clamp(0, 1), g.double(), layer.weight.detach().double()
    dx = [[sum(float(e[n, o] * a[n, i]) for n in range(6)) for i in range(4)] for o in range(5)]
    t = [[math.tanh(float(v)) for v in row] for row in w]
    top = max(abs(v) for row in t for v in row)
    size = float(layer.weight.grad.abs().max())
    total = sum(dx[o][i] * t[o][i] for o in range(5) for i in range(4))
    for o in range(5):
        for i in range(4):
            at_top = math.copysign(total / top**2, t[o][i]) if abs(t[o][i]) == top else 0.0
            want = (dx[o][i] / top - at_top) * (1 - t[o][i] ** 2)
            assert float(layer.weight.grad[o, i]) == pytest.approx(want, rel=1e-4, abs=1e-5 * size)


def test_rounding_of_errors_is_a_function_of_seed_step_and_layer() -> None:
    method = registry.create("dorefa", {"grad_bits": 3})
    model = method.prepare(resnet(), MethodContext(seed=5))
    layer = model.groups[1][0].conv2
    g = normal(4, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    got = {}
    for step in (0, 1):
        method.on_step_start(step)
        got[step] = layer.error_operand(g, layer.precision.eb_e, "E")[0]
        key = noise_key(method.state.seed, step, f"{layer.site}.E")
        assert torch.equal(got[step], on_grid(layer.precision.eb_e.format, g, 3, key))
    assert not torch.equal(got[0], got[1])


def test_values_that_are_not_finite_are_found_although_the_range_is_fixed() -> None:
    model, _ = prepared(layers((nn.Linear, 3, 4), (nn.Linear, 4, 5), (nn.Linear, 5, 2)))
    with pytest.raises(NonFiniteError, match="input"):
        model[1](torch.full((2, 4), float("nan")))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="weight"):
        model[1](torch.ones(2, 4))


# -- training ---------------------------------------------------------------------------------------------------------


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Scikit-learn's digits as images ``[1797, 3, 8, 8]`` of zero mean, in their order, which is by writer."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


def session(**settings):
    s = fractrain.attach("dorefa", resnet(), **settings)
    return s, torch.optim.SGD(s.model.parameters(), lr=0.05, momentum=0.9)


def train(s, optimizer, steps: range) -> None:
    x, y = digits()
    s.model.train()
    for i in steps:
        pick = torch.randint(0, 1400, (32,), generator=torch.Generator().manual_seed(i))
        s.loss(F.cross_entropy(s.model(x[pick]), y[pick])).backward()
        optimizer.step()
        optimizer.zero_grad()
        s.step()


def test_it_learns_the_digits_at_4_bits() -> None:
    s, optimizer = session(bits=4, weight_bits=4, grad_bits=32)
    train(s, optimizer, range(60))
    x, y = digits()
    s.model.eval()
    with torch.no_grad():
        right = float((s.model(x[1400:]).argmax(1) == y[1400:]).float().mean())
    assert right > 0.6  # writers it has not seen; guessing gives 0.1
