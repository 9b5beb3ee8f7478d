"""Run stores of made-up runs, written file by file as the engine leaves them, without any training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fractrain.cost.ledger import Entry, Ledger
from fractrain.cost.metrics import summarize
from fractrain.data.registry import info
from fractrain.engine.config import RunConfig
from fractrain.engine.recipes import Recipe, recipe_values
from fractrain.engine.record_files import canonical, write_manifest
from fractrain.engine.store import RunStore

METHODS = ("fp32", "sbm", "pfq", "fractrain")
PERIODS = 4


def config_of(method: str, seed: int, profile: str = "smoke", **settings: Any) -> RunConfig:
    """A configuration that no registry was asked about."""
    return RunConfig(
        method=method, settings=settings, method_version=1, model="resnet38", dataset="digits", profile=profile,
        seed=seed, recipe=Recipe(**recipe_values(info("digits"), "smoke")),
    )  # fmt: skip


def ledger_of(method: str, seed: int = 0) -> Ledger:
    """Two blocks, a stem and, of ``fractrain``, a gate; ``pfq`` raises its widths from period to period."""
    ledger = Ledger({"forward_macs": 2100, "blocks": ["b0", "b1"], "batch_size": 10})
    for period in range(PERIODS):
        ledger.begin("train", period)
        ledger.samples(10)
        bits = {"fp32": 32, "sbm": 8, "pfq": 3 + period, "fractrain": 4 + (seed + period) % 3}[method]
        for block in ("b0", "b1"):
            work = [Entry(f"{block}.conv", p, bits, bits, 1000) for p in ("FW", "EB", "GC")]
            ledger.count(f"{block}/{bits}", 10, lambda work=work: work)
        if method == "fractrain":
            ledger.count("gate", 10, lambda: [Entry("b0.gate.fc", "FW", 32, 32, 5)])
        ledger.count("stem", 10, lambda: [Entry("stem", p, 32, 32, 100) for p in ("FW", "GC")])
    return ledger


def accuracy(method: str, seed: int, period: int) -> float:
    """Test accuracy in percent; no two alike."""
    place = METHODS.index(method) if method in METHODS else 0.5
    return 60 + 7.5 * place + 3 * math.sin(seed) + 4.0 * period


def summary_of(config: RunConfig, ledger: Ledger) -> dict[str, Any]:
    """What the engine would have written; the best period is the last but one for odd seeds."""
    best = PERIODS - 1 - config.seed % 2
    last = accuracy(config.method, config.seed, PERIODS - 1) - (6.0 if config.seed % 2 else 0.0)
    return {
        "test_accuracy_last": last, "test_accuracy_best": accuracy(config.method, config.seed, best),
        "test_accuracy_at_best_val": None, "best_test_epoch": best, "iterations": 4 * PERIODS, "seconds": 12.5,
        "train_loss": 1.25, "train_accuracy": 88.0, "trivial_accuracy": 10.28, "step_seconds_median": 0.5,
        "cost": summarize(ledger, best).as_dict(), "weights_sha256": "ab" * 32, "run_id": config.run_id,
        "ledger_sha256": ledger.digest(),
    }  # fmt: skip


MAPPED = {"b0": (2.0, 2.4, 2.8, 3.2), "b1": (6.0, 5.0, 4.0, 3.0), "b2": (8.0, 8.0, 2.0, 8.0)}
"""Mean bits of the activations of each block, period by period, in :func:`map_ledger`."""


def map_ledger() -> Ledger:
    """A run of ``dynasty``: tiles of 2 or 8 bits, in the shares that give the means of :data:`MAPPED`."""
    ledger = Ledger({"forward_macs": 3000, "blocks": [*MAPPED], "batch_size": 10})
    for period in range(PERIODS):
        ledger.begin("train", period)
        ledger.samples(10)
        for block, means in MAPPED.items():
            high = round(1000 * (means[period] - 2) / 6)
            for bits, macs in ((2, 1000 - high), (8, high)):
                work = [Entry(f"{block}.conv", p, bits, 8, macs) for p in ("FW", "EB", "GC") if macs]
                ledger.count(f"{block}/{bits}/{period}", 10, lambda work=work: work)
    return ledger


def write_run(store: RunStore, config: RunConfig, status: str = "done", ledger: Ledger | None = None) -> str:
    """Write one run with the store's own writer."""
    ledger = ledger or ledger_of(config.method, config.seed)
    with store.open(config) as writer:
        writer.start({"torch": "2.15", "cpu": "a processor", "packages": {}})
        for period in range(PERIODS):
            value = accuracy(config.method, config.seed, period)
            line = {"epoch": period, "iteration": 4 * (period + 1), "test_accuracy": value, "train_loss": 1.0}
            said = {"stage": float(period)} if config.method == "pfq" else {}
            writer.append_metrics({**line, "val_loss": None, "cp_percent": 6.25, "method": said})
        if status == "done":
            writer.finish(summary_of(config, ledger), ledger.state_dict())
        else:
            writer.set_status(status, "went wrong")  # type: ignore[arg-type]
    return config.run_id


def small_store(root: Path) -> RunStore:
    """Four methods with three seeds each, one run that diverged and one of the profile short."""
    store = RunStore(root)
    for method in METHODS:
        for seed in range(3):
            write_run(store, config_of(method, seed))
    write_run(store, config_of("sbm", 0, bits=2), "diverged")
    write_run(store, config_of("sbm", 0, profile="short"))
    return store


def large_store(root: Path, runs: int) -> Iterator[str]:
    """Write so many finished runs quickly: their files alone, without locks and without bringing them to the disk."""
    ledgers = {(m, s): ledger_of(m, s) for m in METHODS for s in range(3)}
    texts = {key: canonical(ledger.state_dict()).decode() for key, ledger in ledgers.items()}
    for number in range(runs):
        method, seed = METHODS[number % 4], number // 4 % 3
        config = config_of(method, seed, number=number // 12)
        folder = root / config.run_id
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config.to_json())
        (folder / "environment.json").write_text(json.dumps({"cpu": "a processor", "packages": {}, "earlier": []}))
        lines = [
            {"epoch": p, "iteration": 4 * (p + 1), "test_accuracy": accuracy(method, seed, p)} for p in range(PERIODS)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "ledger.json").write_text(texts[method, seed])
        (folder / "summary.json").write_text(json.dumps(summary_of(config, ledgers[method, seed])))
        stamp = f"2026-11-{1 + number % 28:02d}T{number % 24:02d}:00:00+00:00"
        (folder / "status.json").write_text(
            json.dumps({"status": "done", "message": "", "time": stamp, "sealed": True})
        )
        write_manifest(folder)
        yield config.run_id
