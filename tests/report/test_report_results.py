"""All results as one DataFrame, and the index that it is read from."""

from __future__ import annotations

import json
import logging
import math
import statistics
from pathlib import Path

import pytest
from scipy import stats as scipy_stats
from synthetic_runs import METHODS, config_of, ledger_of, small_store, summary_of, write_run

import fractrain
from fractrain.cost.hardware import create
from fractrain.cost.metrics import summarize
from fractrain.cost.price import Counts, price
from fractrain.engine.config import group_id
from fractrain.engine.index import INDEX_NAME, read_index
from fractrain.engine.record_files import write_manifest
from fractrain.engine.store import RunStore
from fractrain.report.quantities import BY_KEY, QUANTITIES
from fractrain.report.results import COLUMNS
from fractrain.util.errors import ConfigError


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return small_store(tmp_path / "runs")


def test_every_number_of_a_run_is_that_of_its_summary_and_its_ledger(store: RunStore) -> None:
    frame = fractrain.results(store)
    assert tuple(frame.columns) == COLUMNS
    for method in METHODS:
        config = config_of(method, 1)
        own = frame[frame["run"] == config.run_id].set_index("quantity")
        assert set(own["seed"]) == {"1"}
        summary = summary_of(config, ledger_of(method, 1))
        costs = summarize(store.get(config.run_id).ledger(), summary["best_test_epoch"])  # type: ignore[union-attr]
        expected = {
            "accuracy_last": summary["test_accuracy_last"], "accuracy_best_test": summary["test_accuracy_best"],
            "cost_end": costs.end.cost_percent, "cost_best": costs.best.cost_percent, "cp": costs.best.cp_percent,
            "cp_end": costs.end.cp_percent, "macs_best": costs.best.macs_paper, "macs_end": costs.end.macs_paper,
            "effective_end": costs.end.effective_macs, "bitops_end": costs.end.bitops, "seconds": 12.5,
        }  # fmt: skip
        for key, value in expected.items():
            assert own.loc[key, "value"] == value, (method, key)
            assert own.loc[key, "unit"] == BY_KEY[key].unit
        assert (own["origin"] == "measured").all()
        assert own[["low", "high"]].isna().all().all()
        assert "accuracy_best_val" not in own.index, "a number that a run does not have is no line"


def test_runs_that_are_not_finished_have_one_line_and_no_number(store: RunStore) -> None:
    lines = fractrain.results(store, status="diverged")
    assert list(lines["quantity"]) == [""]
    assert math.isnan(lines["value"][0])
    assert lines["source"][0] == "went wrong"


def test_configurations_are_means_over_seeds_with_the_interval_of_student(store: RunStore) -> None:
    frame = fractrain.results(store, by="configuration", method="sbm", profile="smoke", status="done")
    own = frame.set_index("quantity").loc["accuracy_last"]
    values = [summary_of(config_of("sbm", s), ledger_of("sbm", s))["test_accuracy_last"] for s in range(3)]
    assert own["value"] == pytest.approx(statistics.fmean(values), rel=1e-12)
    low, high = scipy_stats.t.interval(0.95, 2, loc=own["value"], scale=scipy_stats.sem(values))
    assert (own["low"], own["high"]) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))
    assert (own["n"], own["seed"]) == (3, "0 1 2")
    assert own["run"].split() == [config_of("sbm", s).run_id for s in range(3)]


def test_hardware_models_add_energy_that_is_derived(store: RunStore) -> None:
    frame = fractrain.results(store, hardware="fractrain-fitted", method="sbm", profile="smoke", status="done")
    own = frame[frame["quantity"] == "energy_end"]
    assert list(own["origin"]) == ["derived"] * 3
    assert set(own["source"]) == {"modelled: fractrain-fitted"}
    expected = price(Counts.from_ledger(ledger_of("sbm")), create("fractrain-fitted")).until().joules.total
    assert own["value"].iloc[0] == pytest.approx(expected / 1e3)


def test_published_numbers_speak_the_same_vocabulary(store: RunStore) -> None:
    frame = fractrain.results(store, published=True)
    theirs = frame[frame["origin"] == "published"]
    sbm = theirs[(theirs["method"] == "SBM") & (theirs["model"] == "ResNet-38") & (theirs["dataset"] == "CIFAR-10")]
    values = dict(zip(sbm["quantity"], sbm["value"], strict=True))
    assert (values["accuracy_best_test"], values["macs_best"], values["energy"]) == (92.66, 1.18e14, 33.55)
    assert sbm["source"].str.contains("FracTrain").all()


