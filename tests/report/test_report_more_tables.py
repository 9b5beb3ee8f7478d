"""Tables 5 and 6, the overview, and what they brought: relative columns, claims, chosen columns, missing models."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass, field
from typing import Any

import figure_fakes
import pytest

from fractrain.cost.hardware.fitted import FittedModel
from fractrain.cost.ledger import Entry, Ledger
from fractrain.cost.published import rows as published_rows
from fractrain.report.build import build_table
from fractrain.report.columns import columns
from fractrain.report.grid import plan
from fractrain.report.output import table_content
from fractrain.report.quantities import IN_TABLES, QUANTITIES
from fractrain.report.render import FORMATS, render
from fractrain.report.rows import published_value
from fractrain.report.sources import NotInRelease, PublishedIndex, engine_config, measure_run
from fractrain.report.spec import RunRequest, TableSpec, load_spec, read_spec, table_folders, table_names
from fractrain.report.stats import paired_ratio
from fractrain.util.errors import ConfigError

NEW = ("table5", "table6", "overview")
ALL = (*NEW, "formats", "table1", "table2", "table3", "table4", "figure-pfq", "figure-dfq")


@pytest.fixture
def sources():
    return figure_fakes.sources()


def row_of(table, label, group, precision=None):
    """The method row with this label (and precision) in the group."""
    found = [r for r in table.rows if r.kind == "method" and r.group == group and r.text("method") == label
             and precision in (None, r.text("precision"))]  # fmt: skip
    assert len(found) == 1, [r.text("label") for r in found]
    return found[0]


# -- every specification -----------------------------------------------------------------------------------------------


def test_they_ship():
    assert set(ALL) <= set(table_names())
    assert [folder.name for folder in table_folders()] == ["tables", "figures"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("profile", ["smoke", "short", "paper"])
@pytest.mark.parametrize("filled", [False, True])
def test_every_table_renders_in_every_format(name, profile, filled, store, sources):
    spec = load_spec(name)
    if filled:
        figure_fakes.fill(store, spec, profile)
    table = build_table(spec, store, profile, 1, sources)
    keys = {column.key for column in table.columns}
    for row in table.rows:
        assert set(row.cells) == keys
    for fmt in FORMATS:
        assert f"profile {profile}" in render(table, fmt) or fmt == "csv"
    if filled:
        done = [r for r in table.rows if r.cells["seeds"].text == "1/1"]
        trained = [p for p in spec.pairs if p.model in figure_fakes.MODELS and not spec.left_out(p, profile)]
        assert len(done) == sum(len(spec.rows_of(p)) for p in trained)
        quality = "accuracy_best_test" if "accuracy_best_test" in keys else "accuracy_last"
        assert all(r.cells[quality].value is not None for r in done)


@pytest.mark.parametrize("name", ALL)
def test_published_keys_are_not_misspelt(name):
    """A key that matches nothing would only show as a dash."""
    spec = load_spec(name)
    index = PublishedIndex(published_rows(), spec.published_table)
    claims = [r.claim.metric for r in spec.relative if r.claim and r.claim.metric]
    metrics = [q.metric for q in QUANTITIES if q.metric]
    for row in spec.rows:
        for key in row.published_elsewhere:
            alone = row.model_copy(update={"published": key, "published_elsewhere": ()})
            assert any(published_value(pair, alone, m, index) for pair in spec.pairs for m in metrics), (row.key, key)
        if row.published is not None:
            found = {m for pair in spec.pairs for m in (*metrics, *claims) if published_value(pair, row, m, index)}
            assert set(claims) <= found or not row.against
            assert found, row.key


@pytest.mark.parametrize("name", ALL)
def test_settings_are_those_of_the_methods(name):
    """Each row's run can be made by the engine, for each profile: no misspelt or impossible setting."""
    spec = load_spec(name)
    for profile in ("smoke", "short", "paper"):
        states = {(r.row.key, r.pair.model): (r.state, r.reason) for r in plan(spec, profile, 1)}
        senseless = {("dorefa", "transformer_base")}  # clipped activations lose every negative value
        senseless |= {("cpt-8-32", "resnet18"), ("cpt-8-32", "resnet34")}  # published values alone: no 32-bit codes
        wrong = {key: why for key, why in states.items() if why[0] == "incompatible" and key not in senseless}
        assert wrong == {}


