"""Imports run downwards only and never in a circle, in every room; and the engine knows no method by name."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from fractrain.methods import registry

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fractrain"

spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
assert spec is not None
assert spec.loader is not None
architecture = importlib.util.module_from_spec(spec)
sys.modules["architecture"] = architecture
spec.loader.exec_module(architecture)

GRAPH = architecture.graph()


def test_every_room_has_a_floor():
    rooms = {architecture.room(module) for module in GRAPH}
    assert rooms == {*architecture.ORDER, architecture.ASIDE, "fractrain", "__main__"}


def test_imports_run_downwards_only():
    wrong = [
        f"{module}:{line} imports {target}"
        for module, targets in GRAPH.items()
        for target, line in targets.items()
        if not architecture.allowed(module, target)
    ]
    assert sorted(wrong) == []


def test_there_is_no_circle():
    assert architecture.circles(GRAPH) == []


def test_late_relative_and_typing_imports_are_seen(tmp_path):
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from fractrain.data import images\n"
        "def f():\n from ..methods import base\n import fractrain.engine.loop\n from fractrain import cli\n"
        " from fractrain.numerics.precision import Precision\n from fractrain import attach\n"
    )
    path = tmp_path / "grid.py"
    path.write_text(text)
    found = dict(architecture.imports("fractrain.numerics.grid", path, architecture.modules()))
    assert found == {
        "fractrain.data.images": 3, "fractrain.methods.base": 5, "fractrain.engine.loop": 6, "fractrain.cli": 7,
        "fractrain.numerics.precision": 8, "fractrain.methods.session": 9,
    }  # fmt: skip
    assert not architecture.allowed("fractrain.numerics.grid", "fractrain.methods.base")
    assert architecture.allowed("fractrain.methods.base", "fractrain.numerics.grid")


def test_circles_are_found():
    edges = {"a": {"b": 1}, "b": {"c": 1}, "c": {"a": 1, "d": 1}, "d": {}, "e": {"f": 1}, "f": {"e": 1}}
    assert architecture.circles(edges) == [["a", "b", "c"], ["e", "f"]]
    assert architecture.circles({"a": {"b": 1, "c": 1}, "b": {"c": 1}, "c": {}}) == []


def named(path: Path, names: set[str]) -> list[str]:
    """Places where code (docstrings and comments aside) spells a method's name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(n.body[0].value)
        for n in ast.walk(tree)
        if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef) and n.body and isinstance(n.body[0], ast.Expr)
    }
    hits = []
    for node in ast.walk(tree):
        words: set[str] = set()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            words = {node.value.lower()} | {w for w in node.value.lower().replace("/", " ").split() if w != "fractrain"}
        elif isinstance(node, ast.Name):
            words = {node.id.lower()}
        elif isinstance(node, ast.Attribute):
            words = {node.attr.lower()}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            words = {a.name.rpartition(".")[2].lower() for a in node.names}
        hits += [f"{path.name}:{getattr(node, 'lineno', 0)} {w}" for w in words & names]
    return hits


@pytest.mark.parametrize("room", ["engine", "numerics", "layers", "kernels", "cost", "distributed"])
def test_the_lower_rooms_know_no_method_by_name(room):
    names = {*registry.names(), "dorefa", "wageubn", "slu", "cpt", "dynasty"}
    if room != "engine":
        names -= {"static", "fp8", "fp32", "mx", "nvfp4"}  # there: number formats, and a word of the language
    assert "dfq" in names
    hits = [h for path in sorted((PACKAGE / room).rglob("*.py")) for h in named(path, names)]
    # the package's own name is also a method's; it may be asked for its version or its logger
    assert [h for h in hits if not h.endswith(" fractrain")] == []
    for path in (PACKAGE / room).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert '== "fractrain"' not in text
        assert "methods.fractrain" not in text


def test_a_function_fits_on_a_screen():
    long = {
        f"{path.relative_to(ROOT)}: {node.name}": node.end_lineno - node.lineno + 1
        for folder in (PACKAGE, ROOT / "baselines")
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    }
    assert long == {}
