"""docs/add-a-method.md, followed word for word in an empty folder."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from fractrain.methods import base
from fractrain.methods.registry import MethodRegistry
from fractrain.testing import CHECKS, check_method

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plain6.py").write_text(blocks("python")[0], encoding="utf-8")
    return tmp_path


def test_the_example_has_at_most_30_lines():
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 30


def test_every_command_works(cli, folder: Path):
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        program, *args = shlex.split(command)
        assert program == "fractrain"
        result = cli(*args)
        assert result.exit_code == 0, f"{command}\n{result.stdout}{result.stderr}"
        if args[0] == "list":
            assert re.search(r"^plain6 +Six-bit training", result.stdout, re.MULTILINE)
            assert "A (FW, GC): affine 6 b" in result.stdout


def test_the_test_in_the_page_is_a_test(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    code = blocks("python")[1]
    scope: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), scope)
    scope["test_contract"]("settings_validated")  # type: ignore[operator]


def test_the_package_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """What pip makes of the page's pyproject.toml: the module and a dist-info with its entry points."""
    project = tomllib.loads(blocks("toml")[0])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    ((group, points),) = project["entry-points"].items()
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    try:
        kind = MethodRegistry.discover([]).get("plain6")
        assert check_method(kind, checks=["settings_validated", "cost"]).ok
    finally:
        sys.modules.pop("plain6", None)


def test_the_page_names_all_checks_hooks_and_attributes():
    text = PAGE.read_text(encoding="utf-8")
    hooks = [name for name, value in vars(base.Method).items() if callable(value) and not name.startswith("_")]
    hooks = [name for name in hooks if name not in ("prepare", "summary", "Settings")]
    attributes = [name for name in vars(base.Method) if name.startswith("contract_")]
    assert len(hooks) >= 9
    assert len(attributes) == 4
    missing = [
        name for name in (*CHECKS, *hooks, *attributes, "master_weights", "optimizer_state") if f"`{name}" not in text
    ]
    assert missing == []