def test_every_quantity_with_a_heading_is_a_column_of_tables(tmp_path):
    """One entry of the vocabulary is all that a column needs; a misspelt one is named with the nearest."""
    spec = load_spec("table2")
    for quantity in IN_TABLES:
        for column in quantity.columns("fractrain-fitted"):
            asked = TableSpec.model_validate({**spec.model_dump(), "columns": [column.key]})
            assert column.key in [c.key for c in columns(asked) if c.short and c.head]
    with pytest.raises(ValueError, match="did you mean 'bitops_end'"):
        TableSpec.model_validate({**spec.model_dump(), "columns": ["bitop_end"]})


# -- table 5 -----------------------------------------------------------------------------------------------------------


def test_table5_sets_each_dfq_row_against_slu_at_its_cost(store, sources):
    spec = load_spec("table5")
    for seed, (dfq, slu) in enumerate([(92.0, 91.0), (92.5, 91.6), (92.2, 91.1)]):
        figure_fakes.add(store, spec, "dfq-3", "paper", seed, accuracy=dfq, macs_end=4.0e13)
        figure_fakes.add(store, spec, "slu-3", "paper", seed, accuracy=slu, macs_end=4.2e13)
    table = build_table(spec, store, "paper", 3, sources)
    row = row_of(table, "DFQ", "ResNet-38, CIFAR-10", "cp=3")
    difference = row.cells["accuracy_best_test_relative"]
    assert difference.value == pytest.approx(1.0)  # of 1.0, 0.9, 1.1
    assert difference.high - difference.value == pytest.approx(4.30265 * 0.1 / 3**0.5, rel=1e-5)
    assert difference.text == "+1.00 ± 0.25"
    assert (row.cells["macs_end_relative"].value, row.text("macs_end_relative")) == (pytest.approx(1.05), "1.05 ± 0.00")
    other = row_of(table, "DFQ", "ResNet-38, CIFAR-10", "cp=2")
    assert other.text("accuracy_best_test_relative") == "–"
    slu = row_of(table, "SLU", "ResNet-38, CIFAR-10", "8/8, cp=3")
    assert slu.text("accuracy_best_test_relative") == "–"
    assert slu.text("accuracy_published") == "–"
    assert any("not available to us" in note for note in table.notes)
    assert "Published claim: DFQ is the more accurate at equal cost" in table.caption


def test_table5_published_rows_come_from_table_and_figure(sources):
    table = build_table(load_spec("table5"), None, "paper", 1, sources)
    three = row_of(table, "DFQ", "ResNet-38, CIFAR-10", "cp=3").cells["accuracy_published"]
    two = row_of(table, "DFQ", "ResNet-38, CIFAR-10", "cp=2").cells["accuracy_published"]
    assert (three.value, two.value) == (92.49, 91.96)
    assert "transcribed" in three.source
    assert "author script" in two.source


@pytest.mark.parametrize(("blocks"), [18, 36])
def test_table5_slu_targets_are_the_costs_they_say(blocks):
    """One block always runs; the others are open for ``minimum`` percent of the samples, at 8 bits (6.25 %)."""
    spec = load_spec("table5")
    for key, target in (("slu-3", 3.0), ("slu-2", 2.0)):
        row = spec.row(key)
        cp = 6.25 * (1 + row.settings["minimum"] / 100 * (blocks - 1)) / blocks
        assert cp == pytest.approx(target, rel=0.035)
        assert f"cp={target:g}" in row.precision
        assert spec.row(key.replace("slu", "dfq")).settings["target_cp"] == target


