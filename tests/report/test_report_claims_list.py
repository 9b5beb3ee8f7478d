"""Claims of the abstracts: complete, judged from made-up runs whose truth is known, and never by short ones."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import scaling_fakes
from small_registries import SmallRegistries
from store_fakes import FakeStore

from fractrain.cost import published
from fractrain.cost.formulas import AUTHORS_FORWARD_MACS
from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.engine.trainer import Trainer
from fractrain.report.claim_values import _adaptive, _below_final
from fractrain.report.claims import ClaimFile, claim_files, judge_claims, judge_zone, listing, markdown
from fractrain.report.evidence import EvidenceStore
from fractrain.report.savings import BATCH, solved_iterations
from fractrain.report.sources import cached_sources, default_sources, engine_config
from fractrain.report.spec import load_spec, read_closed
from fractrain.report.stats import estimate
from fractrain.report.values import RunValues
from fractrain.report.verdict import VerdictRule
from fractrain.util.errors import ConfigError

EVIDENCE = Path(__file__).parents[2] / "results" / "evidence"


def add(store, key, pair_name, profile, seeds, table="table2", **values):
    spec = load_spec(table)
    pair = next(p for p in spec.pairs if p.key == pair_name)
    for seed, accuracy in enumerate(seeds):
        run_id = engine_config(spec.request(pair, spec.row(key), profile), seed).run_id
        store.add(run_id, accuracy, **values)


def claims(store=None):
    return {c.id: c for c in judge_claims(store, scaling_fakes.sources())}


def test_every_number_of_the_abstracts_is_claimed():
    """The published rows hold what the abstracts state."""
    found = claims()
    text = " ".join(f"{c.source} {c.text}" for c in found.values())
    for row in published.rows():
        if row.table == "abstract" and row.paper.startswith(("FracTrain", "DYNASTY")):
            for number in str(row.value).replace("~", "/").split("/"):
                assert number.strip().strip("%").removeprefix("up to ") in text or number == "none", row
    assert list(found)[:2] == ["fractrain-cost", "fractrain-latency"]
    assert "No accuracy drop" in text
    assert len(found) == sum(len(read_closed(file, ClaimFile).claims) for file in claim_files())


def test_without_a_run_nothing_is_judged_but_published_rows_speak():
    found = claims()
    assert {c.verdict for c in found.values()} == {"not run"}
    assert "77.7 %" in found["fractrain-cost"].published
    assert (
        "at equal iterations they save 60.3 % of the MACs and 17.3 % of the latency"
        in found["fractrain-cost"].published
    )
    assert "53.5 %" in found["fractrain-latency"].published
    assert found["fractrain-headline-accuracy"].published == "resnet74/cifar10 -0.07"
    assert "resnet34/imagenet -0.31" in found["fractrain-accuracy-imagenet"].published
    assert all(c.trend == "" for c in found.values())


def test_runs_of_kinds_that_no_store_has_are_not_looked_for():
    """What ``fractrain report`` says of the committed records is what a search for every run says."""
    looked = []
    store = EvidenceStore(EVIDENCE)
    kinds = {(c.method, c.model, c.dataset, c.profile) for c in store.configs()}
    counting = SimpleNamespace(get=lambda run_id: looked.append(run_id) or store.get(run_id))
    sources = cached_sources(default_sources())
    everywhere = judge_claims(counting, sources)
    before = len(looked)
    few = judge_claims(counting, sources, may_have=lambda r: (r.method, r.model, r.dataset, r.profile) in kinds)
    assert few == everywhere
    assert any(c.trend for c in few)
    assert len(looked) - before < before / 3


def test_published_rows_are_solved_as_the_authors_script_has_them():
    """DFQ's best iterations stand in the authors' script: 50,700 (ResNet-38) and 37,440 (ResNet-74), at cp 3."""
    for model, macs, latency, iterations in (
        ("resnet38", 4.96e13, 230.32, 50_700),
        ("resnet74", 7.33e13, 343.76, 37_440),
    ):
        found = solved_iterations(model, macs, latency)
        assert found == pytest.approx(iterations, rel=0.005)
        cp_percent = 100 * macs / (3 * BATCH * AUTHORS_FORWARD_MACS[model]) / found
        assert cp_percent == pytest.approx(3.0, rel=0.005)
    assert solved_iterations("mobilenet_v2", 1e13, 100.0) is None


@pytest.mark.parametrize(
    ("macs", "gap", "cost", "accuracy"),
    [(5.85e13, -0.07, "reproduced", "reproduced"), (1.2e14, -0.07, "differs", "reproduced"),
     (5.85e13, -1.5, "reproduced", "differs")],
)  # fmt: skip
def test_the_headline_is_judged_by_runs_of_the_papers_length(macs, gap, cost, accuracy):
    store = FakeStore()
    for key in ("sbm", "wageubn", "dorefa"):
        low = 0.0 if key == "sbm" else 1.0
        add(store, key, "resnet74/cifar10", "paper", [93.0 - low, 93.1 - low, 93.05 - low], macs_best=2.62e14)
    add(store, "fractrain", "resnet74/cifar10", "paper", [93.0 + gap, 93.1 + gap, 93.05 + gap], macs_best=macs)
    found = claims(store)
    assert found["fractrain-cost"].verdict == cost
    assert found["fractrain-headline-accuracy"].verdict == accuracy
    assert found["fractrain-latency"].verdict == "inconclusive"
    assert "fitted to the published rows" in found["fractrain-latency"].reason
    many = found["fractrain-accuracy-cifar"]  # three of its four pairs were not run
    assert many.verdict == ("differs" if accuracy == "differs" else "inconclusive")


def test_short_runs_give_a_trend_and_no_verdict(monkeypatch):
    from fractrain.report.campaign import load_campaign

    monkeypatch.setattr("fractrain.report.claims.mechanism", lambda *_: [100.0, 50.0])  # fakes have no ledger
    store = FakeStore()
    scaling_fakes.fill(store, load_campaign("scaling"), sd=0.01)
    found = claims(store)
    cifar = found["fractrain-accuracy-cifar"]
    assert cifar.verdict == "not run"
    assert "resnet38/cifar10: trend supports" in cifar.trend
    assert "resnet38/cifar10 at 1/16: " in cifar.evidence
    headline = found["fractrain-headline-accuracy"]
    assert "resnet38/cifar10 (not the claim's network): trend says nothing" not in headline.trend
    assert "(not the claim's network)" in headline.trend
    assert found["fractrain-latency"].trend == ""  # a model fitted to the published rows has no trend to tell
    start = "reduced length; holds in 2 of 4 runs: 50 to 100 % of the evaluation periods"
    assert found["fractrain-progressive"].reason.startswith(start)
    for claim in found.values():
        assert claim.verdict in ("not run", "inconclusive")


def test_mechanisms_are_read_from_ledger_and_metrics():
    """Against the record's own JSON: in its units each block names the choice (``#i``) that samples took."""
    folder = EVIDENCE / "cifar10-one-epoch" / "fractrain-resnet38-cifar10-s0-e0434f04f14e"
    record = EvidenceStore(EVIDENCE).get(folder.name)
    taken = defaultdict(set)
    for phase, _, work, _ in json.loads((folder / "ledger.json").read_text())["units"]:
        if phase == "eval" and "#" in work:
            block, _, choice = work.partition("#")
            taken[block].add(choice)
    several = sum(len(choices) > 1 for choices in taken.values())
    assert 0 < several < len(taken) == 18
    assert _adaptive(record) == pytest.approx(100 * several / 18)
    assert _below_final(record) == 100.0  # one period, in the first stage of four


