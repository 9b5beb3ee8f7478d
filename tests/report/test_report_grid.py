"""The plan of a table's runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fractrain.report.grid import plan, plan_text, source_runs
from fractrain.util.errors import ConfigError


def test_every_run_once_in_order(spec, sources):
    runs = plan(spec, "smoke", 2, None, sources)
    assert len(runs) == 4 * 7 * 2
    keys = [(r.request.model, r.request.dataset, r.request.method, r.seed) for r in runs]
    assert len(set(keys)) == len(keys)
    assert keys[:2] == [("resnet38", "digits", "fp32", 0), ("resnet38", "digits", "fp32", 1)]
    assert Counter(r.state for r in runs) == {"to run": 30, "no plugin": 12, "left out": 14}


def test_default_seeds_come_from_the_table(spec, sources):
    assert {r.seed for r in plan(spec, "paper", None, None, sources)} == {0, 1, 2}
    assert {r.seed for r in plan(spec, "smoke", None, None, sources)} == {0}
    assert {r.seed for r in plan(spec, "smoke", [7, 3], None, sources)} == {3, 7}


def test_states(spec, mixed_store, sources):
    runs = {r.run_id: r for r in plan(spec, "smoke", 3, mixed_store, sources) if r.config}
    assert runs["fp32-resnet38-digits-smoke-s0"].state == "cached"
    assert runs["dfq-resnet74-digits-smoke-s2"].state == "to run"
    assert runs["dfq-resnet74-digits-smoke-s2"].reason == ""
    for run_id, reason in (
        ("pfq-resnet38-digits100-smoke-s1", "diverged before"),
        ("sbm-resnet74-digits-smoke-s0", "failed before"),
        ("sbm-resnet74-digits-smoke-s1", "interrupted before"),
    ):
        assert (runs[run_id].state, runs[run_id].reason) == ("to run", reason)


def test_no_plugin_and_incompatible_carry_the_reason(spec, sources):
    rows = tuple(r.model_copy(update={"settings": {"bits": 1}}) if r.key == "sbm" else r for r in spec.rows)
    runs = plan(spec.model_copy(update={"rows": rows}), "paper", 1, None, sources)
    by_method = {r.request.method: r for r in runs}
    assert (by_method["wageubn"].state, by_method["wageubn"].reason) == ("no plugin", "no method 'wageubn'")
    assert by_method["sbm"].state == "incompatible"
    assert "at least 2" in by_method["sbm"].reason
    assert by_method["sbm"].config is None
    assert by_method["sbm"].run_id == ""


def test_settings_of_the_row_reach_the_request(spec, sources):
    dfq = next(r for r in plan(spec, "paper", 1, None, sources) if r.request.method == "dfq")
    assert dfq.request.settings == {"target_cp": 3.0}


def test_text_counts_states(spec, mixed_store, sources):
    lines = plan_text(plan(spec, "smoke", 3, mixed_store, sources)).splitlines()
    # A line for the three seeds of a row; two rows of which each seed ended in another way, one with one left over.
    assert len(lines) == 4 * 7 + 2 + 2 + 1 + 1
    assert "seeds 0-1  2 runs" in next(line for line in lines if line.startswith("cached    dfq       resnet74"))
    assert lines[-1] == "84 runs: 40 cached, 18 no plugin, 5 to run, 21 left out"
    assert any("diverged before" in line for line in lines)


@pytest.mark.parametrize("seeds", [0, -1, [], [2, 2]])
def test_bad_seeds(spec, sources, seeds):
    with pytest.raises(ConfigError, match="seeds"):
        plan(spec, "smoke", seeds, None, sources)


@dataclass(frozen=True)
class Transferred:
    """A configuration that starts from another run."""

    run_id: str
    source: Any
    method: str = "fp32"
    model: str = "resnet38"
    dataset: str = "digits100"
    profile: str = "smoke"
    setting: str = "adaptation-source"
    seed: int = 0


def test_sources_are_listed_first_and_once(spec, store, sources):
    def make(request, seed):
        source = Transferred(f"source-{request.dataset}-s{seed}", None, dataset=request.dataset, seed=seed)
        return Transferred(sources.make_config(request, seed).run_id, source)

    store.add("source-digits-s0")
    store.add("source-digits-s1", status="failed")
    runs = plan(spec, "smoke", 2, store, replace(sources, make_config=make))
    found = {s.run_id: s for s in source_runs(runs)}
    assert {key: (s.state, s.reason, len(s.targets)) for key, s in found.items()} == {
        "source-digits-s0": ("cached", "", 10),  # of two models, which share it here, and five methods
        "source-digits-s1": ("to run", "failed before", 10),
        "source-digits100-s0": ("to run", "", 5),  # the other model's pair is left out
        "source-digits100-s1": ("to run", "", 5),
    }
    lines = plan_text(runs).splitlines()
    assert len(lines) == 3 + 4 * 7 + 1
    assert lines[1].endswith("seed 1     adaptation-source  source-digits-s1  (source of 10 runs, failed before)")
    assert lines[2].endswith("seeds 0-1  adaptation-source  2 runs  (source of 5 runs)")
    assert lines[-1] == "56 runs: 30 to run, 12 no plugin, 14 left out; and 4 source runs: 1 cached, 3 to run"