# -- table 6 -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table6(store, sources):
    spec = load_spec("table6")
    for seed, ratio in enumerate((4.0, 5.0, 6.0)):
        costs = {"bitops_end": 9e15, "bitops_quantized_end": 6e15, "energy_end": 3.0, "latency_end": 20.0}
        figure_fakes.add(store, spec, "static8", "paper", seed, accuracy=70.0, **costs)
        costs = {"bitops_end": 3e15 + 6e15 / ratio, "bitops_quantized_end": 6e15 / ratio, "energy_end": 2.0}
        costs["latency_end"] = 16.0
        figure_fakes.add(store, spec, "dynasty", "paper", seed, accuracy=69.5, **costs)
    return build_table(spec, store, "paper", 3, sources)


def test_table6_claims_and_ours_by_hand(table6):
    row = row_of(table6, "DYNASTY (reconstruction)", "ResNet-38, CIFAR-100", "block-wise")
    expected = {
        "accuracy_best_test_claim": "accuracy drop: none",
        "accuracy_best_test_relative": "-0.50 ± 0.00",
        "bitops_quantized_end_claim": "up to 5.1x",
        "bitops_quantized_end_relative": "5.00 ± 2.48",  # t = 4.30265, sd 1, n 3
        "bitops_end_relative": "2.13 ± 0.31",  # both ends in floating point: 9/(3 + 6/ratio)
        "latency_end_relative": "1.25 ± 0.00",
        "energy_end_claim": "up to 4.7x",
        "energy_end_relative": "1.50 ± 0.00",
    }
    assert {key: row.text(key) for key in expected} == expected
    for key in expected:
        assert row.cells[key].origin == ("published" if key.endswith("claim") else "derived")
        assert row.cells[key].source
    assert "DYNASTY (ASP-DAC 2023" in row.cells["bitops_quantized_end_claim"].source
    assert "modelled: fractrain-fitted" in row.cells["latency_end_relative"].source
    assert "modelled" not in row.cells["bitops_quantized_end_relative"].source
    base = row_of(table6, "static8", "ResNet-38, CIFAR-100")
    assert {base.text(key) for key in expected} == {"–"}


def test_table6_claims_stand_without_any_run(sources):
    row = row_of(
        build_table(load_spec("table6"), None, "short", 1, sources), "DYNASTY (reconstruction)",
        "ResNet-38, CIFAR-100", "block-wise",
    )  # fmt: skip
    assert row.text("bitops_quantized_end_claim") == "up to 5.1x"
    ratio = row.cells["bitops_quantized_end_relative"]
    assert (ratio.text, ratio.origin) == ("–", "not run")


@pytest.mark.parametrize("fmt", list(FORMATS))
def test_table6_says_reconstruction_in_every_row_of_every_format(table6, fmt):
    made = render(table6, fmt)
    assert made.count("DYNASTY (reconstruction)") >= len(table6.groups())
    assert "up to 5.1x" in made


def test_table6_ratio_columns_say_what_they_are_ratios_of(table6):
    heads = {column.key: column.head for column in table6.columns}
    told = "Speed-up by operations [x] ↑, derived: ratio of BitOPs of quantized products@end"
    assert heads["bitops_quantized_end_relative"] == told
    assert "modelled by fractrain-fitted" in heads["latency_end_relative"]
    assert heads["bitops_quantized_end_claim"] == "Speed-up over 8-bit [x] ↑, claimed by the source"
    assert any("No step was timed" in rule for rule in table6.rules)


def test_table6_hardware_bounds_are_those_of_the_model():
    """The note's bounds: an 8-bit cost over the part that does not depend on precision."""
    model = FittedModel()
    note = " ".join(load_spec("table6").notes)
    stated = re.search(r"below ([\d.]+) \(latency\) and ([\d.]+) \(energy\)", note)
    for forward in (83_286_272, 168_220_928):
        for function, bound in ((model.latency_s, stated[1]), (model.energy_j, stated[2])):
            ratio = function(1, 6.25, forward) / function(1, 0, forward)
            assert float(bound) - 0.03 < ratio < float(bound)


def test_table6_imagenet_says_why_it_was_not_run(table6):
    for row in table6.groups()["ResNet-18, ImageNet"]:
        assert row.text("verdict") == "not run (no model)"
    why = [note for note in table6.notes if "ResNet-18, ImageNet was not run" in note]
    assert why == [
        "ResNet-18, ImageNet was not run: the model resnet18 is not in this release, which has resnet38, resnet74."
    ]