def test_overhead_is_read_from_a_trained_run_and_not_measured_in_an_old_one(tmp_path):
    """A run of DYNASTY stands for the first seed of table 6 at 1/64; old records lack what analysis takes."""
    config = RunConfig.create(
        method="dynasty", model="resnet38", dataset="digits", settings={"refresh": 2, "observe": 2},
        recipe={"iterations": 4, "batch_size": 32, "eval_every": 2, "val_fraction": 0.0, "milestones": [3]},
    )  # fmt: skip
    record = Trainer(config, Site(tmp_path, "cpu"), registries=SmallRegistries()).run()
    table = load_spec("table6")
    pair = next(p for p in table.pairs if p.key == "resnet38/cifar100")
    wanted = engine_config(table.request(pair, table.row("dynasty"), "1/64"), 0).run_id

    def verdict(lines, claim):
        run = SimpleNamespace(
            run_id=wanted,
            status="done",
            metrics=lambda: lines,
            measured=RunValues({"accuracy_best_test": 90.0, "accuracy_last": 90.0}),
        )
        judged = judge_claims(SimpleNamespace(get={wanted: run}.get), scaling_fakes.sources())
        return next(c for c in judged if c.id == claim)

    lines = record.metrics()
    for claim, metric in (("dynasty-overhead", "analysis_percent"), ("dynasty-storage", "storage_percent")):
        percent = lines[-1]["method"][metric]
        assert 0 < percent < 100
        found = verdict(lines, claim)
        assert f"holds in {int(percent <= 1)} of 1 runs: {percent:.2g} %" in found.reason
        for old in ({"budget": 4.0}, {}):
            found = verdict([{**line, "method": old} for line in lines], claim)
            assert (found.verdict, found.reason) == ("not run", "not measured in any of 1 runs")


@pytest.mark.parametrize(
    ("values", "zone", "word"),
    [
        ([1.0, 1.1, 1.2], (0.0, 2.0), "reproduced"), ([1.0, 1.1, 1.2], (0.0, float("inf")), "reproduced"),
        ([1.0, 1.1, 1.2], (2.0, 3.0), "differs"), ([1.0, 1.1, 1.2], (float("-inf"), 0.5), "differs"),
        ([1.0, 1.1, 1.2], (1.1, 2.0), "inconclusive"), ([1.0, 1.1, 1.2], (1.0, float("inf")), "inconclusive"),
        ([1.0, 1.1], (0.0, 2.0), "inconclusive"),
    ],
)  # fmt: skip
def test_zones(values, zone, word):
    verdict = judge_zone(estimate(values), zone, VerdictRule())
    assert verdict.word == word
    if word == "inconclusive":
        assert "would decide" in verdict.reason or "needed" in verdict.reason


def test_listing_and_table_name_every_claim():
    found = list(claims().values())
    text, table = listing(found), markdown(found)
    for claim in found:
        assert claim.id in text
        assert claim.text in table
    json.dumps([asdict(c) for c in found], allow_nan=False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("expected = [75.6, 79.6]", "expected = [79.6, 75.6]", "fractrain-cost: expected is no interval"),
        ('quantity = "saving_macs"', 'quantity = "none"', "say in `note` why there is no quantity"),
        ('row = "fractrain"', "", "give table, pairs and row"),
        ('text = "ResNet-74', 'txet = "ResNet-74', "unknown key"),
    ],
)
def test_wrong_files_are_named(tmp_path, old, new, message):
    file = tmp_path / "mine.toml"
    file.write_text(claim_files()[0].read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_closed(file, ClaimFile)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
