"""docs/add-a-method.md, followed word for word in an empty folder."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
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


def test_the_package_is_built_and_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By pip, in the folder in which the commands above were typed, with what they leave there."""
    pytest.importorskip("hatchling")
    for name in ("my_method.py", "test_my_method.py"):
        (folder / name).write_text("", encoding="utf-8")
    (folder / "results" / "runs").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(blocks("toml")[0], encoding="utf-8")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(site), "."],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (site / "plain6.py").is_file()
    assert not (site / "my_method.py").exists()
    monkeypatch.syspath_prepend(str(site))
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
