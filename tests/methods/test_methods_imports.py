"""Imports run downwards only, and the engine knows no method by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fractrain
from fractrain.methods import registry

PACKAGE = Path(registry.__file__).parents[1]
ROOT = PACKAGE.parent

# Each part with what it may import besides itself.
BOTTOM = {"errors", "seeds"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "seeds": set(),
    "cost": {*BOTTOM},
    "quant": {*BOTTOM, "cost"},
    "models": {*BOTTOM, "cost", "quant"},
    "data": {*BOTTOM, "cost", "quant"},
    "methods": {*BOTTOM, "cost", "quant", "models", "data"},
    "baselines": {*BOTTOM, "cost", "quant", "models", "data", "methods"},
}
ALLOWED["engine"] = {*BOTTOM, "cost", "quant", "models", "data", "methods"}
ALLOWED["report"] = {*ALLOWED["engine"], "engine"}


LAZY = {name: module.split(".")[1] for name, module in fractrain._WHERE.items()}  # fractrain.Method, ...


def part_of(path: Path) -> str:
    if path.is_relative_to(PACKAGE):
        return path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "baselines"


def sources() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "baselines").glob("*.py"))
    assert len(found) > 60
    return found


def imported_parts(path: Path) -> Iterator[tuple[str, int]]:
    """Parts of the package that a file imports, anywhere in it, with the line."""
    own = ["fractrain", *path.relative_to(PACKAGE).parts[:-1]] if path.is_relative_to(PACKAGE) else ["baselines"]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            modules = [".".join([*base, a.name]) for a in node.names]
        for module in modules:
            pieces = module.split(".")
            if pieces[0] == "fractrain" and len(pieces) > 1 and not pieces[1].startswith("__"):
                known = (PACKAGE / pieces[1]).is_dir() or (PACKAGE / f"{pieces[1]}.py").is_file()
                yield (pieces[1] if known else LAZY[pieces[1]]), node.lineno
            elif pieces[0] == "baselines":
                yield "baselines", node.lineno
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fractrain" and node.attr in LAZY:
            yield LAZY[node.attr], node.lineno


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_run_downwards_only(part):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports fractrain.{target}"
        for path in sources()
        if part_of(path) == part
        for target, line in imported_parts(path)
        if target != part and target not in ALLOWED[part]
    ]
    assert wrong == []


def test_the_check_sees_late_and_relative_imports(tmp_path):
    fake = PACKAGE / "quant" / "grid.py"  # only its place matters
    text = (
        "def f():\n from ..methods import base\n import fractrain.engine.loop\n from fractrain import cli\n"
        " import fractrain\n fractrain.Precision\n fractrain.__version__\n from fractrain import attach\n"
    )

    class Fake(type(fake)):
        def read_text(self, encoding=None):
            return text

    assert sorted(p for p, _ in imported_parts(Fake(fake))) == ["cli", "engine", "methods", "methods", "quant"]


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


def test_the_engine_knows_no_method_by_name():
    names = {*registry.names(), "dorefa", "wageubn", "slu", "cpt", "dynasty"}
    assert "dfq" in names
    hits = [h for path in sorted((PACKAGE / "engine").rglob("*.py")) for h in named(path, names)]
    # the package's own name is also a method's; it may be asked for its version or its logger
    assert [h for h in hits if not h.endswith(" fractrain")] == []
    for path in (PACKAGE / "engine").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert '== "fractrain"' not in text
        assert "methods.fractrain" not in text
