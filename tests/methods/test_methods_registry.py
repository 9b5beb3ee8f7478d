"""Finding methods and refusing what is wrong in one line with the place of the mistake."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest

from fractrain.methods import registry
from fractrain.methods.base import Method
from fractrain.methods.registry import MethodRegistry
from fractrain.util.errors import ConfigError, PluginError
from fractrain.util.registry import PLUGIN_VARIABLE, Origin

GOOD = '''"""A plugin."""
from fractrain.methods.base import Method, MethodSettings

class MyMethod(Method):
    """Mine: does nothing."""
    name = "mine"
    class Settings(MethodSettings):
        bits: int = 8
'''


def plugin(tmp_path, text: str, name: str = "mine"):
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    return str(path)


def failure(tmp_path, text: str) -> str:
    found = MethodRegistry.discover([plugin(tmp_path, text)])
    with pytest.raises(PluginError) as caught:
        found.get("mine")
    message = str(caught.value)
    assert "\n" not in message
    assert "mine.py" in message
    assert "'mine'" in message
    return message


def test_own_methods_and_baselines_are_there():
    assert {"fp32", "static8", "sbm", "pfq", "dfq", "fractrain"} <= set(registry.names())
    for name in registry.names():
        cls = registry.get(name)
        assert cls.name == name
        assert issubclass(cls, Method)
        assert cls.summary()
        assert cls.source


@pytest.mark.parametrize(("wrong", "right"), [("fractrian", "fractrain"), ("dqf", "dfq"), ("statc8", "static8")])
def test_unknown_method(wrong, right):
    with pytest.raises(ConfigError, match=f"unknown method '{wrong}' .did you mean '{right}'") as caught:
        registry.get(wrong)
    assert "\n" not in str(caught.value)


def test_unknown_setting():
    with pytest.raises(ConfigError, match=r"'dfq' has no setting 'target_pc' \(did you mean 'target_cp'\?\)"):
        registry.create("dfq", {"target_pc": 2})
    with pytest.raises(ConfigError, match="'fp32' has no setting 'bits'; it has: none"):
        registry.create("fp32", {"bits": 2})


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("dfq", {"target_cp": "three"}, "target_cp = 'three'"),
        ("dfq", {"target_cp": -1}, "target_cp = -1"),
        ("dfq", {"target_cp": float("nan")}, "target_cp = nan"),
        ("dfq", {"bits": [3, 4]}, "2 candidates"),
        ("dfq", {"bits": [3, 4, 4, 6, 17]}, "17"),
        ("dfq", {"forward": "author"}, "forward = 'author'"),
        (
            "dfq",
            {"compat": "authors"},
            "no setting compat any more, got compat='authors': what it switched is cp_batch=nominal",
        ),
        ("pfq", {"bits": [1, 4, 6, 8]}, "2..16"),
        ("pfq", {"epsilon": 0}, "epsilon = 0"),
        ("pfq", {"bits": []}, "0 stages"),
        ("sbm", {"variant": "baner"}, "variant = 'baner'"),
        ("sbm", {"bits": 8.5}, "bits = 8.5"),
        ("static8", {"bits": None}, "bits = None"),
    ],
)
def test_wrong_values_are_one_line(method, settings, words):
    with pytest.raises(ConfigError) as caught:
        registry.create(method, settings)
    message = str(caught.value)
    assert "\n" not in message
    assert words in message
    assert repr(method) in message


def test_settings_are_frozen_values():
    settings = registry.create("dfq", {"target_cp": 2}).settings
    with pytest.raises(Exception, match="frozen"):
        settings.target_cp = 3.0


def test_a_plugin_is_found_by_the_environment_variable(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    second = plugin(tmp_path / "b", GOOD.replace('"mine"', '"other"'), "other")
    monkeypatch.setenv(PLUGIN_VARIABLE, os.pathsep.join([plugin(tmp_path, GOOD), second]))
    assert {"mine", "other"} <= set(registry.names())
    assert registry.create("mine", {"bits": 4}).settings.bits == 4
    assert registry.get("other").__name__ == "MyMethod"
    with pytest.raises(ConfigError, match="no setting 'bit'"):
        registry.create("mine", {"bit": 4})


def test_names_do_not_import_plugins(tmp_path):
    path = plugin(tmp_path, "raise RuntimeError('imported')\n")
    assert "mine" in MethodRegistry.discover([path]).names()


def test_import_error_names_file_and_line(tmp_path):
    message = failure(tmp_path, "import os\n\nimport no_such_package_here\n")
    assert "mine.py:3" in message
    assert "no_such_package_here" in message


def test_error_deeper_down_names_the_plugins_own_line(tmp_path):
    assert "mine.py:2" in failure(tmp_path, "import json\njson.loads('{')\n")


def test_syntax_error_names_file_and_line(tmp_path):
    message = failure(tmp_path, GOOD + "\ndef broken(:\n    pass\n")
    assert f"mine.py:{len(GOOD.splitlines()) + 2}" in message


def test_wrong_base_class_names_file_and_line(tmp_path):
    message = failure(tmp_path, GOOD.replace("MyMethod(Method)", "MyMethod"))
    assert "MyMethod at line 4 (not a Method)" in message


def test_wrong_name_names_file_and_line(tmp_path):
    message = failure(tmp_path, GOOD.replace('"mine"', '"yours"'))
    assert "MyMethod at line 4 (name = 'yours')" in message
    assert "name = 'mine'" in message


def test_no_class_and_no_file(tmp_path):
    assert "no class" in failure(tmp_path, "x = 1\n")
    with pytest.raises(PluginError, match="no such file"):
        MethodRegistry.discover([str(tmp_path / "gone.py")]).get("gone")


def test_a_broken_plugin_does_not_disturb_the_others(tmp_path):
    found = MethodRegistry.discover([plugin(tmp_path, "def broken(:\n")])
    assert found.get("dfq").name == "dfq"
    with pytest.raises(PluginError):
        found.get("mine")
    (tmp_path / "mine.py").write_text(GOOD)  # mended
    assert found.get("mine").name == "mine"


def test_clash_of_names_is_noted_and_the_first_keeps_it(tmp_path):
    found = MethodRegistry.discover([plugin(tmp_path, GOOD.replace("mine", "dfq"), "dfq"), plugin(tmp_path, GOOD)])
    assert len(found.problems) == 1
    assert "'dfq'" in found.problems[0]
    assert "dfq.py" in found.problems[0]
    assert found.get("dfq").__module__ == "fractrain.methods.dfq"
    assert found.get("mine").name == "mine"
    assert MethodRegistry.discover([]).problems == []


def test_entry_points_are_found_and_their_errors_placed(tmp_path, monkeypatch):
    (tmp_path / "fractrain_test_plugin.py").write_text(GOOD)
    (tmp_path / "fractrain_test_broken.py").write_text("x = 1\nraise ValueError('no')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        importlib.metadata.EntryPoint("mine", "fractrain_test_plugin:MyMethod", MethodRegistry.group()),
        importlib.metadata.EntryPoint("wrong", "fractrain_test_broken:Wrong", MethodRegistry.group()),
        importlib.metadata.EntryPoint("gone", "fractrain_test_plugin:Gone", MethodRegistry.group()),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    found = MethodRegistry.discover([])
    assert found.origins["mine"] == Origin("entry point", "fractrain_test_plugin:MyMethod")
    assert found.get("mine").name == "mine"
    with pytest.raises(PluginError, match=r"fractrain_test_broken\.py:2.*ValueError: no"):
        found.get("wrong")
    with pytest.raises(PluginError, match="MyMethod at line 4"):
        found.get("gone")


def test_listing_does_not_import_torch():
    code = (
        "import sys; from fractrain.methods import registry; names = registry.names(); "
        "from fractrain.models import registry as models; names += models.names(); "
        "assert len(names) >= 8, names; sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
