"""Savings split into iterations and cost per image: the twelve published cells, measured runs by hand, every format."""

from __future__ import annotations

import csv
import io
import json
import math

import figure_fakes
import pytest

from fractrain.report.build import build_table
from fractrain.report.render import FORMATS, render, write_all
from fractrain.report.savings import MEANING, SavingFactors, comparisons, known_cp, measured_split, published_iterations
from fractrain.report.spec import load_spec
from fractrain.report.values import RunValues

# Latency of FracTrain against three static 8/8 rows: saving in percent, ratio of iterations, ratio of time per image.
PUBLISHED = {
    ("ResNet-38, CIFAR-10", "WAGEUBN"): (24.5, 0.922, 0.820),
    ("ResNet-38, CIFAR-10", "DoReFa"): (30.4, 0.849, 0.820),
    ("ResNet-38, CIFAR-10", "SBM"): (28.8, 0.869, 0.820),
    ("ResNet-38, CIFAR-100", "WAGEUBN"): (49.9, 0.614, 0.816),
    ("ResNet-38, CIFAR-100", "DoReFa"): (35.2, 0.795, 0.816),
    ("ResNet-38, CIFAR-100", "SBM"): (16.1, 1.028, 0.816),
    ("ResNet-74, CIFAR-10", "WAGEUBN"): (48.9, 0.618, 0.827),
    ("ResNet-74, CIFAR-10", "DoReFa"): (47.8, 0.631, 0.827),
    ("ResNet-74, CIFAR-10", "SBM"): (53.5, 0.562, 0.827),
    ("ResNet-74, CIFAR-100", "WAGEUBN"): (12.5, 1.064, 0.823),
    ("ResNet-74, CIFAR-100", "DoReFa"): (34.4, 0.798, 0.823),
    ("ResNet-74, CIFAR-100", "SBM"): (16.0, 1.021, 0.823),
}


@pytest.fixture
def published(spec, sources):
    """Splits of table 2 without any run, by pair and (row, other row)."""
    (section,) = build_table(spec, None, "paper", sources=sources).sections
    found = {}
    for row in section.rows:
        found[row.group, row.text("saving_of"), row.text("cost")] = row
    return found


@pytest.mark.parametrize("key", list(PUBLISHED), ids=" ".join)
def test_all_twelve_published_latency_savings(published, key):
    group, baseline = key
    saving, iterations, per_image = PUBLISHED[key]
    row = published[group, f"FracTrain / {baseline}", "Latency"]
    cell = row.cells["published"]
    assert cell.value == pytest.approx(saving, abs=0.05)
    shown = [float(text) for text in cell.text.split("– ")[1].split(" × ")]
    assert shown == pytest.approx([iterations, per_image], abs=1.01e-3)
    assert 17 <= row.cells["equal_published"].value <= 19  # precision alone, in every cell


def test_three_quarters_of_the_headline_are_stopping_earlier():
    headline = SavingFactors(0.562, 0.827)
    assert headline.text() == "53.5 % = 1 – .562 × .827"
    assert math.log(0.562) / math.log(0.562 * 0.827) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("model", "precision", "values", "known", "iterations"),
    [
        ("resnet38", "cp=3", {"latency_published": 230.32}, None, 50_700),  # authors' script
        ("resnet74", "cp=3", {"latency_published": 343.76}, None, 37_440),
        ("resnet38", "FW-8 / BW-8", {"macs_published": 1.18e14}, None, 57_900),
        ("resnet38", "cp=3", {"latency_published": 230.32}, 1234.0, 1234),
        ("resnet74", "cp-1.5/2/2.5/3", {"latency_published": 321.98, "macs_published": 5.85e13}, None, 36_070),
    ],
)
def test_iterations_of_published_rows(model, precision, values, known, iterations):
    assert published_iterations(model, precision, values, known) == pytest.approx(iterations, rel=2e-3)


@pytest.mark.parametrize(
    ("model", "precision", "values"),
    [
        ("resnet38", "cp-1.5/2/2.5/3", {"macs_published": 1e14}), ("resnet38", "cp=3", {}),
        ("mobilenet_v2", "FW-8 / BW-8", {"latency_published": 1.0, "macs_published": 1e14}),
    ],
)  # fmt: skip
def test_where_iterations_cannot_be_known_there_is_no_split(model, precision, values):
    assert published_iterations(model, precision, values) is None


def test_known_cp():
    precisions = ["FW-8 / BW-8", "FW-6/BW-12", "cp=3.5", "cp-1.5/2", "FP32"]
    assert [known_cp(p) for p in precisions] == [6.25, pytest.approx(5.859, abs=1e-3), 3.5, None, None]


def run(samples, minutes, end=10.0):
    return RunValues({"samples_best": samples, "latency": minutes, "samples_end": 1000, "latency_end": end})


