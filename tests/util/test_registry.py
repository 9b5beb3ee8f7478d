"""The one registry: plugin files are sorted by kind from their text, entry points are found, errors name the place."""

from __future__ import annotations

import importlib
import importlib.metadata
import pickle
import sys

import pytest
import torch
from torch import nn

import fractrain
from fractrain.methods.registry import MethodRegistry
from fractrain.models.registry import ModelRegistry
from fractrain.util.errors import PluginError
from fractrain.util.registry import Origin, kinds_in

MODEL = """
from fractrain.models.info import ModelInfo
FAMILY = tuple(ModelInfo(f"m{n}", "M", "m", "s", "image", 1, 0, {}, {}, lambda c, s: None) for n in (1, 2))
"""


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("class Mine(Method):\n", {"methods"}),
        ("class Mine(fractrain.Method):\n", {"methods"}),
        ("X = ModelInfo(1)\n", {"models"}),
        ("X = DatasetInfo(1)\nclass Y(Method): ...\n", {"datasets", "methods"}),
        ("class Mine(StaticMethod):\n", {"methods"}),  # nothing else: what is wrong with it is told there
        ("def broken(:\n", {"methods"}),
        ("class Mine(HardwareModel):\n", {"hardware"}),
        ("class Mine(Method): ...\nX = FormatInfo(1)\n", {"formats", "methods"}),
        ("class Mine(Format): ...\nclass Y(Method): ...\n", {"methods"}),  # a format without a name of its own
    ],
)
def test_a_plugin_file_is_sorted_by_its_text(text, kinds, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert kinds_in(path) == kinds
    assert kinds_in(tmp_path / "gone.py") == {"methods"}


PLUGIN = """
from fractrain.layers.convert import convert_body
from fractrain.methods.base import Method
from fractrain.numerics.precision import fractrain_precision

class Mine(Method):
    name = "{name}"

    def convert(self, model, context):
        return convert_body(model, fractrain_precision(8, 8, 8), self.state)
"""


def test_a_model_is_pickled_though_its_plugin_was_read_anew(tmp_path, monkeypatch):
    path = tmp_path / "pickled_anew.py"
    path.write_text(PLUGIN.format(name="pickled_anew"))
    monkeypatch.setenv("FRACTRAIN_PLUGINS", str(path))
    session = fractrain.attach("pickled_anew", nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert MethodRegistry.discover().get("pickled_anew") is type(session.method)
    twice = pickle.loads(pickle.dumps(session.model))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(twice(x), session.model(x))
    path.write_text(path.read_text() + "# another text\n")
    other = MethodRegistry.discover().get("pickled_anew")
    assert other is not type(session.method)
    assert MethodRegistry.discover().get("pickled_anew") is other
    for kind in (type(session.method), other):
        assert pickle.loads(pickle.dumps(kind)) is kind
    del sys.modules[other.__module__]  # as in another process, which finds it by its text
    assert pickle.loads(pickle.dumps(session.model)) is not None
    assert importlib.import_module(other.__module__).Mine.__module__ == other.__module__
    path.write_text(PLUGIN.format(name="pickled_anew") + "# a third text\n")
    del sys.modules[other.__module__]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(other.__module__)


def test_a_family_of_models_in_one_module_is_found_by_entry_points(tmp_path, monkeypatch):
    (tmp_path / "fractrain_test_family.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = []

    def entry_points(group):
        asked.append(group)
        return [importlib.metadata.EntryPoint(name, "fractrain_test_family", group) for name in ("m1", "m2", "m3")]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    found = ModelRegistry.discover([])
    assert asked == ["fractrain.models"]
    assert found.origins["m1"] == Origin("entry point", "fractrain_test_family")
    assert [found.get(name).name for name in ("m1", "m2")] == ["m1", "m2"]
    with pytest.raises(PluginError, match=r"with name = 'm3', found 'm1', 'm2'"):
        found.get("m3")


def test_a_name_twice_is_noted_and_the_shipped_one_stays(tmp_path):
    path = tmp_path / "resnet38.py"
    path.write_text(MODEL)
    found = ModelRegistry.discover([str(path)])
    assert found.get("resnet38").title == "ResNet-38"
    assert len(found.problems) == 1
    assert "model 'resnet38'" in found.problems[0]
