"""Models from elsewhere: torchvision's, timm's, and factories in files."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import torchvision

from fractrain.engine.config import RunConfig
from fractrain.engine.registries import Registries
from fractrain.models import registry
from fractrain.util.errors import ConfigError, MachineError, PluginError
from fractrain.util.registry import PLUGIN_VARIABLE

FACTORY = """
from torch import nn

def tiny(classes, shape):
    return nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

def wrong(classes, shape):
    return classes

def broken(classes, shape):
    raise ValueError("no")
"""
PLUGIN = """
from torch import nn
from fractrain.models.info import ModelInfo

def make(classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

LINEAR = ModelInfo("linear", "Linear", "one layer", "ours", "image", 1, 0, {}, {}, make)
"""


@pytest.mark.parametrize("classes", [7, 100])
def test_a_model_of_torchvision_has_the_weights_of_torchvisions_own(classes):
    ours = registry.build("torchvision:squeezenet1_1", classes, (3, 64, 64), seed=3)
    from fractrain.util.seeds import derive_seed

    torch.manual_seed(derive_seed(3, "init"))
    theirs = torchvision.models.squeezenet1_1(weights=None, num_classes=classes)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_what_torchvision_does_not_have_is_one_line():
    with pytest.raises(ConfigError, match=r"no classification model 'resnet5' \(did you mean 'resnet50'"):
        registry.build("torchvision:resnet5", 10, (3, 64, 64))
    with pytest.raises(ConfigError, match="3 channels, not 1"):
        registry.build("torchvision:resnet18", 10, (1, 64, 64))
    assert "at least 32x32" in Registries().mismatch("torchvision:resnet18", "digits")


def test_timm(monkeypatch):
    made = []
    fake = SimpleNamespace(
        is_model=lambda name: name == "convnext_atto", list_models=lambda: ["convnext_atto"],
        create_model=lambda name, **options: made.append((name, options)) or torch.nn.Linear(1, 1),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "timm", fake)
    registry.build("timm:convnext_atto", 12, (1, 64, 64))
    assert made == [("convnext_atto", {"pretrained": False, "num_classes": 12, "in_chans": 1})]
    with pytest.raises(ConfigError, match="did you mean 'convnext_atto'"):
        registry.build("timm:convnext_ato", 12, (1, 64, 64))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MachineError, match="pip install timm"):
        registry.build("timm:convnext_atto", 12, (1, 64, 64))


def test_a_factory_in_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    model = registry.build(f"{path}:tiny", 5, (3, 8, 8))
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    config = RunConfig.create(method="static8", model=f"{path}:tiny", dataset="digits")
    assert config.model == f"{path}:tiny"
    assert len(config.run_id) < 120
    assert "/" not in config.run_id
    with pytest.raises(PluginError, match=r"returned int, expected a torch\.nn\.Module"):
        registry.build(f"{path}:wrong", 5, (3, 8, 8))
    with pytest.raises(PluginError, match=r"mine\.py:11\): ValueError: no"):
        registry.build(f"{path}:broken", 5, (3, 8, 8))
    with pytest.raises(PluginError, match="no such file"):
        registry.build(f"{tmp_path / 'gone.py'}:tiny", 5, (3, 8, 8))


def test_a_model_as_a_plugin(tmp_path, monkeypatch):
    path = tmp_path / "linear.py"
    path.write_text(PLUGIN)
    assert "linear" not in registry.names()
    monkeypatch.setenv(PLUGIN_VARIABLE, str(path))
    assert registry.names()[-1] == "linear"
    assert registry.build("linear", 3, (3, 8, 8))(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    from fractrain.methods import registry as methods

    assert "linear" not in methods.names()  # the file holds no method, and is not taken for one


def test_other_prefixes_are_unknown_names():
    with pytest.raises(ConfigError, match="unknown model 'keras:resnet50'"):
        registry.info("keras:resnet50")
