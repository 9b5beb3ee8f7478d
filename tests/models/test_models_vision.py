"""MobileNetV2 and the ImageNet ResNets: exact MACs and parameters by hand and by torch's counter, blocks, sizes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fractrain.engine.registries import Registries
from fractrain.models import registry
from fractrain.models.macs import block_macs, forward_macs, layer_macs
from fractrain.models.mobilenet_v2 import InvertedResidual

MACS = {
    ("mobilenet_v2", "cifar10"): 91_154_944,
    ("mobilenet_v2", "cifar100"): 91_270_144,
    ("resnet18", "imagenet"): 1_814_073_344,
    ("resnet34", "imagenet"): 3_663_761_408,
}
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
SIZE = {"cifar10": 32, "cifar100": 32, "imagenet": 224}
# The paper's table 2 (expansion, width, blocks, stride), with the CIFAR variant's strides.
INVERTED = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class Hand:
    """Adds up convolutions (without bias, with BatchNorm) by hand."""

    def __init__(self) -> None:
        self.macs = self.parameters = self.depthwise = 0

    def conv(self, size: int, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        weights = outputs * (inputs // groups) * kernel * kernel
        self.macs += size * size * weights
        self.depthwise += size * size * weights if groups > 1 else 0
        self.parameters += weights + 2 * outputs

    def linear(self, inputs: int, outputs: int) -> None:
        self.macs += inputs * outputs
        self.parameters += inputs * outputs + outputs


def mobilenet_by_hand(classes: int, size: int) -> tuple[Hand, list[int]]:
    hand, blocks, inputs = Hand(), [], 32
    hand.conv(size, 3, 32, 3)
    for expansion, width, count, first in INVERTED:
        for i in range(count):
            before, stride, hidden = hand.macs, first if i == 0 else 1, expansion * inputs
            hand.conv(size, inputs, hidden, 1)
            size = -(-size // stride)
            hand.conv(size, hidden, hidden, 3, groups=hidden)
            hand.conv(size, hidden, width, 1)
            if stride == 1 and inputs != width:
                hand.conv(size, inputs, width, 1)
            blocks.append(hand.macs - before)
            inputs = width
    hand.conv(size, inputs, 1280, 1)
    hand.linear(1280, classes)
    return hand, blocks


def resnet_by_hand(name: str, classes: int, size: int) -> Hand:
    hand, inputs = Hand(), 64
    size = -(-size // 2)
    hand.conv(size, 3, 64, 7)
    size = -(-size // 2)  # max pooling
    for g, count in enumerate(DEPTHS[name]):
        width = 64 * 2**g
        for i in range(count):
            size = -(-size // 2) if g and i == 0 else size
            hand.conv(size, inputs, width, 3)
            hand.conv(size, width, width, 3)
            if inputs != width:
                hand.conv(size, inputs, width, 1)
            inputs = width
    hand.linear(512, classes)
    return hand


def by_hand(name: str, classes: int, size: int) -> Hand:
    return mobilenet_by_hand(classes, size)[0] if name == "mobilenet_v2" else resnet_by_hand(name, classes, size)


def build(name: str, classes: int = 10, size: int = 32) -> nn.Module:
    return registry.build(name, classes, (3, size, size))


@pytest.mark.parametrize(("name", "dataset"), sorted(MACS))
def test_macs_and_parameters(name: str, dataset: str) -> None:
    classes, size, info = CLASSES[dataset], SIZE[dataset], registry.info(name)
    hand = by_hand(name, classes, size)
    with torch.device("meta"):  # shapes only: two GMACs need not be done
        model = info.factory(classes, (3, size, size))
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    assert hand.macs == MACS[name, dataset] == info.forward_macs[dataset]
    assert counter.get_total_flops() == 2 * hand.macs
    assert hand.parameters == info.parameters[dataset] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "size"), [("mobilenet_v2", 8), ("resnet18", 32), ("resnet18", 47), ("resnet34", 64)])
def test_macs_of_other_sizes(name: str, size: int) -> None:
    assert forward_macs(build(name, size=size), (3, size, size)) == by_hand(name, 10, size).macs


def test_mobilenets_parts_are_those_of_the_authors_table() -> None:
    macs = layer_macs(build("mobilenet_v2"), (3, 32, 32))
    names = {n: sum(v for k, v in macs.items() if n in k) for n in ("conv2", "shortcut", "conv1", "conv3")}
    assert names["conv2"] == 5_879_808 == mobilenet_by_hand(10, 32)[0].depthwise
    assert names["shortcut"] == 2_129_920
    assert names["conv1"] + names["conv3"] == 75_694_080
    assert (macs["stem.0"], macs["last.0"], macs["head"]) == (884_736, 6_553_600, 12_800)


def test_mobilenets_blocks_are_weighted_by_their_macs_and_the_resnets_alike() -> None:
    model: nn.Module = build("mobilenet_v2")
    blocks = model.gateable_blocks()  # type: ignore[operator]
    by_block = mobilenet_by_hand(10, 32)[1]
    assert block_macs(model, (3, 32, 32), blocks) == by_block
    assert sum(by_block) == 75_694_080 + 2_129_920 + 5_879_808
    known = Registries()
    assert known.block_weights(model, "cifar10", blocks) == {"block_weights": by_block}
    assert known.block_weights(build("resnet18"), "cifar10", ["layer1.0"]) == {}


@pytest.mark.parametrize(("name", "shape", "out"), [("mobilenet_v2", (8, 8), (1, 1)), ("mobilenet_v2", (8, 16), (1, 2)),
                                                    ("mobilenet_v2", (32, 32), (4, 4)), ("resnet18", (32, 32), (1, 1)),
                                                    ("resnet34", (65, 32), (3, 1))])  # fmt: skip
def test_blocks_come_in_the_order_data_flows(name: str, shape: tuple[int, int], out: tuple[int, int]) -> None:
    model: nn.Module = registry.build(name, 7, (3, *shape))
    blocks = model.gateable_blocks()  # type: ignore[operator]
    assert len(blocks) == len(set(blocks)) == registry.info(name).blocks
    seen: list[tuple[str, tuple[int, ...]]] = []
    for block in blocks:
        model.get_submodule(block).register_forward_hook(lambda m, a, o, block=block: seen.append((block, o.shape)))
    logits = model(torch.zeros(2, 3, *shape))
    assert logits.shape == (2, 7)
    assert [b for b, _ in seen] == blocks
    assert tuple(seen[-1][1]) == (2, 320 if name == "mobilenet_v2" else 512, *out)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_the_resnets_are_torchvisions_to_the_bit(name: str) -> None:
    from torchvision import models

    theirs = models.get_model(name, num_classes=10)
    ours = build(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert torch.equal(ours.train()(x), theirs.train()(x))  # batch statistics, which are kept
    kept, expected = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(kept[key], expected[key]) for key in expected)


def test_shortcuts_of_mobilenet() -> None:
    blocks = [m for m in build("mobilenet_v2").modules() if isinstance(m, InvertedResidual)]
    kinds = [len(b.shortcut) if b.use_res_connect else None for b in blocks]
    # a projection where the width changes at stride 1, nothing at stride 2
    assert kinds == [2, 2, 0, None, 0, 0, None, 0, 0, 0, 2, 0, 0, None, 0, 0, 2]


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_blocks_with_zero_scale_are_their_shortcuts_and_the_rest_is_alive(name: str) -> None:
    model: nn.Module = build(name)
    model.zero_init_residual()  # type: ignore[operator]
    model.eval()
    for block in model.gateable_blocks():  # type: ignore[operator]
        b = model.get_submodule(block)
        x = torch.randn(2, b.conv1.in_channels, 6, 6, generator=torch.Generator().manual_seed(0))
        if name == "mobilenet_v2":
            if b.use_res_connect:
                assert torch.equal(b(x), b.shortcut(x))
            else:
                assert float(b(x).detach().abs().max()) > 0
        else:
            assert torch.equal(b(x), torch.relu(x if b.downsample is None else b.downsample(x)))


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    one, two, other = (registry.build(name, 10, (3, 32, 32), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_least_sizes() -> None:
    small = SimpleNamespace(name="digits", classes=10, shape=(3, 8, 8))
    assert registry.compatible("mobilenet_v2", small) is None
    assert "at least 32x32" in (registry.compatible("resnet18", small) or "")