def test_table6_quantizes_the_same_layers_in_both_rows():
    """static8 leaves the first and the last layer in floating point; the other row must, or BitOPs flatter it."""
    for row in load_spec("table6").rows:
        if row.method == "dynasty":
            assert (row.settings["keep_first"], row.settings["keep_last"]) == (True, True)


def test_table6_bound_on_the_whole_model_is_that_of_resnet18_at_224():
    """Both ends in floating point over everything, the rest free: the note's figure, from the model's shapes."""
    from fractrain.models.layer_shapes import layer_shapes
    from fractrain.models.registry import build

    shapes = layer_shapes(lambda: build("resnet18", 1000, (3, 224, 224)), (3, 224, 224))
    macs = {name: shape.macs for name, shape in shapes.items()}
    stem, *_, head = macs
    ends = (2 * macs[stem] + 3 * macs[head]) * 32 * 32  # no error goes to the data
    body = 3 * (sum(macs.values()) - macs[stem] - macs[head]) * 8 * 8
    note = " ".join(load_spec("table6").notes)
    assert f"ResNet-18: {(ends + body) / ends:.2f} whatever the widths" in note


def test_an_incomplete_row_has_no_ratio(store, sources):
    spec = load_spec("table6")
    figure_fakes.fill(store, spec, "paper", seeds=3)
    for run_id in [key for key in store.records if key.startswith("static8") and key.endswith("s1")]:
        del store.records[run_id]
    table = build_table(spec, store, "paper", 3, sources)
    row = row_of(table, "DYNASTY (reconstruction)", "ResNet-38, CIFAR-100", "block-wise")
    assert row.cells["bitops_end"].value is not None
    assert row.text("bitops_end_relative") == "–"


# -- overview ----------------------------------------------------------------------------------------------------------


# Methods that differ from each other in number formats alone, of operands or of the optimizer: on two models.
NUMBER_FORMATS = {"fp8", "mx", "nvfp4", "quartet2", "luq", "jetfire", "switchback", "int8_rowwise"}
NUMBER_FORMATS |= {"adam8bit", "bf16_sr"}


def test_overview_has_every_method_and_every_model():
    from fractrain.methods.registry import MethodRegistry
    from fractrain.models import registry

    spec = load_spec("overview")
    shipped = {n for n in MethodRegistry.discover().names() if n in {r.method for r in spec.rows} or _ours(n)}
    assert {row.method for row in spec.rows} == shipped, "add the method to benchmarks/tables/overview.toml"
    others = {"resnet20", "resnet56", "resnet110"}  # sizes of the CIFAR family that no paper here reports
    assert {pair.model for pair in spec.pairs} == set(registry.names()) - others, "add the model to the overview"


def _ours(name: str) -> bool:
    """Whether the method is part of this project, and not of another package that is installed too."""
    from fractrain.methods.registry import MethodRegistry

    return MethodRegistry.discover().get(name).__module__.split(".")[0] in ("fractrain", "baselines")


def test_overview_is_one_table_with_one_row_per_method(store, sources):
    spec = load_spec("overview")
    figure_fakes.fill(store, spec, "short")
    table = build_table(spec, store, "short", 1, sources)
    everywhere = {row.method for row in spec.rows} - NUMBER_FORMATS
    for pair in spec.pairs:
        methods = everywhere | (NUMBER_FORMATS if pair.model in ("resnet38", "transformer_base") else set())
        assert sorted(row.method for row in spec.rows_of(pair)) == sorted(methods), pair.key
    assert len(table.rows) == len(spec.pairs) * len(everywhere) + 3 * len(NUMBER_FORMATS)
    md = render(table, "md")
    assert [line for line in md.splitlines() if line.startswith("## ")] == [
        "## Accuracy and cost of training; cost is up to the epoch of best test accuracy unless marked @end",
        "## Where the savings come from",
        "## Notes",
        "## Runs",
    ]
    head = next(line for line in md.splitlines() if line.startswith("|"))
    for short in ("Acc pub.", "best*", "cp %", "MACs↓@end", "BitOPs↓@end", "kJ↓@end", "Verdict"):
        assert short in head
    assert render(table, "html").count("<table>") == 1 + len(table.sections) == 2


