"""Made-up results of a campaign, whose truth is known: gaps that close along a line in log length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from store_fakes import FakeStore

from fractrain.cost import published
from fractrain.engine.length import length_divisor
from fractrain.report.campaign import Campaign, plan_campaign
from fractrain.report.grid import PlannedRun
from fractrain.report.sources import Sources, engine_config
from fractrain.report.values import RunValues

LEVEL = {"fp32": 0.3, "sbm": 0.0, "dfq": -0.2, "fractrain": -0.1, "pfq": 0.0, "slu": -1.0, "dynasty": -0.5,
         "static-4-6": -1.8, "fractrain-script": -0.3}  # fmt: skip
SLOPE = {"fractrain": 0.8, "dfq": 0.5}
COST = {"fp32": 100.0, "sbm": 6.25, "dfq": 3.0, "fractrain": 2.3, "pfq": 4.0}


def measure(record: Any, hardware: str) -> RunValues:
    assert record.status == "done"
    return record.measured


def sources() -> Sources:
    return Sources(engine_config, measure, published.rows())


def result(run: PlannedRun, sd: float = 0.2) -> dict[str, Any]:
    """Accuracy and costs of one run: SBM's accuracy grows with the length, the others' gaps close."""
    doublings = math.log2(1 / length_divisor(run.request.profile))
    random = np.random.default_rng(
        [run.seed, int(-doublings), list(LEVEL).index(run.row.key), len(run.request.dataset)]
    )
    gap = LEVEL[run.row.key] + SLOPE.get(run.row.key, 0.2) * doublings
    macs = COST.get(run.row.key, 3.0) * 1e12 * 2**doublings
    accuracy = 92.6 + 2.0 * doublings + gap + random.normal(0, sd)
    return {"accuracy": accuracy, "macs_best": 0.9 * macs, "macs_end": macs, "energy_end_kj": 0.1 + macs / 1e13}


def fill(store: FakeStore, campaign: Campaign, count: int | None = None, sd: float = 0.2) -> Sequence[PlannedRun]:
    """Finish the first ``count`` runs of the campaign (all by default)."""
    runs = plan_campaign(campaign)
    for run in runs[:count]:
        store.add(run.run_id, **result(run, sd))
    return runs