def test_measured_splits_by_hand_over_common_seeds():
    own = {0: run(400, 2.0, end=5.0), 1: run(600, 3.0, end=5.0), 7: run(1, 100.0)}
    other = {0: run(1000, 10.0), 1: run(1000, 10.0)}
    best, end = measured_split(own, other, "latency", "best"), measured_split(own, other, "latency", "end")
    assert (best.iterations, best.per_image) == pytest.approx((0.5, 0.5))
    assert (best.saving, best.at_equal_iterations) == pytest.approx((75.0, 50.0))
    assert (end.iterations, end.per_image) == pytest.approx((1.0, 0.5))
    assert measured_split(own, {3: run(1, 1.0)}, "latency", "best") is None
    assert measured_split(own, {0: RunValues({"samples_best": 5}), 1: run(1, 1.0)}, "latency", "best") is None
    assert measured_split(own, other, "energy", "best") is None


def test_measured_columns_of_a_table(spec, mixed_store, sources):
    (section,) = build_table(spec, mixed_store, "short", 3, sources).sections
    row = next(r for r in section.rows if r.text("saving_of") == "FracTrain / SBM" and r.text("cost") == "Latency")
    best, end, equal = (row.cells[name].value for name in ("best", "end", "equal"))
    cost = {"fractrain": 0.2 + 0.024, "sbm": 0.2 + 0.0625}
    assert best == pytest.approx(100 * (1 - cost["fractrain"] / cost["sbm"]))
    assert end == pytest.approx(best)
    assert equal == pytest.approx(100 * (1 - cost["fractrain"] / 600 / (cost["sbm"] / 900)))
    assert row.text("best").endswith("1 – .667 × 1.280")
    assert "modelled by fractrain-fitted, which is not measured" in section.caption


def test_what_is_compared_in_each_table():
    def labels(name, number=0):
        spec = load_spec(name)
        return [(own.key, other.key) for own, other in comparisons(spec, spec.pairs[number])]

    assert labels("table2")[-3:] == [("fractrain", "sbm"), ("fractrain", "wageubn"), ("fractrain", "dorefa")]
    assert labels("table5") == [("dfq-3", "slu-3"), ("dfq-2", "slu-2")]
    assert ("dynasty", "static8") in labels("table6")
    assert ("pfq", "sbm") in labels("overview")
    assert ("pfq-8-8", "sbm-8-8") in labels("figure-pfq")
    assert ("dfq-3", "sbm-6-8") in labels("figure-dfq")


def test_figures_split_savings_of_macs(sources):
    (section,) = build_table(load_spec("figure-dfq"), None, "paper", sources=sources).sections
    row = next(r for r in section.rows if r.text("saving_of") == "DFQ cp=4 / SBM (static) FW-6/BW-8")
    assert row.text("published") == "42.3 % = 1 – .620 × .930"  # 36,270 and 58,500 iterations
    assert row.text("equal_published") == "7.0 %"


def test_every_format_has_the_section(spec, mixed_store, sources, tmp_path):
    table = build_table(spec, mixed_store, "short", 3, sources)
    (section,) = table.sections
    text = "53.5 % = 1 – .562 × .827"
    assert MEANING.split(".")[0] in section.caption
    assert json.loads(render(table, "json"))["sections"][0]["rows"][0]["cells"]["saving_of"]["text"]
    assert text in render(table, "md")
    assert text in render(table, "html")
    assert text.replace("%", r"\%").replace("–", "--").replace("×", r"$\times$") in render(table, "tex")
    files = write_all(table, tmp_path)
    assert [file.name for file in files[len(FORMATS) :]] == ["table2-short-savings.csv"]
    lines = list(csv.DictReader(io.StringIO(files[-1].read_text(encoding="utf-8"))))
    assert len(lines) == len(section.rows)
    assert any(line["published"] == text for line in lines)
    values = [float(v) for line in lines if line["cost"] == "Latency" and (v := line["published_value"])]
    assert max(values) == pytest.approx(53.5, abs=0.05)


@pytest.mark.parametrize("name", ["table2", "table5", "table6", "overview", "figure-pfq", "figure-dfq"])
def test_every_table_with_savings_shows_them_split_at_best_at_end_and_at_equal_iterations(name, store):
    """Runs that differ in length and cost: each comparison has all three splits, and published ones stand."""
    spec = load_spec(name)
    for number, row in enumerate(spec.rows):
        spent = {"samples_best": 100 + number, "samples_end": 200.0, "macs_best": 5e9, "macs_end": 9e9 - number}
        cost = {"energy": 2.0, "energy_end": 4.0, "latency": 3.0, "latency_end": 6.0 - 0.01 * number}
        figure_fakes.add(store, spec, row.key, "short", 0, **spent, **cost)
    table = build_table(spec, store, "short", 1, figure_fakes.sources())
    section = next(s for s in table.sections if s.key == "savings")
    heads = {column.key for column in section.columns}
    assert {"best", "end", "equal"} <= heads
    own = [row for row in section.rows if row.cells["best"].value is not None]
    wanted = comparisons(spec, spec.pairs[0])
    costs = ("Latency", "Energy") if spec.hardware else ("MACs",)
    assert len({(row.text("saving_of"), row.text("cost")) for row in own}) == len(wanted) * len(costs)
    for row in own:
        for key in ("best", "end"):
            assert " × " in row.text(key)
        assert row.cells["equal"].value == pytest.approx(
            100 - (100 - row.cells["best"].value) / float(row.text("best").split("– ")[1].split(" × ")[0]), abs=0.2
        )
    if name in ("table2", "overview", "figure-pfq", "figure-dfq"):
        assert {"published", "equal_published"} <= heads
