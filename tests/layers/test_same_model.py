"""What conversion changes of a model is what it says: nothing at 32 bits, and neither types, hooks nor other layers."""

from __future__ import annotations

import copy
import logging
from functools import partial

import pytest
import torch
from layer_models import LowRank, Residual, Standardized, batches, chain, seeded
from torch import nn
from torch.nn.utils import parametrizations

import fractrain
from fractrain.layers.conv_linear import QuantConv2d, QuantLayer, QuantLinear

torch_warns = pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*is deprecated:FutureWarning", "ignore:Using padding='same' with even kernel:UserWarning"
)


def subclass_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), Standardized(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), LowRank(8, 8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip


def padded() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(8, 8, 2, padding="same"), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2), nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip


def normed() -> nn.Module:
    computed = parametrizations.weight_norm(nn.Linear(8, 8))
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.utils.weight_norm(nn.Conv2d(8, 8, 3)),
        nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), computed, nn.Linear(8, 4),
    )  # fmt: skip


def own_forward() -> nn.Module:
    net = chain()
    scaled = net[0]
    scaled.forward = lambda x: 3 * nn.functional.conv2d(x, scaled.weight, scaled.bias)
    return net


MODELS = {f.__name__: f for f in (subclass_net, padded, normed, own_forward, chain, Residual)}


@torch_warns
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", MODELS)
def test_fp32_gives_the_bits_of_the_plain_model(name: str, layout: torch.memory_format) -> None:
    plain, ours = seeded(MODELS[name]), seeded(MODELS[name])
    session = fractrain.attach("fp32", ours)
    x = next(batches(1))[0].to(memory_format=layout)
    for mode in (True, False):
        plain.train(mode)
        session.model.train(mode)
        y, z = plain(x), session.model(x)
        assert torch.equal(y, z)
        if mode:
            y.square().mean().backward()
            z.square().mean().backward()
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in session.model.named_parameters()]
    for a, b in zip(plain.parameters(), session.model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@torch_warns
@pytest.mark.parametrize(
    ("build", "left"),
    [
        (
            subclass_net,
            {"2": "Standardized may compute otherwise than Conv2d", "7": "LowRank may compute"},
        ),
        (normed, {"0": "ParametrizedConv2d", "2": "its weight is computed", "6": "ParametrizedLinear"}),
        (own_forward, {"0": "its forward has been replaced"}),
    ],
)
def test_layers_that_do_more_than_plain_ones_keep_their_computation_and_are_named(build, left, caplog) -> None:
    net = seeded(build)
    before = {name: net.get_submodule(name) for name in left}
    with caplog.at_level(logging.WARNING, "fractrain"):
        session = fractrain.attach("static", net)
    found = session.method.state.left_in_float
    assert found.keys() == left.keys()
    (line,) = [r.getMessage() for r in caplog.records if "not quantized" in r.getMessage()]
    for name, reason in left.items():
        assert session.model.get_submodule(name) is before[name]
        assert reason in found[name]
        assert f"{name}: {reason}" in line


def test_the_layers_inside_a_derived_layer_are_converted() -> None:
    session = fractrain.attach("static", seeded(lambda: nn.Sequential(LowRank(3, 8), nn.ReLU(), nn.Linear(8, 4))))
    assert isinstance(session.model[0].down, QuantLinear)
    assert not session.model[0].down.precision.is_float


@pytest.mark.parametrize(
    ("build", "method"),
    [(chain, "sbm"), (Residual, "sbm"), (chain, "static8"), (Residual, "static8"), (Residual, "dfq")],
)
def test_types_are_those_that_code_looks_for(build, method: str) -> None:
    plain = seeded(build)
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU)
    names = {kind: [n for n, m in plain.named_modules() if isinstance(m, kind)] for kind in kinds}
    net = fractrain.attach(method, plain).model
    for kind, before in names.items():
        after = [
            n.replace(".block.", ".").removesuffix(".block") for n, m in net.named_modules() if isinstance(m, kind)
        ]
        assert [n for n in after if "gate" not in n] == before
    weights = {
        id(p) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear) for p in m.parameters(recurse=False)
    }
    norms = {id(p) for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters(recurse=False)}
    rest = {n for n, p in net.named_parameters() if id(p) not in weights | norms}
    assert all("gate" in n and "cell" in n for n in rest)  # the gate's LSTM


@torch_warns
def test_padding_of_any_kind_is_quantized() -> None:
    """At 16 bits the quantized convolution is the plain one up to its rounding."""
    net = seeded(padded)
    want = copy.deepcopy(net)(x := next(batches(1))[0])
    ours = fractrain.attach("static", net, bits=16, grad_bits=16).model
    assert all(not m.precision.is_float for m in ours.modules() if isinstance(m, QuantConv2d))
    got = ours(x)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-3 * float(want.detach().abs().max()))
    (da,) = torch.autograd.grad(want.sum(), net[0].weight, allow_unused=True)
    assert da is None  # the copy's graph
    got.sum().backward()
    plain = seeded(padded)
    plain(x).sum().backward()
    torch.testing.assert_close(net[0].weight.grad, plain[0].weight.grad, rtol=0, atol=2e-2)


def test_hooks_of_a_layer_stay() -> None:
    net, seen = seeded(chain), []
    net[0].register_forward_hook(lambda m, x, y: seen.append(("out", type(m), y.shape[1])))
    net[8].register_forward_pre_hook(lambda m, x: seen.append(("in", type(m), x[0].shape[1])))
    net = fractrain.attach("sbm", net).model
    net(next(batches(1))[0])
    assert seen == [("out", QuantConv2d, 8), ("in", QuantLinear, 32)]
    assert isinstance(net[8], QuantLayer)


@pytest.mark.parametrize("build", [chain, Residual])
def test_a_norm_returns_its_own_values_to_whoever_calls_it(build) -> None:
    """In a loop over the layers, in a slice, and in features taken by name."""
    plain, ours = seeded(build), fractrain.attach("sbm", seeded(build)).model
    x = next(batches(1))[0]
    if build is chain:
        y = x
        for layer in ours[:2]:
            y = layer(y)
        assert torch.equal(y, ours[:2](x))
        assert y.min() < 0
    names = ["1", "4"] if build is chain else ["block1.bn1", "block2.bn2"]
    lows = []
    for net in (plain, ours):
        kept: list[float] = []
        hooks = [net.get_submodule(n).register_forward_hook(partial(keep_low, kept)) for n in names]
        net(x)
        lows.append(kept)
        for hook in hooks:
            hook.remove()
    assert all(low < 0 for low in lows[1])
    assert lows[1] == pytest.approx(lows[0], rel=0.1)


def keep_low(kept: list[float], layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
    kept.append(output.detach().min().item())
