"""Fakes for tables whose rows share a method: run ids that tell settings apart, and stores filled by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fractrain.cost import published
from fractrain.report.sources import NotInRelease, Sources
from fractrain.report.spec import RunRequest, TableSpec

MODELS = ["resnet38", "resnet74"]


@dataclass(frozen=True)
class Config:
    run_id: str
    source: None = None


def make_config(request: RunRequest, seed: int) -> Config:
    if request.model not in MODELS:
        raise NotInRelease("model", request.model, MODELS)
    settings = "_".join(f"{key}={value}" for key, value in sorted(request.settings.items())).replace(" ", "")
    return Config(f"{request.method}-{settings}-{request.model}-{request.dataset}-{request.profile}-s{seed}")


def measure(record: Any, hardware: str) -> Any:
    assert record.status == "done", "only finished runs may be measured"
    return record.measured


def sources() -> Sources:
    return Sources(make_config, measure, published.rows())


def add(store: Any, spec: TableSpec, key: str, profile: str, seed: int, pair: int = 0, **values: Any) -> None:
    """Put one finished run of a table's row into a store."""
    request = spec.request(spec.pairs[pair], spec.row(key), profile)
    store.add(make_config(request, seed).run_id, **values)


def fill(store: Any, spec: TableSpec, profile: str, seeds: int = 1, scale: float = 1.0) -> None:
    """Put every run of a table into a store, no two of them alike; MACs about ``scale`` times those of the paper."""
    for number, pair in enumerate(spec.pairs):
        if pair.model not in MODELS:
            continue
        for place, row in enumerate(spec.rows):
            for seed in range(seeds):
                macs = scale * 1e13 * (2 + number + 0.7 * place + 0.01 * seed)
                costs = {
                    "macs_best": macs,
                    "macs_end": 1.3 * macs,
                    "bitops_end": 1024 * macs,
                    "energy_end": macs / 1e13,
                }
                accuracy = 90 - 5 * number + 0.3 * place + (0.0, 0.2, -0.1)[seed]
                add(store, spec, row.key, profile, seed, number, accuracy=accuracy, latency_end=macs / 1e12, **costs)
