"""wageubn: every quantizer against float64 loops and numbers by hand, what it multiplies and stores."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn

from fractrain.cost import metrics
from fractrain.layers.convert import quant_layers
from fractrain.layers.state import QuantState
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.numerics.quantize import quantize
from fractrain.numerics.stochastic_rounding import element_numbers, noise_key, uniform

wageubn = sys.modules[registry.get("wageubn").__module__]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def on_grid(fmt, x: torch.Tensor, bits: int) -> torch.Tensor:
    return quantize(x, fmt.grid(fmt.limits(x), bits, x))[0]


def loop(x: torch.Tensor, one) -> torch.Tensor:
    """Apply a function of floats to every element, in float64."""
    return torch.tensor([one(a) for a in x.double().reshape(-1).tolist()]).view(x.shape).float()


def clamp(code: float, low: float, high: float) -> float:
    return min(max(code, low), high)


def power(m: float) -> float:
    return 2.0 ** round(math.log2(m))


def resnet(seed: int = 0) -> ResNetCifar:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetCifar(1, 10)


def layers(*made) -> nn.Sequential:
    """Layers from their classes and sizes, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(*(kind(*sizes) for kind, *sizes in made))


def prepared(**settings):
    model = resnet()
    context = MethodContext(blocks=model.gateable_blocks())
    context.ledger.meta["blocks"] = list(context.blocks)
    method = registry.create("wageubn", settings)
    return method, method.prepare(model, context), context.ledger


def whole(x: torch.Tensor, step: float) -> bool:
    """Whether all values are multiples of a power of two."""
    codes = x.double() / step
    return bool((codes == codes.round()).all())


# -- quantizers: steps are powers of two, so float32 and float64 agree exactly, ties included --------------------------


def test_direct_quantisation_by_hand_and_by_loop() -> None:
    # .3 * 128 = 38.4; 1.7 * 128 = 217.6, not saturated; 2.5 / 128 is a tie and goes to the even 2
    got = wageubn.direct(torch.tensor([0.3, 1.7, -0.3, 2.5 / 128]), 8)
    assert got.tolist() == [38 / 128, 218 / 128, -38 / 128, 2 / 128]
    for bits in (2, 8, 15, 16, 24):
        x = normal(200, scale=2.0)
        n = 2 ** (bits - 1)
        assert torch.equal(wageubn.direct(x, bits), loop(x, lambda a, n=n: round(a * n) / n))


@pytest.mark.parametrize("bits", [2, 4, 8, 12])
def test_weights_saturate_one_step_below_one(bits) -> None:
    x = normal(300, scale=0.6)
    n = 2 ** (bits - 1)
    assert torch.equal(
        on_grid(wageubn.DirectWeight(), x, bits), loop(x, lambda a: clamp(round(a * n), 1 - n, n - 1) / n)
    )
    hand = on_grid(wageubn.DirectWeight(), torch.tensor([1.7, -3.0, 0.3, 0.5 / 128, 1.5 / 128]), 8)
    assert hand.tolist() == [127 / 128, -127 / 128, 38 / 128, 0.0, 2 / 128]


@pytest.mark.parametrize(("bits", "fraction"), [(8, 5), (8, 7), (12, 7), (4, 1), (2, 0)])
def test_activations_are_fixed_point_and_have_a_sign_only_where_needed(bits, fraction) -> None:
    x = normal(300, scale=2.0 ** (bits - fraction - 1))
    n, fmt = 2**fraction, wageubn.FixedPoint(fraction=fraction)
    signed = loop(x, lambda a: clamp(round(a * n), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) / n)
    assert torch.equal(on_grid(fmt, x, bits), signed)
    positive = loop(x.relu(), lambda a: clamp(round(a * n), 0, 2**bits - 1) / n)
    assert torch.equal(on_grid(fmt, x.relu(), bits), positive)
    # step 1/32: 1.02 * 32 = 32.64; 9 is above 255/32; with a sign -5 is below -128/32
    assert on_grid(wageubn.FixedPoint(fraction=5), torch.tensor([1.02, 9.0]), 8).tolist() == [33 / 32, 255 / 32]
    assert on_grid(wageubn.FixedPoint(fraction=5), torch.tensor([1.02, -5.0]), 8).tolist() == [33 / 32, -4.0]


def test_nearest_power_of_two() -> None:
    m = torch.tensor([1.0, 1.41, 1.42, 0.7, 0.71, 3.0, 2.8, 5.7e-8])  # log2 3 = 1.58, log2 2.8 = 1.49
    assert wageubn.nearest_power(m).tolist() == [1.0, 1.0, 2.0, 0.5, 1.0, 4.0, 2.0, 2.0**-24]
    many = normal(500).exp() * torch.logspace(-20, 20, 500)
    assert torch.equal(wageubn.nearest_power(many), loop(many, power))
    assert float(wageubn.nearest_power(torch.zeros(()))) == 2.0**-100


