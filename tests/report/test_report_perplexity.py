"""Tables over language models: perplexity is read, less of it is better, and other tables do not change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from store_fakes import FakeRecord, FakeStore

from fractrain.cost.ledger import Entry, Ledger
from fractrain.report.build import build_table
from fractrain.report.improve import measured_cells, published_cells
from fractrain.report.quantities import QUANTITIES
from fractrain.report.render import render
from fractrain.report.sources import measure_run
from fractrain.report.spec import read_spec
from fractrain.report.stats import Estimate
from fractrain.report.values import RunValues
from fractrain.report.verdict import VerdictRule, judge

SPEC = """
name = "words"
version = 1
title = "Words"
caption = "c"
source = "s"
published_table = "NLP"
columns = ["accuracy_best_test", "perplexity_published", "perplexity_last", "perplexity_best_val",
           "perplexity_best_test", "bitops_end"]
parts = 1
[profiles.smoke]
datasets = { wikitext103 = "docs_text" }
[[relative]]
quantity = "perplexity_best_test"
label = "CPT - SBM"
short = "d"
[improvement]
subject = "cpt"
baselines = ["sbm", "fp32"]
[[pairs]]
model = "transformer_base"
dataset = "wikitext103"
model_label = "Transformer"
dataset_label = "WikiText-103"
[[rows]]
key = "sbm"
label = "SBM"
method = "sbm"
precision = "8"
published = { method = "SBM", precision = "FW/BW 8/8" }
[[rows]]
key = "cpt"
label = "CPT"
method = "cpt"
precision = "4-8"
against = "sbm"
published = { method = "CPT", precision = "FW/BW 4-8/8" }
[[rows]]
key = "fp32"
label = "FP32"
method = "fp32"
precision = "32"
"""


def add(store: FakeStore, method: str, best: float, seed: int, profile: str = "paper", data: str = "wikitext103"):
    run_id = f"{method}-transformer_base-{data}-{profile}-s{seed}"
    words = {"perplexity_last": best + 1, "perplexity_best_val": best + 0.5, "perplexity_best_test": best}
    measured = RunValues({**words, "macs_best": 1e9, "macs_end": 2e9, "bitops_end": 1e12, "cp": 50.0})
    store.records[run_id] = FakeRecord(run_id, "done", measured)


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.toml"
    path.write_text(SPEC)
    return read_spec(path)


@pytest.fixture
def table(words, sources, store):
    for seed, shift in enumerate((0.0, 0.1, -0.1)):
        add(store, "sbm", 31.80 + shift, seed)
        add(store, "cpt", 33.00 + shift, seed)
        add(store, "fp32", 30.00 + shift, seed)
    return build_table(words, store, "paper", 3, sources)


def rows(table: Any) -> dict[str, Any]:
    return {row.text("method"): row.cells for row in table.rows if row.kind == "method"}


def test_cells_are_perplexities(table):
    sbm = rows(table)["SBM"]
    assert sbm["perplexity_published"].value == 31.77
    assert sbm["perplexity_best_test"].value == pytest.approx(31.80)
    assert sbm["perplexity_best_test"].text == "31.80 ± 0.25"  # t(2) = 4.303 times 0.1 / sqrt(3)
    assert sbm["perplexity_last"].value == pytest.approx(32.80)
    assert sbm["perplexity_best_val"].value == pytest.approx(32.30)
    assert sbm["accuracy_best_test"].text == "–"
    assert sbm["perplexity_best_test"].source == "perplexity per word token, context 512, stride 512"
    assert any("context 512, stride 512" in note for note in table.notes)
    assert any("lower is better" in rule for rule in table.rules)


def test_verdicts_know_that_less_is_better(table):
    found = {name: cells["verdict"].text for name, cells in rows(table).items()}
    assert found["SBM"] == "reproduced"
    assert found["CPT"] == "differs (+2.78, worse)"
    assert found["FP32"] == "inconclusive (no published value)"


def test_relative_column_is_a_difference_with_an_arrow_down(table):
    (column,) = [c for c in table.columns if c.key == "perplexity_best_test_relative"]
    assert "[perplexity] ↓" in column.head
    assert "difference in Perplexity" in column.head
    cell = rows(table)["CPT"]["perplexity_best_test_relative"]
    assert cell.value == pytest.approx(1.2)
    assert cell.text.startswith("+1.20")


def test_improvement_is_against_the_least_perplexity(table):
    (row,) = [r for r in table.rows if r.kind == "improvement recomputed"]
    assert row.cells["perplexity_best_test"].value == pytest.approx(3.0)  # to FP32, the better of the two
    assert row.cells["perplexity_published"].value == pytest.approx(30.22 - 31.77)


@pytest.mark.parametrize("fmt", ["md", "csv", "tex", "html", "json"])
def test_every_format_prints_it(table, fmt):
    text = render(table, fmt)
    assert "31.80" in text
    assert "31.77" in text


def test_a_stand_in_is_named_with_its_own_protocol(words, sources, store):
    add(store, "sbm", 150.0, 0, "smoke", "docs_text")
    made = build_table(words, store, "smoke", 1, sources)
    sbm = rows(made)["SBM"]
    assert sbm["verdict"].text == "–"  # the fake does not say what learning nothing would give
    assert sbm["perplexity_last"].source == "perplexity per word token, context 64, stride 64"
    assert "docs_text (for WikiText-103)" in made.rows[0].group
    assert rows(made)["CPT"]["verdict"].text == "not run"


@pytest.mark.parametrize(("mean", "word"), [(31.0, "differs (-1.00, better)"), (33.0, "differs (+1.00, worse)"),
                                            (32.1, "reproduced")])  # fmt: skip
def test_judge(mean, word):
    estimate = Estimate(mean, 0.1, 0.05, 3)
    assert str(judge(estimate, 32.0, "paper", True, VerdictRule(), less_is_better=True)) == word
    if word != "reproduced":
        assert str(judge(estimate, 32.0, "paper", True, VerdictRule())) == word.partition(",")[0] + ")"


def test_best_of_accuracy_is_the_greatest():
    by_key = {q.key: q for q in QUANTITIES}
    assert by_key["accuracy_best_test"].best([1.0, 2.0]) == 2.0
    assert by_key["perplexity_best_test"].best([1.0, 2.0]) == 1.0
    assert not by_key["macs_best"].is_quality
    runs = {
        name: {0: RunValues({"accuracy_best_test": a, "macs_best": 1.0})}
        for name, a in (("x", 90.0), ("y", 91.0), ("z", 89.0))
    }
    assert measured_cells(runs, "x", {"y": "Y", "z": "Z"})["accuracy_best_test"].value == pytest.approx(-1.0)
    printed = {"x": {"accuracy_published": 90.0}, "y": {"accuracy_published": 91.0}, "z": {"accuracy_published": 89.0}}
    assert published_cells(printed, "x", {"y": "Y", "z": "Z"})["accuracy_published"].value == pytest.approx(-1.0)


def test_a_language_model_is_measured():
    def ledger() -> Ledger:
        made = Ledger({"forward_macs": 1000, "blocks": ["layers.0"]})
        made.begin("train", 0)
        made.samples(4)
        made.count("layers.0", 4, lambda: [Entry("layers.0.ffn", p, 8, 8, 1000) for p in ("FW", "EB", "GC")])
        return made

    summary = {
        "metric": "perplexity", "test_accuracy_last": None, "test_accuracy_best": None,
        "test_accuracy_at_best_val": None, "test_perplexity_last": 40.0, "test_perplexity_best": 38.0,
        "test_perplexity_at_best_val": 39.0, "best_test_epoch": 0,
    }  # fmt: skip
    found = measure_run(SimpleNamespace(run_id="r", status="done", summary=summary, ledger=ledger), "")
    assert not [key for key in found.values if key.startswith("accuracy")]
    assert found.values["perplexity_last"] == 40.0
    assert (found.values["perplexity_best_val"], found.values["perplexity_best_test"]) == (39.0, 38.0)
    assert found.values["cp"] == pytest.approx(6.25)


def test_rows_that_are_no_better_than_the_trivial_predictor_are_named(words, sources, store):
    def bar(method: str, best: float, trivial: float) -> None:
        add(store, method, best, 0)
        record = store.records[f"{method}-transformer_base-wikitext103-paper-s0"]
        record.measured.values["perplexity_trivial"] = trivial

    bar("sbm", 31.0, 325.1)
    bar("cpt", 325.1, 325.1)
    add(store, "fp32", 30.0, 0)  # an older run, which does not say
    notes = build_table(words, store, "paper", 1, sources).notes
    said = [note for note in notes if "trivial" in note]
    assert said == [
        "wikitext103, trivial predictor (giving each word its frequency): perplexity 325.10.",
        "Transformer, WikiText-103, CPT: NOT better than the trivial predictor.",
    ]
