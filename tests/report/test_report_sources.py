"""The real suppliers of a table: a real ledger, the engine's configuration and store; and what is not imported."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from fractrain.cost import published
from fractrain.cost.hardware.fitted import FittedModel
from fractrain.cost.ledger import Entry, Ledger
from fractrain.report.sources import PublishedIndex, engine_config, measure_run
from fractrain.report.spec import RunRequest
from fractrain.util.errors import PluginError, StoreError

FORWARD = 83_280_512


@dataclass
class Record:
    """A finished run of two epochs at 8/8 bits, best after the first."""

    run_id: str = "r"
    status: str = "done"
    summary: dict[str, Any] | None = field(
        default_factory=lambda: {
            "test_accuracy_last": 90.0,
            "test_accuracy_best": 92.5,
            "test_accuracy_at_best_val": None,
            "best_test_epoch": 0,
        }
    )

    def ledger(self) -> Ledger:
        ledger = Ledger({"forward_macs": FORWARD, "blocks": ["block"]})
        work = [Entry("block.conv", product, 8, 8, FORWARD) for product in ("FW", "EB", "GC")]
        for epoch, images in enumerate((1000, 500)):
            ledger.begin("train", epoch)
            ledger.samples(images)
            ledger.count("block", images, lambda: work)
        return ledger


@pytest.mark.parametrize(("model", "data", "macs"), [("resnet38", "cifar10", 84.9e6), ("resnet74", "cifar100", 170e6)])
def test_macs_in_the_unit_of_the_published_rows(model, data, macs):
    record = Record()
    record.summary |= {"model": model, "dataset": data}
    assert measure_run(record, "").values["macs_authors"] == pytest.approx(0.0625 * 1000 * 3 * macs)


@pytest.mark.parametrize(("model", "data"), [("resnet38", "digits"), ("resnet18", "imagenet")])
def test_no_macs_in_that_unit_where_the_authors_constant_is_not_known(model, data):
    record = Record()
    record.summary |= {"model": model, "dataset": data}
    assert "macs_authors" not in measure_run(record, "").values


def test_measure_by_hand():
    m = measure_run(Record(), "fractrain-fitted")
    assert {k: v for k, v in m.values.items() if k.startswith("accuracy")} == {
        "accuracy_last": 90.0, "accuracy_best_test": 92.5,
    }  # fmt: skip
    assert m.values["cp"] == pytest.approx(6.25)
    assert m.values["macs_best"] == pytest.approx(0.0625 * 1000 * 3 * FORWARD)
    assert m.values["macs_end"] == pytest.approx(0.0625 * 1500 * 3 * FORWARD)
    model = FittedModel()
    assert m.values["energy"] == pytest.approx(model.energy_j(1000, 6.25, FORWARD) / 1000)
    assert m.values["latency"] == pytest.approx(model.latency_s(1000, 6.25, FORWARD) / 60)
    assert m.values["energy"] == pytest.approx(
        1000 * (2.922 + 0.2570 * 6.25) * 1e-6
    )  # the line of ResNet-38, mJ per image
    assert m.caveat == ""


def test_without_hardware_model_there_is_no_energy():
    m = measure_run(Record(), "")
    assert not {"energy", "latency"} & m.values.keys()
    assert "macs_best" in m.values


def test_a_run_without_summary_cannot_be_measured():
    with pytest.raises(StoreError, match="run r has status 'failed'"):
        measure_run(Record(status="failed", summary=None), "")


def test_published_index(spec):
    index = PublishedIndex(published.rows(), spec.published_table)
    row = index.get("ResNet-74", "CIFAR-10", "SBM", "FW-8 / BW-8", "acc_top1_%")
    assert row.value == 93.04
    assert index.get("ResNet-74", "CIFAR-10", "SBM", "FW-4 / BW-8", "acc_top1_%") is None


def request(method: str) -> RunRequest:
    return RunRequest(method=method, model="resnet38", dataset="digits", profile="smoke", settings={}, recipe={})


def test_a_method_that_is_not_installed_is_a_missing_plugin():
    with pytest.raises(PluginError, match="no_such_method"):
        engine_config(request("no_such_method"), 0)


def test_engine_config():
    pytest.importorskip("fractrain.methods.dfq")
    config = engine_config(request("dfq"), 4)
    assert (config.method, config.model, config.dataset, config.profile, config.seed) == (
        "dfq",
        "resnet38",
        "digits",
        "smoke",
        4,
    )
    assert config.run_id.startswith("dfq-resnet38-digits-s4-")
    assert config.run_id != engine_config(request("dfq"), 5).run_id


def test_the_public_side_imports_neither_torch_nor_wandb():
    code = (
        "import sys, fractrain.report.output; from fractrain.report.spec import load_spec; load_spec('table2'); "
        "heavy = {'torch', 'wandb', 'datasets', 'scipy'} & set(sys.modules); sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
