"""Shapes of layers against the exact MACs that the models are known to have, and against shapes by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fractrain.cost.hardware import LayerShape
from fractrain.data import registry as datasets
from fractrain.models import registry
from fractrain.models.layer_shapes import layer_shapes
from fractrain.models.macs import layer_macs


@pytest.mark.parametrize(
    ("model", "dataset"),
    [("resnet38", "cifar10"), ("resnet74", "cifar100"), ("mobilenet_v2", "cifar10"), ("resnet18", "imagenet")],
)
def test_macs_of_all_layers_add_up_to_the_models(model: str, dataset: str) -> None:
    info = datasets.info(dataset)
    found = layer_shapes(lambda: registry.build(model, info.classes, info.shape), info.shape)
    assert sum(g.macs for g in found.values()) == registry.info(model).forward_macs[dataset]
    assert [name for name, g in found.items() if g.first] == [next(iter(found))]


def test_shapes_by_hand() -> None:
    found = layer_shapes(lambda: registry.build("resnet38", 100, (3, 8, 16)), (3, 8, 16))
    assert found["stem.0"] == LayerShape("conv", 3, 16, (3, 3), (1, 1), (8, 16), (8, 16), first=True)
    assert found["groups.1.0.conv1"] == LayerShape("conv", 16, 32, (3, 3), (2, 2), (8, 16), (4, 8))
    assert found["head"] == LayerShape("linear", 64, 100)
    assert found["groups.1.0.conv1"].elements == (16 * 8 * 16, 9 * 16 * 32, 32 * 4 * 8)


def test_depthwise_and_strided_layers() -> None:
    found = layer_shapes(lambda: registry.build("mobilenet_v2", 10, (3, 32, 32)), (3, 32, 32))
    depthwise = [g for g in found.values() if g.groups > 1]
    assert len(depthwise) == 17
    assert all(g.groups == g.in_channels == g.out_channels for g in depthwise)
    assert {g.stride for g in depthwise} == {(1, 1), (2, 2)}


def test_attention_and_the_ends_of_a_language_model() -> None:
    make = lambda: registry.build("transformer_base", 12_000, (16,))  # noqa: E731
    found = layer_shapes(make, (16,))
    scores, mix = found["layers.0.attention.scores"], found["layers.0.attention.mix"]
    assert scores == LayerShape("matmul", 512, 8 * 16, in_size=(16, 1), out_size=(16, 1), groups=8)
    assert mix == LayerShape("matmul", 8 * 16, 512, in_size=(16, 1), out_size=(16, 1), groups=8)
    assert found["layers.0.ffn.0"] == LayerShape("linear", 512, 2048, in_size=(16, 1), out_size=(16, 1))
    assert found["head.head"].out_size == (1, 1)  # how many words it sees depends on the text
    macs = layer_macs(make(), (16,))
    body = {name: n for name, n in macs.items() if name.startswith("layers.")}
    assert {name: found[name].macs for name in body} == body


def test_a_pass_imports_no_compiler() -> None:
    """PyTorch's compiler takes seconds to import: more than pricing a hundred runs."""
    code = (
        "import sys; from torch import nn; from fractrain.models.layer_shapes import layer_shapes\n"
        "make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))\n"
        "assert layer_shapes(make, (3, 8, 8))['3'].macs == 288\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0
