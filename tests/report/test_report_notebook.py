"""The notebook of ``examples/``: its cells run in order, and show what they say.

A runner of a few lines instead of nbclient, which would bring a kernel and some twenty packages for a loop over cells.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

NOTEBOOK = Path(__file__).parents[2] / "examples" / "runs_as_data.ipynb"


def run_cells(cells: list[dict[str, Any]]) -> list[Any]:
    """Run code cells in one namespace; return what each one's last expression gave, None where it ends otherwise."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in cells:
        tree = ast.parse("".join(cell["source"]), f"{NOTEBOOK.name} {cell['id']}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names) if last else None)
    return shown


def test_the_cells_run_in_order_and_show_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRACTRAIN_RESULTS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)  # no numbers of some machine
    steps = next(place for place, line in enumerate(code[0]["source"]) if line == "STEPS = 60\n")
    code[0]["source"][steps] = "STEPS = 2\n"  # two steps of each run: this is no test of training
    plain, gated, curve, work, table, shape, session = run_cells(code)
    assert repr(plain).startswith(f"{plain.id}: done")
    assert "cost, whole model" in repr(gated)
    assert list(curve["iteration"]) == [1, 2]
    assert set(work.index) == {"FW", "EB", "GC"}
    assert work.sum() == pytest.approx(gated.summary["cost"]["effective_macs@end"])
    assert {method for method, _ in table.index} == {"fractrain", "sbm"}
    assert shape == torch.Size([4, 10])
    assert repr(session).startswith("Session(fractrain on ResNet")
