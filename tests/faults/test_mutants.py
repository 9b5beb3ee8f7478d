"""The list of faults that the suite must find fits the code."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = tomllib.loads((ROOT / "benchmarks/faults/mutants.toml").read_text(encoding="utf-8"))["faults"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault['file']}: {fault['old']}")
def test_a_fault_has_one_place_and_tests_that_are_there(fault: dict) -> None:
    text = (ROOT / fault["file"]).read_text(encoding="utf-8")
    assert text.count(fault["old"]) == 1
    assert fault["old"] != fault["new"]
    compile(text.replace(fault["old"], fault["new"]), fault["file"], "exec")
    files = [name for name in fault["tests"] if name.endswith(".py")]
    assert files
    assert all((ROOT / name).is_file() for name in files)
