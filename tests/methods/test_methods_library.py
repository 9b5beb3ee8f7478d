"""FracTrain in a plain loop around a torchvision model."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.methods.gated_block import GatedBlock
from fractrain.util.errors import ConfigError


def test_torchvision_resnet18_in_ten_lines():
    data = [(torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))) for _ in range(2)]
    method = registry.create("fractrain")
    model = method.prepare(torchvision.models.resnet18(num_classes=10))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step, (x, y) in enumerate(data):
        method.on_step_start(step)
        loss = nn.functional.cross_entropy(model(x), y)
        extra = method.extra_loss()
        optimizer.zero_grad()
        (loss + extra).backward()
        optimizer.step()
        method.on_step_end(step, loss.detach(), extra.detach())
    blocks = [n for n, m in model.named_modules() if isinstance(m, GatedBlock)]
    assert blocks == [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert torch.isfinite(loss)
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())
    assert model.precision_gate.channels == [64, 64, 64, 128, 128, 256, 256, 512]
    model.eval()
    assert torch.isfinite(model(data[0][0])).all()


def test_mobilenet_blocks_are_found():
    method = registry.create("dfq")
    model = method.prepare(torchvision.models.mobilenet_v2(num_classes=4))
    assert sum(isinstance(m, GatedBlock) for m in model.modules()) == 17
    model(torch.randn(2, 3, 32, 32)).sum().backward()


@pytest.mark.parametrize("name", ["dfq", "fractrain"])
def test_a_model_without_known_blocks_is_refused_with_the_way_out(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
    with pytest.raises(ConfigError, match=r"Sequential has no blocks.*MethodContext\(blocks=") as caught:
        registry.create(name).prepare(model)
    assert "\n" not in str(caught.value)


def test_blocks_of_any_model_can_be_named():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(4 * 16, 10)
    )
    method = registry.create("dfq")
    model = method.prepare(model, MethodContext(blocks=["1"]))
    model(torch.randn(3, 3, 8, 8)).sum().backward()
    assert isinstance(model[1], GatedBlock)


@pytest.mark.parametrize("name", ["sbm", "pfq", "static8"])
def test_static_methods_take_any_convolutional_model_and_refuse_others(name):
    model = registry.create(name).prepare(torchvision.models.resnet18(num_classes=10))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    with pytest.raises(ConfigError, match="no layer to quantize"):
        registry.create(name).prepare(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_preparing_twice_is_refused():
    model = registry.create("dfq").prepare(torchvision.models.resnet18(num_classes=10))
    with pytest.raises(ConfigError):
        registry.create("dfq").prepare(model)
