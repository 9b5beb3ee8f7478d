"""What a table says of pairs that a profile leaves out, of rows for some models only, and of settings from a paper."""

from __future__ import annotations

import re

import figure_fakes
import pytest

from fractrain.cost.published import rows as published_rows
from fractrain.methods.presets import paper_settings
from fractrain.report.build import build_table
from fractrain.report.grid import plan
from fractrain.report.rows import published_value
from fractrain.report.sources import PublishedIndex, default_sources
from fractrain.report.spec import PublishedKey, load_spec, read_spec
from fractrain.util.errors import ConfigError

SPEC = """
name = "pairs"
version = 1
title = "Pairs"
caption = "c"
source = "s"
published_table = "ImageNet"
columns = ["bitops_published", "bitops_end"]
parts = 1

[profiles.smoke]
leave_out = [{left_out}]

[[pairs]]
model = "resnet38"
dataset = "cifar10"
model_label = "ResNet-38"
dataset_label = "CIFAR-10"

[[pairs]]
model = "resnet18"
dataset = "imagenet"
model_label = "ResNet-18"
dataset_label = "ImageNet"

[[rows]]
key = "sbm"
label = "SBM"
method = "sbm"
precision = "8/8"
preset = "paper"
settings = {{ bits = 5 }}

[[rows]]
key = "cpt"
label = "CPT"
method = "cpt"
precision = "4-8/8"
models = [{models}]
published = {{ method = "CPT", precision = "FW/BW 4-8/8" }}
"""


@pytest.fixture
def spec_at(tmp_path):
    def make(left_out="", models='"resnet18"'):
        path = tmp_path / "pairs.toml"
        path.write_text(SPEC.format(left_out=left_out, models=models), encoding="utf-8")
        return read_spec(path)

    return make


def test_a_pair_that_is_left_out_is_not_run(spec_at, store):
    spec = spec_at('"resnet18/imagenet"')
    states = {(r.pair.model, r.row.key): r.state for r in plan(spec, "smoke", 1, store, figure_fakes.sources())}
    assert states[("resnet18", "sbm")] == states[("resnet18", "cpt")] == "left out"
    assert states[("resnet38", "sbm")] == "to run"
    table = build_table(spec, store, "smoke", 1, figure_fakes.sources())
    row = next(r for r in table.rows if r.text("method") == "CPT")
    assert row.text("verdict") == "not run (left out)"
    assert any("leaves this pair out" in note for note in table.notes)
    paper = plan(spec, "paper", 1, store, figure_fakes.sources())
    assert "left out" not in {r.state for r in paper}


def test_a_row_for_some_models_is_planned_for_these_alone(spec_at, store):
    runs = plan(spec_at(), "paper", 1, store, figure_fakes.sources())
    assert [(r.pair.model, r.row.key) for r in runs] == [("resnet38", "sbm"), ("resnet18", "sbm"), ("resnet18", "cpt")]


def test_another_source_counts_only_where_the_first_has_nothing(spec_at, store):
    spec = spec_at()
    cpt = spec.row("cpt")
    full = PublishedKey(method="Full precision", precision="32", table="ImageNet full precision")
    index = PublishedIndex(published_rows(), spec.published_table)
    pair = spec.pairs[1]

    def found(row, metric):
        value = published_value(pair, row, metric, index)
        return value and value.value

    assert found(cpt.model_copy(update={"published_elsewhere": (full,)}), "acc_top1_%") == 69.64
    swapped = cpt.model_copy(update={"published": full, "published_elsewhere": (cpt.published,)})
    assert found(swapped, "acc_top1_%") == 69.76
    assert found(swapped, "GBitOPs") is None  # one source for the whole row
    missing = full.model_copy(update={"precision": "33"})
    for first in (None, missing):
        row = cpt.model_copy(update={"published": first, "published_elsewhere": (missing, full)})
        assert found(row, "acc_top1_%") == 69.76
    assert found(cpt.model_copy(update={"published": None}), "acc_top1_%") is None


def test_settings_of_the_paper_come_first_and_those_of_the_row_on_top(spec_at):
    spec = spec_at()
    imagenet = spec.request(spec.pairs[1], spec.row("sbm"), "paper").settings
    assert imagenet == {**paper_settings("sbm", "resnet18", "imagenet"), "bits": 5}
    assert imagenet["grad_bits"] == 16
    assert spec.request(spec.pairs[0], spec.row("sbm"), "paper").settings == {"bits": 5}


@pytest.mark.parametrize("arguments", [{"left_out": '"resnet74/cifar10"'}, {"models": '"resnet74"'}])
def test_a_pair_or_model_that_the_table_does_not_have_is_refused(spec_at, arguments):
    with pytest.raises(ConfigError, match="no pair"):
        spec_at(**arguments)


def test_a_published_row_of_two_numbers_is_found_by_either():
    spec = load_spec("table3")
    index = PublishedIndex(published_rows(), spec.published_table)
    method = 'Improv. (row is labelled "PFQ Improv." in the image)'
    assert index.get("ResNet-18", "ImageNet", method, "", "acc_diff").value == "-0.07"
    assert index.get("ResNet-34", "ImageNet", method, "", "MACs_saving").value == "51.90%"


@pytest.mark.parametrize(("name", "count"), [("table1", 38), ("table3", 10)])
def test_tables_1_and_3_show_every_published_number_of_their_sources(name, count):
    """By hand. Table 3: accuracy and MACs of two methods and CPT's FP32 accuracy, for two models. Table 1: for two

    ResNets the FP32, FW-8/BW-16 and CPT 8-32 accuracies; for these and ResNet-50 CPT's four rows of accuracy and
    operations; CPT's four Transformer rows of perplexity and operations. FracTrain's claims are no rows.
    """
    table = build_table(load_spec(name), None, "paper", 1, default_sources())
    shown = [c for r in table.rows if r.kind == "method" for k, c in r.cells.items()
             if c.origin == "published" and not k.endswith("_claim")]  # fmt: skip
    assert len(shown) == count


def test_a_method_that_makes_no_sense_on_a_model_is_skipped_with_its_reason():
    spec = load_spec("overview")
    runs = {(r.row.key, r.pair.model): r for r in plan(spec, "smoke", 1)}
    run = runs[("dorefa", "transformer_base")]
    assert run.state == "incompatible"
    assert "dorefa does not fit transformer_base: " in run.reason
    assert runs[("sbm", "transformer_base")].state == "to run"
    table = build_table(spec, None, "smoke", 1, default_sources())
    assert any(re.search("DoReFa .* was not run: dorefa does not fit transformer_base", note) for note in table.notes)
