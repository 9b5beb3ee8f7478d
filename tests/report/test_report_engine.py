"""A table from real runs: planned, trained for a few steps by the engine, and read back from the run store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.engine.trainer import Trainer
from fractrain.report.build import build_table
from fractrain.report.grid import plan
from fractrain.report.render import render
from fractrain.report.sources import measure_run

BATCH = 16


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products on several threads of a busy machine take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(spec):
    """One pair, three methods, two steps; ``wageubn`` stands for a method that is not installed."""
    rows = []
    for key in ("fp32", "sbm", "wageubn"):
        row = spec.row(key)
        method = "no_such_method" if key == "wageubn" else row.method
        recipe = {"iterations": 2, "batch_size": BATCH, "eval_every": 2}
        rows.append(row.model_copy(update={"recipe": recipe, "method": method}))
    improvement = spec.improvement.model_copy(update={"subject": "sbm", "baselines": ("wageubn", "fp32")})
    return spec.model_copy(update={"pairs": spec.pairs[:1], "rows": tuple(rows), "improvement": improvement})


def test_from_plan_to_table(small, tmp_path: Path):
    store = RunStore(tmp_path / "runs")
    planned = plan(small, "smoke", 1, store)
    assert [r.state for r in planned] == ["to run", "to run", "no plugin"]
    for run in planned[:2]:
        Trainer(run.config, Site(store.root, device="cpu")).run()
    assert [r.state for r in plan(small, "smoke", 1, store)] == ["cached", "cached", "no plugin"]

    table = build_table(small, store, "smoke", 1)
    fp32, sbm, missing = table.rows
    for row, run, cp in ((fp32, planned[0], 100.0), (sbm, planned[1], 6.25)):
        record = store.get(run.run_id)
        cell = row.cells["accuracy_last"]
        assert cell.value == record.summary["test_accuracy_last"]
        assert row.cells["train_accuracy"].value == record.summary["train_accuracy"]
        assert 0 <= cell.value <= 100
        assert cell.n == 1
        assert row.text("runs") == run.run_id
        assert row.cells["cp_end"].value == pytest.approx(cp)
        numbers = measure_run(record, "fractrain-fitted").values
        macs = cp / 100 * 3 * record.ledger().meta["forward_macs"] * 2 * BATCH
        assert numbers["macs_end"] == numbers["macs_best"] == pytest.approx(macs)
        assert "macs_authors" not in numbers  # known of CIFAR's images alone
        assert numbers["energy"] > 0
        learned = cell.value > record.summary["trivial_accuracy"]
        assert row.text("verdict") == ("yes" if learned else "NO")
    assert missing.text("verdict") == "not run (no plugin)"
    assert "NOT A REPRODUCTION" in render(table, "md")
