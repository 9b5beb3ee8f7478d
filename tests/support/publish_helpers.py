"""Stored runs, and a wandb that knows nothing of who runs the tests; shared by the tests of publishing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fractrain.cost.ledger import Entry, Ledger
from fractrain.data.registry import info
from fractrain.engine.config import RunConfig
from fractrain.engine.recipes import Recipe, recipe_values
from fractrain.engine.record_files import write_manifest
from fractrain.engine.store import RunStore
from fractrain.publish.publish import Published, publish
from fractrain.util.errors import FractrainError

HOST = "lab-host-7"


@pytest.fixture(autouse=True)
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No login, settings or caches of the person who runs the tests; wandb's service process ends with each test."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("socket.gethostname", lambda: HOST)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-own" / name))
    yield
    loaded = sys.modules.get("wandb")
    if loaded is not None and hasattr(loaded, "teardown"):
        loaded.teardown()


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def make_run(
    store: RunStore, seed: int = 0, status: str = "done", epochs: int = 3, dataset: str = "digits", dataset_id: str = ""
) -> str:
    """Write a run as the engine does: 8-bit, 10 samples an epoch, 3 x 1,000 MACs a sample."""
    config = RunConfig(
        method="static8", settings={}, method_version=1, model="resnet38", dataset=dataset, dataset_id=dataset_id,
        profile="smoke", seed=seed, recipe=Recipe(**recipe_values(info("digits"), "smoke")),
    )  # fmt: skip
    ledger = Ledger({"forward_macs": 1000, "blocks": ["b"], "batch_size": 10})
    with store.open(config) as writer:
        writer.start({"torch": "2.15", "hostname": HOST, "home": str(Path.home())})
        for epoch in range(epochs):
            ledger.begin("train", epoch)
            ledger.samples(10)
            ledger.count("b/8", 10, lambda: [Entry("b.conv", p, 8, 8, 1000) for p in ("FW", "EB", "GC")])
            line = {"epoch": epoch, "iteration": 4 * (epoch + 1), "loss": 2 / (epoch + 1), "test_accuracy": epoch / 4}
            writer.append_metrics({**line, "log": str(Path.home() / "log.txt")})
        if status == "done":
            summary = {"best_test_epoch": 1, "test_accuracy": 0.75, "test_accuracy_last": 0.5}
            facts = {"weights_sha256": "ab" * 32, "device": "cpu", "note": f"on {HOST}"}
            folder = str(store.root.resolve())
            writer.finish({**summary, **facts, "folder": folder}, ledger.state_dict())
        else:
            writer.write_ledger(ledger.state_dict())
            writer.set_status(status, "went wrong")  # type: ignore[arg-type]
    return config.run_id


def rewrite_summary(store: RunStore, run_id: str, **changes: Any) -> None:
    path = store.path(run_id) / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_manifest(path.parent)


def offline(store: RunStore, tmp_path: Path, **more: Any) -> list[Published]:
    lines: list[str] = []
    result = publish(store, "bench", mode="offline", dir=tmp_path / "out", progress=lines.append, **more)
    assert sum(line.startswith("[") for line in lines) == len(result)
    return result


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "out" / "bench" / "wandb").glob("offline-run-*"))


def one_line(kind: type[FractrainError], match: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2