def test_overview_quotes_what_was_published_for_the_pair_by_hand(sources):
    """From the papers' tables and figures; every other row of these pairs has no published value."""
    table = build_table(load_spec("overview"), None, "paper", 1, sources)
    expected = {
        "MobileNetV2, CIFAR-10": {},
        "MobileNetV2, CIFAR-100": {"SBM": "75.27", "CPT": "75.65"},
        "ResNet-18, ImageNet": {"FP32": "69.76", "SBM": "69.60", "static": "69.51", "FracTrain": "69.44"},
        "ResNet-34, ImageNet": {"FP32": "73.30", "SBM": "73.32", "static": "73.34", "FracTrain": "73.03"},
        "Transformer, WikiText-103": {"SBM": "31.77"},
    }
    for group, values in expected.items():
        column = "perplexity_published" if group.startswith("Transformer") else "accuracy_published"
        rows = [row for row in table.rows if row.group == group]
        assert {r.text("method"): r.text(column) for r in rows if r.text(column) != "–"} == values
    sbm = row_of(table, "SBM", "ResNet-38, CIFAR-100").cells["accuracy_published"]
    assert (sbm.value, "FracTrain" in sbm.source) == (69.78, True)  # not CPT's 69.8


def test_overview_rows_are_labelled_with_the_precision_they_run_at():
    """The settings of the ImageNet papers change the widths: rows of a label of their own."""
    spec = load_spec("overview")
    for pair in spec.pairs:
        rows = {row.method: row for row in spec.rows_of(pair)}
        wide = spec.request(pair, rows["pfq"], "paper").settings.get("grad_bits") == [6, 8, 12, 16]
        assert (rows["pfq"].precision == "FW-3/4/6/8 BW-6/8/12/16") == wide == (pair.dataset == "imagenet")
        target = spec.request(pair, rows["fractrain"], "paper").settings.get("target_cp", 1.5)
        assert rows["fractrain"].precision == ("cp=3/3.5/4/4.5" if target == 3.0 else "cp-1.5/2/2.5/3")


def test_overview_slu_settings_of_ours_are_for_smoke_alone():
    spec = load_spec("overview")
    ours = {"threshold": "skipnet", "minimum": 75.0}
    wanted = {"resnet18": ours, "transformer_base": {**ours, "beta": 0.02}}
    for pair in spec.pairs:
        row = next(r for r in spec.rows_of(pair) if r.method == "slu")
        assert spec.request(pair, row, "smoke").settings == wanted.get(pair.model, {})
        assert spec.request(pair, row, "paper").settings == {}


# -- chosen columns ----------------------------------------------------------------------------------------------------


def test_table2_has_the_columns_of_the_paper_and_the_differences_to_sbm():
    keys = [c.key for c in columns(load_spec("table2"))]
    assert not {"bitops_published", "energy_end", "latency_end"} & set(keys)
    assert {"effective_best", "bitops_best", "cost_end"} <= set(keys)
    assert [k for k in keys if k.endswith("_relative")] == [
        f"{k}_relative" for k in ("accuracy_best_test", "macs_best", "energy", "latency")
    ]
    assert len([k for k in keys if "_relative" not in k and "_claim" not in k]) == 28


