"""docs/hardware.md and docs/add-a-hardware-model.md, followed word for word in an empty folder."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from fractrain.cost.hardware import HardwareRegistry
from fractrain.cost.hardware.registry import names

PAGE, GUIDE = (Path(__file__).parents[2] / "docs" / f"{name}.md" for name in ("hardware", "add-a-hardware-model"))


def blocks(language: str, page: Path = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_has_at_most_40_lines() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 40


def test_every_command_works(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "row_array.py").write_text(blocks("python")[0], encoding="utf-8")
    commands = [line for block in [*blocks("sh", PAGE), *blocks("sh")] for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        program, *args = shlex.split(command)
        assert program == "fractrain"
        result = cli(*args)
        assert result.exit_code == 0, f"{command}\n{result.stdout}{result.stderr}"
        if args[0] == "check-hardware":
            assert "10 checks: 9 passed, 0 failed, 1 skipped" in result.stdout
        if args[:2] == ["list", "hardware"] and "--plugin" in args:
            assert re.search(r"^row_array +A row of multipliers", result.stdout, re.MULTILINE)
            assert "is not: a machine" in result.stdout
        if "row_array,row_array:units=64,bitfusion" in args:
            assert re.search(r"row_array +row_array:units=64 +bitfusion\n", result.stdout)


def test_the_table_names_every_shipped_model() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE) == [
        "fractrain-fitted", "bit-product", "bit-serial", "bitfusion", "roofline", "measured",
    ]  # fmt: skip
    assert len(names()) == 6


def test_entry_points_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    group = re.search(r'entry-points."([a-z.]+)"', blocks("toml")[0])
    assert group is not None
    point = importlib.metadata.EntryPoint("row_array", "my_package", group[1])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == point.group else [])
    registry = HardwareRegistry.discover()
    assert registry.get("row_array").name == "row_array"
