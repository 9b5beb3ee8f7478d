"""What conversion changes of a model is what it says: nothing at 32 bits, and neither types, hooks nor other layers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial

import pytest
import torch
from layer_models import LowRank, Residual, Standardized, batches, chain, seeded
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import fractrain
from fractrain.layers.conv_linear import QuantConv2d, QuantLayer, QuantLinear
from fractrain.layers.convert import quantized_layer
from fractrain.layers.residual import SumReLU
from fractrain.layers.state import QuantState
from fractrain.numerics.precision import fractrain_precision
from fractrain.util.errors import ConfigError

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


ODD: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "a vector": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4)),
    "one image": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 3, 3)), torch.randn(3, 8, 8)),
    "one signal": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3), nn.Conv1d(5, 3, 1)), torch.randn(3, 8)),
    "no samples": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(0, 4)),
    "no images": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 3, 1)), torch.randn(0, 3, 8, 8)),
    "complex numbers": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3, dtype=torch.cfloat), nn.Conv2d(5, 2, 1, dtype=torch.cfloat)),
        torch.randn(2, 3, 8, 8, dtype=torch.cfloat),
    ),
    "shapes found late": (lambda: nn.Sequential(nn.LazyConv2d(5, 3), nn.LazyConv2d(4, 1)), torch.randn(2, 3, 8, 8)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("name", ODD)
def test_fp32_takes_what_plain_layers_take(name: str) -> None:
    build, x = ODD[name]
    plain, session = seeded(build), fractrain.attach("fp32", seeded(build))
    torch.manual_seed(0)
    want = plain(x)
    torch.manual_seed(0)
    assert torch.equal(session.model(x), want)
    if x.numel():
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            plain(x if x.dim() in (2, 4) or name == "a vector" else x[None])
        assert session.report().macs == counter.get_total_flops() // 2 or name == "a vector"
        assert sum(r.macs for r in session.ledger.rows() if r.product == "FW") == session.report().macs
    assert name != "a vector" or session.report().macs == 20 + 15


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("method", ["sbm", "mx"])
def test_what_has_no_real_numbers_or_no_shape_is_left_and_named(method: str) -> None:
    complex_, late = nn.Conv2d(4, 4, 1, dtype=torch.cfloat), nn.LazyConv2d(2, 1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), complex_, late, nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    assert fractrain.attach(method, net).method.state.left_in_float == {
        "1": "its weight is of type torch.complex64",
        "2": "its weight has no shape yet: run the model once before attach",
    }


@pytest.mark.parametrize("build", [lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv1d(3, 4, 3), lambda: nn.Linear(8, 4)])
def test_inputs_that_are_no_real_numbers_are_refused_as_pytorch_refuses_them(build) -> None:
    layer = quantized_layer(build(), fractrain_precision(8, 8, 8), QuantState(), "stem")
    x = torch.randn(2, 3, 8, 8) if isinstance(layer, nn.Conv2d) else torch.randn(2, 3, 8)
    for dtype in (torch.uint8, torch.int64, torch.cfloat):
        with pytest.raises(RuntimeError):
            build()(x.to(dtype))
        with pytest.raises(ConfigError, match=f"stem: input of type {dtype}") as error:
            layer(x.to(dtype))
        assert "\n" not in str(error.value)


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


class Pooled(nn.Module):
    """Norm, ReLU, pool, sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.join, self.head = nn.MaxPool2d(2), SumReLU(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.pool(self.relu(self.norm(self.conv(x))))
        return self.head(self.join(y, 0.5 * y).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "names"),
    [(Pooled, ("norm", "relu", "pool", "join")), (chain, ("1", "2", "4", "5"))],
    ids=["pooled", "chain"],
)
def test_hooks_and_forwards_of_layers_in_between_stay(build, names: tuple[str, ...]) -> None:
    x, seen = next(batches(1))[0], []
    apart = ("4", "5")  # torch allows no such hook around an operation in place
    net = seeded(build)
    for name in names:
        layer = net.get_submodule(name)
        layer.mine = name
        layer.register_forward_hook(lambda m, *_: seen.append(m.mine))
        if name not in apart:
            layer.register_full_backward_hook(lambda m, *_: seen.append(m.mine))
    net = fractrain.attach("sbm", net).model
    net(x).sum().backward()
    assert seen == [*names, *(n for n in reversed(names) if n not in apart)]
    assert [n for n in net.state_dict() if not n.rpartition(".")[2].startswith("running_")] == [
        n for n in seeded(build).state_dict() if not n.rpartition(".")[2].startswith("running_")
    ]
    for name in names:
        other = seeded(build)
        other.get_submodule(name).forward = lambda *xs: torch.zeros_like(xs[0])
        want = copy.deepcopy(other)(x)
        session = fractrain.attach("static", other, bits=16, grad_bits=16)
        torch.testing.assert_close(session.model(x), want, rtol=0, atol=1e-2)


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