@pytest.mark.parametrize("bits", [3, 8, 16])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 3e4])
def test_shift_quantisation_equals_the_loop(bits, scale) -> None:
    x = normal(4, 50, scale=scale)
    n = 2 ** (bits - 1)
    r = power(float(x.abs().max()))
    want = loop(x, lambda a: r * clamp(round(a / r * n), 1 - n, n - 1) / n)
    assert torch.equal(on_grid(wageubn.Shift(), x, bits), want)


def test_shift_quantisation_by_hand() -> None:
    # R(3) = 4, step 4/128; R(2.8) = 2, where 2.8 is above 127/128 of it
    assert on_grid(wageubn.Shift(), torch.tensor([3.0, -1.0, 0.02, 0.01]), 8).tolist() == [3.0, -1.0, 1 / 32, 0.0]
    assert on_grid(wageubn.Shift(), torch.tensor([2.8, 0.5]), 8).tolist() == [2 * 127 / 128, 0.5]
    assert on_grid(wageubn.Shift(), torch.zeros(3), 8).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bits", [3, 8, 12])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 3e4])
def test_flag_quantisation_equals_the_loop(bits, scale) -> None:
    x = normal(4, 50, scale=scale) * torch.logspace(-4, 0, 50)
    n = 2 ** (bits - 1)
    step = power(float(x.abs().max())) / n

    def one(a: float) -> float:  # in the order of the released code: magnitude in steps, split at one, signs back
        s = abs(a) / step
        below = clamp(round(s * n) / n, -1.0, 1.0) if s < 1 else 0.0
        above = clamp(round(s), 1 - n, n - 1) if s >= 1 else 0.0
        return math.copysign(step * (below + above), a)

    got = on_grid(wageubn.Flag(), x, bits)
    assert torch.equal(got, loop(x, one))
    assert len(got.unique()) <= wageubn.Flag().points(bits) == 4 * n - 3


def test_flag_quantisation_by_hand() -> None:
    # coarse step 4/128 = 1/32, fine step 1/4096: .02 is 81.92 fine steps, 1/32 - 1e-6 is 127.996
    x = torch.tensor([3.0, -1.02, 0.02, -0.02, 1 / 32 - 1e-6])
    assert on_grid(wageubn.Flag(), x, 8).tolist() == [3.0, -33 / 32, 82 / 4096, -82 / 4096, 1 / 32]


def test_all_points_of_the_flag_grid_are_counted() -> None:
    x = torch.linspace(-4, 4, 40001)
    fine = torch.linspace(-0.03125, 0.03125, 4001)
    found = on_grid(wageubn.Flag(), torch.cat([x, fine]), 8).unique()
    assert len(found) == wageubn.Flag().points(8) == 509  # -127..127, and 127 fine codes on either side of zero


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_constant_quantisation_of_gradients_equals_the_loop(bits) -> None:
    state = QuantState(seed=3)
    state.step = 7
    for g in (normal(40, 6, scale=1e-5), normal(4, 3, 2, 5, seed=1, scale=100.0)):
        u = uniform(noise_key(state.seed, 7, "a.weight.G"), element_numbers(g.shape, g.device)).double()
        n = 2 ** (bits - 1)
        r = power(float(g.abs().max()))

        def code(a: float, draw: float, n=n, r=r) -> float:
            v = a / r * n
            return clamp(math.floor(v) + (draw < v - math.floor(v)), 1 - n, n - 1) / (128 * 128)

        pairs = zip(g.double().reshape(-1).tolist(), u.reshape(-1).tolist(), strict=True)
        want = torch.tensor([code(a, d) for a, d in pairs]).view(g.shape)
        got = wageubn.constant_quantize(state, "a.weight.G", bits, g)
        assert torch.equal(got, want)
        assert torch.equal(wageubn.constant_quantize(state, "a.weight.G", bits, g * 2.0**-60), got)  # size is forgotten
    assert torch.equal(wageubn.constant_quantize(state, "a", bits, torch.zeros(5)), torch.zeros(5))


def test_constant_quantisation_by_hand_and_without_bias() -> None:
    state = QuantState()
    g = torch.tensor([0.9, -0.3, 0.1, 0.001])  # R = 1: 115.2, -38.4, 12.8, .128 units of 2^-14
    draws = []
    for state.step in range(2000):
        draws.append(wageubn.constant_quantize(state, "x", 8, g) * 2**14)
    d = torch.stack(draws)
    assert [sorted(column.unique().tolist()) for column in d.T] == [[115, 116], [-39, -38], [12, 13], [0, 1]]
    assert ((d.mean(0) - g * 128).abs() < 4 * 0.5 / math.sqrt(2000)).all()


