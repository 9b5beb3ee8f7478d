"""A campaign as an offline wandb project, read back by wandb's own reader.

wandb 0.31 reads offline files in its core alone, when it syncs them: so `wandb sync` is run, with a stand-in for the
server on this machine, and what it read must be what the records hold.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from publish_helpers import own_wandb
from wandb_server import wandb_server

from fractrain.engine.store import RunStore
from fractrain.publish.publish import publish

__all__ = ["own_wandb"]  # fixture

COMMITTED = Path(__file__).parents[2] / "results" / "evidence" / "cifar10-one-epoch"

pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


def sync(folders: list[Path], address: str, tmp_path: Path) -> None:
    """Run `wandb sync` as a user would, against the stand-in."""
    own = {f"WANDB_{name}_DIR": str(tmp_path / "sync" / name) for name in ("CACHE", "CONFIG", "DATA")}
    environment = {**os.environ, **own, "WANDB_BASE_URL": address, "WANDB_API_KEY": "x" * 40}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, folders)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def numbers(line: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def test_wandb_reads_the_records_of_a_campaign_back(tmp_path: Path) -> None:
    shutil.copytree(COMMITTED, tmp_path / "runs")
    store = RunStore(tmp_path / "runs")
    sent = publish(store, "scaling", mode="offline", dir=tmp_path / "out", progress=lambda _: None)
    assert [s.action for s in sent] == ["created", "created"]
    with wandb_server() as (address, kept):
        sync([Path(s.where) for s in sent], address, tmp_path)
    records = {record.run_id: record for record in store.records()}
    assert set(kept.summary) == set(kept.history) == set(records)
    assert set(kept.projects.values()) == {"scaling"}
    for run_id, record in records.items():
        assert record.summary is not None
        lines = [numbers(line) for line in record.metrics()]
        assert set(kept.history[run_id]) == set(range(len(lines)))
        for step, line in enumerate(lines):
            assert line.items() <= numbers(kept.history[run_id][step]).items()
        for key in ("test_accuracy_best", "test_accuracy_last", "best_test_epoch", "iterations", "train_loss"):
            assert kept.summary[run_id][key] == record.summary[key]
        assert kept.summary[run_id]["ledger_sha256"] == record.summary["ledger_sha256"]
        config = {k: v["value"] for k, v in kept.config[run_id].items() if k != "_wandb"}
        stored = json.loads(record.config.to_json())  # with the settings that came after the record
        assert config["recipe"] == stored["recipe"]
        assert (config["method"], config["seed"]) == (stored["method"], stored["seed"])
        assert f"ledger-{run_id}" in kept.artifacts
