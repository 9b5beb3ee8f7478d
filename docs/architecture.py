"""Draw the rooms of the package from its imports, into docs/architecture.md: python docs/architecture.py [--check]."""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- drawn by docs/architecture.py -->", "<!-- end -->"

# The floors, lowest first. A room may import rooms of lower floors, and on its own floor those to its left.
FLOORS = (
    ("util",),
    ("numerics", "cost"),
    ("kernels", "layers"),
    ("models", "data", "methods", "baselines", "plugins"),
    ("distributed", "engine"),
    ("execute", "plan"),
    ("report",),
    ("publish", "testing", "bench"),
    ("commands", "cli"),
)
# Never run on a GPU yet; what imports it, and what it imports, is not looked at.
ASIDE = "experimental"
ORDER = tuple(room for floor in FLOORS for room in floor)


def _lazy() -> dict[str, str]:
    """What ``fractrain`` itself offers, imported when it is asked for: ``fractrain.Method`` and the module it is in."""
    tree = ast.parse((ROOT / "fractrain" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "_WHERE":
                return {f"fractrain.{name}": module for name, module in ast.literal_eval(node.value).items()}
    raise SystemExit("fractrain/__init__.py has no _WHERE any more")


LAZY = _lazy()


def modules() -> dict[str, Path]:
    """Return every module of the package and of the baselines, by dotted name."""
    found = {}
    for folder in ("fractrain", "baselines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield the modules that a module imports anywhere in it, functions and TYPE_CHECKING included, with the line."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (up, node.module or "") if part)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        for target in targets:
            target = LAZY.get(target, target)
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target and target != name:
                yield target, node.lineno


def graph() -> dict[str, dict[str, int]]:
    """Return, for every module, the modules it imports with the line of the first import."""
    known = modules()
    found: dict[str, dict[str, int]] = {}
    for name, path in known.items():
        found[name] = {}
        for target, line in imports(name, path, known):
            found[name].setdefault(target, line)
    return found


def room(module: str) -> str:
    """Return the room that a module is in; the package itself and its start are ``fractrain``."""
    first, _, rest = module.partition(".")
    return first if first == "baselines" else rest.partition(".")[0] or first


def allowed(module: str, target: str) -> bool:
    """Tell whether a module may import another one: of its own room, or of a room below."""
    here, there = room(module), room(target)
    if here == there or ASIDE in (here, there) or here in ("fractrain", "__main__"):
        return True
    if there == "fractrain":  # the version; everything else that it offers is taken from where it is
        return True
    return ORDER.index(there) < ORDER.index(here)


def circles(edges: dict[str, dict[str, int]]) -> list[list[str]]:
    """Return the groups of modules that import each other in a circle (strongly connected components; Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in edges.get(node, {}):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in order:
            visit(node)
    return sorted(found)


def picture(edges: dict[str, dict[str, int]]) -> str:
    """Return a Mermaid flowchart: an arrow for every room that imports another one, unless it follows from others."""
    direct: dict[str, set[str]] = defaultdict(set)
    for module, targets in edges.items():
        for target in targets:
            if allowed(module, target) and room(module) in ORDER and room(target) in ORDER:
                direct[room(module)].add(room(target))
    for here in direct:
        direct[here].discard(here)
    reach: dict[str, set[str]] = {}
    for here in ORDER:  # lowest first
        reach[here] = direct[here].union(*(reach[there] for there in direct[here]))
    lines = ["```mermaid", "flowchart BT"]
    lines += [f"  {here}" for here in ORDER]
    for here in ORDER:
        near = {t for t in direct[here] if not any(t in reach[other] for other in direct[here])}
        lines += [f"  {here} --> {there}" for there in ORDER if there in near]
    return "\n".join([*lines, "```"])


def main() -> int:
    """Write the picture into the page, or say that it is not the one that the imports give."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the page is out of date")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}\n\n{picture(graph())}\n\n{END}{after}"
    if arguments.check:
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