def test_quantities_are_named_once_and_have_a_unit() -> None:
    assert len(BY_KEY) == len(QUANTITIES)
    assert all(q.unit and q.label for q in QUANTITIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"by": "config"}, "did you mean 'configuration'"), ({"metod": "sbm"}, "did you mean 'method'")],
)
def test_a_wrong_argument_is_named(store: RunStore, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fractrain.results(store, **arguments)  # type: ignore[arg-type]


def test_settings_name_what_differs_and_nothing_else(store: RunStore) -> None:
    write_run(store, config_of("sbm", 0, bits=3, running=0.9))
    write_run(store, config_of("sbm", 0, bits=4, running=0.9))
    frame = fractrain.results(store, method="sbm", profile="smoke")
    assert {"bits=3, running=0.9", "bits=4, running=0.9", "bits=2", ""} == set(frame["settings"])
    assert set(fractrain.results(store, method="pfq")["settings"]) == {""}


# -- index -------------------------------------------------------------------------------------------------------------


def test_groups_differ_in_everything_but_the_seed() -> None:
    assert group_id(config_of("sbm", 0)) == group_id(config_of("sbm", 7))
    assert config_of("sbm", 7).run_id not in group_id(config_of("sbm", 7))
    others = [config_of("sbm", 0, bits=3), config_of("pfq", 0), config_of("sbm", 0, profile="short")]
    assert len({group_id(c) for c in [config_of("sbm", 0), *others]}) == 4


def test_the_index_follows_new_changed_and_deleted_runs(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_index(store)
    read: list[str] = []
    get = RunStore.get
    monkeypatch.setattr(RunStore, "get", lambda self, name: read.append(name) or get(self, name))
    assert read_index(store) == before
    assert read == [], "nothing has changed, nothing is read"

    new = write_run(store, config_of("sbm", 9))
    changed = config_of("pfq", 0)
    with store.open(changed) as writer:
        writer.set_status("interrupted", "stopped")
    gone = config_of("fp32", 2).run_id
    for file in store.path(gone).iterdir():
        file.unlink()
    store.path(gone).rmdir()
    read.clear()
    after = {e.run_id: e for e in read_index(store)}
    assert sorted(read) == sorted([new, changed.run_id])
    assert after.keys() == ({e.run_id for e in before} | {new}) - {gone}
    assert (after[changed.run_id].status, after[changed.run_id].summary) == ("interrupted", None)


def test_a_summary_that_is_changed_in_place_is_noticed(store: RunStore) -> None:
    run = config_of("sbm", 0).run_id
    read_index(store)
    path = store.path(run) / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "test_accuracy_last": 12.34567}))
    entry = next(e for e in read_index(store) if e.run_id == run)
    assert (entry.status, entry.summary) == ("damaged", None)
    assert "summary.json differs" in entry.message


def test_no_digit_of_the_index_can_change_a_number(store: RunStore) -> None:
    before = read_index(store)
    path = store.root / INDEX_NAME
    path.write_bytes(path.read_bytes().replace(b'"test_accuracy_best": 8', b'"test_accuracy_best": 9'))
    assert read_index(store) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 0, "runs": {}}', b'{"version": 1, "runs": 3}'])
def test_a_spoilt_index_is_made_anew(store: RunStore, content: bytes) -> None:
    before = read_index(store)
    (store.root / INDEX_NAME).write_bytes(content)
    assert read_index(store) == before
    assert (store.root / INDEX_NAME).read_bytes() != content


def test_a_store_whose_index_cannot_be_written_is_read_all_the_same(store: RunStore) -> None:
    (store.root / INDEX_NAME).mkdir()  # a folder is in the way, for whoever runs this
    assert len(read_index(store)) == 14
    assert list((store.root / INDEX_NAME).iterdir()) == []


def test_damaged_runs_are_named_and_left_out(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    run = config_of("sbm", 0).run_id
    (store.path(run) / "config.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert run not in {e.run_id for e in read_index(store)}
    assert run in caplog.text


def test_an_empty_or_missing_store_has_no_lines(tmp_path: Path) -> None:
    assert fractrain.results(tmp_path / "nothing").empty
    assert not (tmp_path / "nothing").exists()


def test_records_of_before_have_their_costs_computed(store: RunStore) -> None:
    run = config_of("fractrain", 1).run_id
    expected = fractrain.results(store, run=run)
    path = store.path(run) / "summary.json"
    summary = json.loads(path.read_text())
    for key in [k for k in summary["cost"] if k.startswith("cost_percent")]:
        del summary["cost"][key]
    path.write_text(json.dumps(summary))
    write_manifest(path.parent)
    assert fractrain.results(store, run=run).equals(expected)
