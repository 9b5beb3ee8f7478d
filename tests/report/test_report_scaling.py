"""The scaling table and figure from made-up results of the campaign, whose gaps are known."""

from __future__ import annotations

import csv
import io

import pytest
import scaling_fakes
from scipy import stats
from store_fakes import FakeStore

from fractrain.report.campaign import load_campaign
from fractrain.report.render import render
from fractrain.report.scaling import build_scaling
from fractrain.report.scaling_draw import scaling_content, write

TREND = "1 (trend)"


@pytest.fixture(scope="module")
def campaign():
    return load_campaign("scaling")


def built(campaign, count=None, sd=0.2, store=None):
    store = store or FakeStore()
    scaling_fakes.fill(store, campaign, count, sd)
    return build_scaling(campaign, store, scaling_fakes.sources())


def rows_of(table, label, data="CIFAR-10"):
    return {
        r.text("length"): r for r in table.rows if r.text("label").startswith(label) and r.group.endswith(f" {data}")
    }


def test_nothing_run_is_not_run_everywhere(campaign):
    table = build_scaling(campaign, None).table
    assert "0 of 75 runs of the campaign are done" in table.caption
    for row in table.rows:
        if row.text("length") != TREND:
            assert row.text("accuracy_best_test") == "not run"
            assert row.text("seeds") == "0/3"
            assert row.text("gap_sbm") == "–"
        else:
            assert row.text("trend") == "not run"
    assert rows_of(table, "FracTrain cp")[TREND].text("gap_sbm_published") == "-0.12"


def test_gaps_are_paired_means_with_t_intervals(campaign):
    store = FakeStore()
    runs = scaling_fakes.fill(store, campaign)
    row = rows_of(build_scaling(campaign, store, scaling_fakes.sources()).table, "FracTrain cp")["1/32"]
    found = {}
    for run in runs:
        if run.request.profile == "1/32" and run.request.dataset == "cifar10":
            found[run.row.key, run.seed] = store.get(run.run_id).measured.values["accuracy_best_test"]
    gaps = [found["fractrain", s] - found["sbm", s] for s in range(3)]
    low, high = stats.t.interval(0.95, 2, loc=sum(gaps) / 3, scale=stats.sem(gaps))
    cell = row.cells["gap_sbm"]
    assert (cell.value, cell.low, cell.high, cell.n) == pytest.approx((sum(gaps) / 3, low, high, 3))
    assert cell.text == f"{cell.value:+.2f} ± {(high - low) / 2:.2f}"
    assert row.text("macs_end_saving") == "63.2 ± 0.0"  # 100 (1 - 2.3 / 6.25), at equal iterations
    assert rows_of(build_scaling(campaign, store, scaling_fakes.sources()).table, "SBM")["1/32"].text(
        "macs_end_saving"
    ) == "–"  # fmt: skip


def test_a_prefix_counts_the_seeds_there_are_and_says_so(campaign):
    table = built(campaign, count=22).table  # 1/64 complete; of 1/32 two seeds and half of the third
    dfq = rows_of(table, "DFQ")
    assert dfq["1/32"].text("seeds") == "2/3"
    assert dfq["1/32"].cells["gap_sbm"].n == 2
    assert dfq["1/16"].text("accuracy_best_test") == "not run"
    assert rows_of(table, "FP32")["1/32"].text("seeds") == "3/3"
    assert rows_of(table, "PFQ")["1/64"].text("seeds") == "0/3"


def test_the_trend_stands_beside_the_published_gap_and_never_reproduces(campaign):
    exact = built(campaign, sd=0.01)
    row = rows_of(exact.table, "FracTrain cp")[TREND]
    assert row.cells["gap_sbm"].value == pytest.approx(-0.1, abs=0.1)  # the truth of the made-up results
    assert row.text("gap_sbm_published") == "-0.12"
    assert row.text("trend") == "trend supports"
    noisy = rows_of(built(campaign, sd=0.8).table, "FracTrain cp")[TREND]
    assert noisy.text("trend") == "trend says nothing (interval wider than ±1)"
    assert rows_of(exact.table, "PFQ")[TREND].text("trend") == "trend says nothing (two lengths and 4 pairs needed)"
    assert rows_of(exact.table, "FP32")[TREND].text("trend") == "–"  # the paper has no FP32 row
    for row in exact.table.rows:
        assert "reproduced" not in " ".join(cell.text for cell in row.cells.values())


def test_a_trend_elsewhere_contradicts(campaign):
    store = FakeStore()
    for run in scaling_fakes.fill(store, campaign, sd=0.01):
        if run.row.key == "fractrain":
            store.add(run.run_id, **{**scaling_fakes.result(run, 0.01), "accuracy": 60.0})  # learns nothing from length
    table = build_scaling(campaign, store, scaling_fakes.sources()).table
    assert rows_of(table, "FracTrain cp")[TREND].text("trend") == "trend contradicts"


def test_every_format_has_the_warning_and_csv_the_unrounded_numbers(campaign):
    table = built(campaign, sd=0.3).table
    for fmt in ("md", "html", "tex", "json"):
        assert "NOT A REPRODUCTION" in render(table, fmt)
    lines = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    own = next(line for line in lines if line["length"] == "1/32" and line["label"].startswith("FracTrain cp"))
    assert float(own["gap_sbm"]) == rows_of(table, "FracTrain cp")["1/32"].cells["gap_sbm"].value
    rules = " ".join(table.rules)
    assert "scipy.stats.linregress" in rules
    assert "1,000 iterations" in rules


def test_files_and_figure(campaign, tmp_path):
    scaling = built(campaign, count=30)
    files = write(scaling, tmp_path / "t", tmp_path / "f")
    assert {f.name for f in files} == {f"scaling.{e}" for e in ("md", "csv", "tex", "html", "json", "svg", "png")}
    drawn = scaling_content(scaling, "svg").decode()
    assert drawn == (tmp_path / "f" / "scaling.svg").read_text()  # the same bytes every time
    assert scaling_content(build_scaling(campaign, None), "svg").startswith(b"<?xml")  # nothing run: an empty figure
