"""Swapping the layers of a model: which, how, and what stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from quant_helpers import tensor
from torch import nn
from torchvision.models import resnet18

from fractrain.layers.conv_linear import QuantConv2d, QuantLayer, QuantLinear
from fractrain.layers.convert import convert, quant_layers, quantized_layer
from fractrain.layers.state import QuantState
from fractrain.numerics.precision import Precision, fractrain_precision
from fractrain.util.errors import ConfigError

P = fractrain_precision(8, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 8, 1, bias=False))
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same"))
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.stem(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))  # type: ignore[no-any-return]


def quantized(model: nn.Module) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, QuantLayer) and not m.precision.is_float}


ALL = {"stem", "layer1.0", "layer1.2", "layer2.0", "hidden", "head"}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"head"}),
        ({"keep_last": False}, set()),
        ({"keep_first": True}, {"stem", "head"}),
        ({"keep_last": False, "keep": ["layer1.*"]}, {"layer1.0", "layer1.2"}),
        ({"keep": ["layer?.0", "hidden"]}, {"layer1.0", "layer2.0", "hidden", "head"}),
        ({"types": (nn.Conv2d,), "keep_last": False}, {"hidden", "head"}),
        ({"types": (nn.Linear,), "keep_last": False}, {"stem", "layer1.0", "layer1.2", "layer2.0"}),
    ],
    ids=lambda value: str(sorted(value)),  # of a set, too: the same name in every process
)
def test_which_layers_are_replaced(options, kept: set[str]) -> None:
    net = convert(Net(), P, **options)
    assert quantized(net) == ALL - kept
    # kept layers are wrapped at 32 bits, so that the ledger sees them
    assert {layer.site for layer in quant_layers(net)} == ALL
    assert not [m for m in net.modules() if type(m) in (nn.Conv2d, nn.Linear)]


def test_a_rule_decides_by_name_and_layer() -> None:
    def rule(name: str, layer: nn.Module) -> Precision | None:
        if isinstance(layer, nn.Linear):
            return None
        return fractrain_precision(4, 4, 8) if name.startswith("layer1") else P

    net = convert(Net(), rule, keep_last=False)
    assert quantized(net) == ALL - {"hidden", "head"}
    assert net.layer1[0].precision.fw_a.bits == 4
    assert net.stem.precision is P


@pytest.mark.parametrize(
    ("build", "options", "what"),
    [
        (Net, {"keep": ["layr1.0"]}, r"keep='layr1.0' matches no layer \(did you mean 'layer1.0'\?\)"),
        (Net, {"keep": ["*"]}, "Net has no layer to quantize"),
        (Net, {"types": ()}, "Net has no layer to quantize"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), {}, "Sequential has no layer to quantize"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {}, "no layer to quantize"),  # the only layer is the last
    ],
)
def test_nothing_to_quantize_is_an_error(build, options, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as error:
        convert(build(), P, **options)
    assert "\n" not in str(error.value)


def test_nothing_to_quantize_may_be_allowed() -> None:
    net = convert(Net(), lambda name, layer: None, strict=False)
    assert quantized(net) == set()


def test_parameters_are_the_same_objects_under_the_same_names() -> None:
    net = Net()
    before = dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)  # made before: goes on working
    converted = convert(net, P)
    assert converted is net
    after = dict(net.named_parameters())
    assert list(after) == list(before)
    assert all(after[n] is before[n] for n in before)
    keys = set(net.state_dict())
    assert set(before) <= keys
    assert {k.rpartition(".")[2] for k in keys - set(before)} == {"running_low", "running_high", "running_steps"}
    net(tensor((2, 3, 6, 6), 0)).sum().backward()
    head = before["head.weight"].detach().clone()
    optimizer.step()
    assert not torch.equal(net.head.weight, head)


def test_a_plain_checkpoint_loads_into_the_converted_model() -> None:
    plain = Net()
    net = convert(Net(), P)
    result = net.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert {k.rpartition(".")[2] for k in result.missing_keys} == {"running_low", "running_high", "running_steps"}
    assert torch.equal(net.stem.weight, plain.stem.weight)


def test_conversion_keeps_the_function_up_to_rounding() -> None:
    torch.manual_seed(0)
    net = Net()
    x = tensor((4, 3, 8, 8), 0)
    want = net(x).detach()
    wide = convert(copy.deepcopy(net), fractrain_precision(16, 16, 16))
    torch.testing.assert_close(wide(x).detach(), want, rtol=0, atol=2e-3)
    exact = convert(copy.deepcopy(net), Precision())
    torch.testing.assert_close(exact(x).detach(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_mode_are_kept(training: bool) -> None:
    net = Net().train(training)
    net.layer2.train(not training)
    convert(net, P)
    assert {
        layer.training for n, layer in net.named_modules() if isinstance(layer, QuantLayer) and "layer2" not in n
    } == {training}
    assert net.layer2[0].training is not training


def test_a_layer_used_under_two_names_is_replaced_everywhere() -> None:
    net = nn.Module()
    net.a = nn.Sequential(nn.Linear(4, 4))
    net.b = net.a[0]
    net.c = nn.Linear(4, 4)
    convert(net, P, keep_last=False)
    assert isinstance(net.a[0], QuantLinear)
    assert net.b is net.a[0]
    assert len(list(net.parameters())) == 4


def test_tied_weights_stay_tied() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    convert(net, P, keep_last=False)
    assert net[0].weight is net[1].weight
    net(tensor((3, 4), 0)).sum().backward()
    assert net[0].weight.grad is not None


def test_a_single_layer_is_converted_and_returned() -> None:
    conv = nn.Conv2d(3, 4, 3)
    new = convert(conv, P, keep_last=False)
    assert isinstance(new, QuantConv2d)
    assert new.weight is conv.weight
    assert new(tensor((1, 3, 4, 4), 0)).shape == (1, 4, 2, 2)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_computed_weights_are_refused() -> None:
    net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    old = torch.nn.utils.weight_norm(nn.Linear(4, 4))  # a hook instead of a derived class
    for layer, what in ((net[0], "0: ParametrizedLinear cannot"), (old, "0: Linear cannot .* its weight is computed")):
        with pytest.raises(ConfigError, match=what):
            quantized_layer(layer, P, QuantState(), "0")


def test_layers_without_a_twin_are_refused() -> None:
    with pytest.raises(ConfigError, match="x: Bilinear cannot be quantized: only convolutions, Linear and Matmul"):
        quantized_layer(nn.Bilinear(3, 4, 3), P, QuantState(), "x")


def test_layers_share_one_state() -> None:
    state = QuantState(7)
    net = convert(Net(), P, state)
    assert all(layer.state is state for layer in quant_layers(net))
    assert [layer.site for layer in quant_layers(net)] == ["stem", "layer1.0", "layer1.2", "layer2.0", "hidden", "head"]


def test_a_torchvision_resnet_trains_after_conversion() -> None:
    torch.manual_seed(0)
    net = convert(resnet18(num_classes=4), P)
    assert len(quantized(net)) == 20
    x, y = tensor((4, 3, 32, 32), 0), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
    losses = []
    for step in range(5):
        for layer in quant_layers(net):
            layer.state.step = step
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
