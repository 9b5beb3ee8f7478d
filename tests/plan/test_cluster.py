"""The simulated cluster against closed forms and bounds."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from fractrain.plan.cluster import Cluster, simulate
from fractrain.util.errors import ConfigError
from fractrain.util.progress import duration


@pytest.mark.parametrize(("runs", "gpus"), [(1, 1), (7, 3), (2000, 64), (3, 10)])
def test_equal_runs_take_full_rounds(runs, gpus):
    found = simulate([100.0] * runs, Cluster(gpus, restart_s=20))
    assert found.seconds == pytest.approx(math.ceil(runs / gpus) * 120)
    assert found.gpu_seconds == pytest.approx(runs * 120)
    assert (found.jobs, found.losses, found.useful_seconds) == (runs, 0, 100 * runs)


def test_unequal_runs_lie_within_the_bounds_of_list_scheduling():
    draw = random.Random(3)
    seconds = [draw.uniform(10, 1000) for _ in range(300)]
    found = simulate(seconds, Cluster(16, restart_s=0)).seconds
    lower = max(max(seconds), sum(seconds) / 16)
    assert lower <= found <= lower * 4 / 3  # longest first: Graham 1969


def test_a_time_limit_cuts_a_run_into_jobs():
    found = simulate([1000.0], Cluster(1, restart_s=50, limit_s=300))  # 250 s of training in each
    assert found.jobs == 4
    assert found.seconds == pytest.approx(1000 + 4 * 50)


def test_losses_are_as_many_and_as_dear_as_expected():
    cluster = Cluster(64, losses_per_gpu_day=2.0, checkpoint_s=600, restart_s=300)
    found = simulate([6 * 3600.0] * 2000, cluster)
    days = 2000 * 6 / 24
    redone = found.gpu_seconds - found.useful_seconds - found.jobs * cluster.restart_s
    expected = 2.0 * (days + redone / 86400)
    assert abs(found.losses - expected) < 5 * math.sqrt(expected)  # Poisson
    assert found.jobs == 2000 + found.losses
    assert redone / found.losses == pytest.approx(300, rel=0.1)  # half a checkpoint's distance
    assert simulate([6 * 3600.0] * 2000, cluster) == found  # seeded


def test_the_page_shows_what_the_simulation_says_of_2000_runs_on_64_gpus():
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
    for losses, limit_h in ((0.0, 0), (0.05, 4), (0.5, 4), (2.0, 4)):
        found = simulate([6 * 3600.0] * 2000, Cluster(64, losses_per_gpu_day=losses, limit_s=limit_h * 3600.0))
        limit = f"{limit_h} h" if limit_h else "none"
        line = (
            f"| {losses:g} | {limit} | {duration(found.seconds)} | {found.gpu_seconds / 3600:,.0f} | "
            f"{found.useful_seconds / found.gpu_seconds:.1%} | {found.jobs:,} | {found.losses:,} |"
        )
        assert line in page


@pytest.mark.parametrize("wrong", [{"gpus": 0}, {"gpus": 1, "restart_s": -1}, {"gpus": 1, "limit_s": 100}])
def test_impossible_clusters_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"at least 1 GPU|is over before"):
        Cluster(**wrong)


def test_no_runs_are_refused():
    with pytest.raises(ConfigError, match="nothing to simulate"):
        simulate([], Cluster(1))