# -- the method --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"error": "shift", "grad_bits": 16},
        {"bits": 12, "fraction_bits": 7},
        {"bits": 6, "weight_bits": 4, "grad_bits": 5},
    ],
    ids=["default", "shift", "unsaturated", "narrow"],
)
def test_what_the_layers_multiply(settings) -> None:
    _, model, ledger = prepared(**settings)
    s = registry.create("wageubn", settings).settings
    seen: dict[str, set[str]] = {}

    def observer(layer, name, op, x, values):
        seen.setdefault(name, set()).add(layer.site)
        if name == "fw_a":
            assert whole(values, 2.0**-s.fraction_bits)
            assert 0.0 <= float(values.min()) <= float(values.max()) < 2.0 ** (s.bits - s.fraction_bits)
        elif name == "fw_w":
            assert whole(values, 2.0 ** (1 - s.weight_bits))
            assert float(values.abs().max()) < 1.0
        else:
            n = 2.0 ** (s.grad_bits - 1)
            step = power(float(x.abs().max())) / n
            assert whole(values, step if s.error == "shift" else step / n)
            large = values[values.abs() > step]
            assert whole(large, step)
            assert float(values.abs().max()) <= (n - 1) * step

    for layer in quant_layers(model):
        layer.observer = observer
    model(normal(6, 3, 8, 8)).square().sum().backward()
    inner = {m.site for m in quant_layers(model)} - {"stem.0", "head"}
    assert seen == dict.fromkeys(("fw_a", "fw_w", "E"), inner)
    cost = s.bits * s.weight_bits + s.grad_bits * s.weight_bits + s.bits * s.grad_bits
    assert metrics.cp(ledger) == pytest.approx(100 * cost / 3072, rel=1e-12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("update_bits", [8, 6])
def test_gradients_and_stored_parameters_are_on_their_grids(update_bits) -> None:
    method, model, _ = prepared(update_bits=update_bits)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.037, momentum=0.9, weight_decay=1e-4)
    norms = [m for m in model.modules() if isinstance(m, wageubn.DirectBatchNorm2d)]
    inner = [m.weight for m in quant_layers(model) if m.site not in ("stem.0", "head")]
    kept = [model.stem[0].weight, model.head.weight]
    assert len(norms) == 9
    assert len(inner) == 8
    for step in range(3):
        method.on_step_start(step)
        optimizer.zero_grad()
        model(normal(6, 3, 8, 8, seed=step)).square().mean().backward()
        for w in inner:
            assert whole(w.grad, 2.0**-14)
            assert 2 ** (update_bits - 2) < float(w.grad.abs().max()) * 2**14 <= 2 ** (update_bits - 1) - 1
        for norm in norms:
            assert whole(norm.weight.grad, 2.0**-14)
            assert whole(norm.bias.grad, 2.0**-14)
        assert not any(whole(w.grad, 2.0**-14) for w in kept)
        optimizer.step()
        assert not all(whole(w.detach(), 2.0**-23) for w in inner)
        method.on_step_end(step, torch.zeros(()))
        for w in [*inner, *(p for norm in norms for p in norm.parameters())]:
            assert whole(w.detach(), 2.0**-23)
        assert not all(whole(w.detach(), 2.0**-23) for w in kept)


def test_error_at_a_layers_input_is_shift_quantised_and_zero_where_the_activation_saturates() -> None:
    model = layers((nn.Linear, 3, 4), (nn.Linear, 4, 5), (nn.Linear, 5, 2))
    method = registry.create("wageubn", {"grad_bits": 4})
    method.prepare(model, MethodContext())
    x = normal(6, 4).abs()
    x[0, 0], x[1, 2] = 7.96, 8.5  # 255/32 = 7.97 is the largest code
    x.requires_grad_()
    seen = {}
    model[1].observer = lambda layer, name, op, original, values: seen.update({name: values.clone()})
    model[1](x).backward(normal(6, 5, seed=1))
    plain = seen["E"] @ seen["fw_w"]
    r = power(float(plain.abs().max()))
    want = loop(plain, lambda a: r * clamp(round(a / r * 8), -7, 7) / 8)
    want[1, 2] = 0.0
    assert torch.equal(x.grad, want)
    assert float(x.grad[0, 0]) == float(want[0, 0])


def test_evaluation_does_not_depend_on_the_batch() -> None:
    model = layers((nn.Linear, 3, 4), (nn.Linear, 4, 5), (nn.Linear, 5, 2))
    registry.create("wageubn", {}).prepare(model, MethodContext())
    model(normal(16, 3))  # the middle layer has seen negative values
    model.eval()
    x = normal(8, 3, seed=4)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
    large = torch.full((1, 4), 6.0)  # without a negative value in it: still the signed grid, up to 127/32
    seen = {}
    model[1].observer = lambda layer, name, op, original, values: seen.update({name: values.clone()})
    model[1](large)
    assert seen["fw_a"].unique().tolist() == [127 / 32]
