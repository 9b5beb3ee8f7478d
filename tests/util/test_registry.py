"""The one registry: plugin files are sorted by kind from their text, entry points are found, errors name the place."""

from __future__ import annotations

import importlib.metadata

import pytest

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