def test_numbers_that_are_not_shown_are_nowhere(store, sources):
    spec = load_spec("overview")
    figure_fakes.fill(store, spec, "paper")
    table = build_table(spec, store, "paper", 1, sources)
    document = json.loads(render(table, "json"))
    assert "latency_end" not in document["rows"][0]["cells"]
    line = next(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert "bitops_end" in line
    assert "latency_end" not in line


MINIMAL = """
name = "mine"
version = 1
title = "t"
caption = "c"
source = "s"
published_table = "p"
[[pairs]]
model = "m"
dataset = "d"
model_label = "M"
dataset_label = "D"
[[rows]]
key = "base"
label = "A"
method = "ma"
precision = "8/8"
"""


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ('[[relative]]\nquantity = "bitops"\nlabel = "x"', r"relative\.0\.quantity: .*did you mean .bitops_end."),
        ('[[relative]]\nquantity = "cp"\nlable = "x"', r"relative\.0\.lable .did you mean 'label'"),
        ('[[relative]]\nquantity = "cp"\nlabel = "x"\nclaim = {metrc = "a", label = "b"}',
         r"metrc .did you mean 'metric'"),
        ('[[rows]]\nkey = "b"\nlabel = "B"\nmethod = "m"\nprecision = "p"\nagainst = "bass"',
         r"rows: b: against: no row has the key 'bass' .did you mean 'base'"),
        ('[figure]\ntables = ["t"]\nserie = []', r"unknown key figure\.serie .did you mean 'series'"),
        ('[figure]\ntables = ["t"]\n[[figure.series]]\nkey = "a"\nlabel = "A"\ncolor = 1', r"figure\.series\.0\.color"),
        ('[figure]\ntables = ["t"]\n[[figure.series]]\nkey = "aa"\nlabel = "A"\n[[rows]]\nkey = "b"\nlabel = "B"\n'
         'method = "m"\nprecision = "p"\nseries = "ab"', r"rows: b: no series 'ab' .did you mean 'aa'"),
    ],
)  # fmt: skip
def test_mistakes_in_the_new_keys_name_file_and_key(tmp_path, added, message):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL + added, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_spec(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_column_is_an_error(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL.replace("[[pairs]]", 'columns = ["bitops_ned"]\n[[pairs]]'), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"columns\.0"):
        read_spec(path)


# -- what rows are made of ---------------------------------------------------------------------------------------------


def test_paired_ratio():
    found = paired_ratio({0: 8.0, 1: 12.0, 2: 9.0}, {0: 2.0, 1: 2.0, 3: 5.0})
    assert (found.mean, found.n) == (5.0, 2)  # of 4 and 6; seeds 2 and 3 have no partner
    assert found.half_width == pytest.approx(12.7062047 * 2**0.5 / 2**0.5)
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None
    assert paired_ratio({0: 1.0}, {0: 0.0}) is None


@dataclass
class Record:
    """A finished run of two epochs at 8/4 bits, best after the first."""

    run_id: str = "r"
    status: str = "done"
    summary: dict[str, Any] = field(
        default_factory=lambda: {"test_accuracy_last": 90.0, "test_accuracy_best": 92.5, "best_test_epoch": 0}
    )

    def ledger(self) -> Ledger:
        ledger = Ledger({"forward_macs": 1000, "blocks": ["block"]})
        work = [Entry("block.conv", product, 8, 4, 1000) for product in ("FW", "EB", "GC")]
        for epoch, images in enumerate((10, 5)):
            ledger.begin("train", epoch)
            ledger.samples(images)
            ledger.count("block", images, lambda: work)
        return ledger


def test_costs_of_the_whole_run_by_hand():
    m = measure_run(Record(), "fractrain-fitted")
    assert m.values["bitops_end"] == 3 * 1000 * 8 * 4 * 15
    assert m.values["energy_end"] == pytest.approx(1.5 * m.values["energy"])
    assert m.values["latency_end"] == pytest.approx(1.5 * m.values["latency"])


def test_a_model_or_data_set_that_is_not_there_is_named():
    request = RunRequest(method="fp32", model="resnet9000", dataset="digits", profile="smoke", settings={}, recipe={})
    with pytest.raises(NotInRelease, match="the model resnet9000 is not in this release, which has resnet38") as caught:
        engine_config(request, 0)
    assert caught.value.state == "no model"
    request = request.model_copy(update={"model": "resnet38", "dataset": "mnist9000"})
    with pytest.raises(NotInRelease, match="the data set mnist9000 is not in this release") as caught:
        engine_config(request, 0)
    assert caught.value.state == "no data"


def test_text_of_a_table_is_what_render_gives(store, sources):
    spec = load_spec("overview")
    for fmt in FORMATS:
        assert table_content(spec, store, "smoke", 1, fmt, sources).decode() == render(
            build_table(spec, store, "smoke", 1, sources), fmt
        )
