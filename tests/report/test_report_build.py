"""Measured cells: complete, incomplete, failed and missing runs; title, watermark and notes."""

from __future__ import annotations

import pytest

from fractrain.report.build import build_table
from fractrain.util.errors import ConfigError


def row_of(table, method, model="ResNet-38", data="CIFAR-10", kind="method"):
    rows = [r for r in table.rows if r.kind == kind and r.text("method") == method and r.text("model") == model]
    return next(r for r in rows if data in (r.text("data"), r.text("data").split("(for ")[-1].rstrip(")")))


def fill(store, method, accuracies, profile="paper", data="cifar10", **values):
    for seed, accuracy in enumerate(accuracies):
        store.add(f"{method}-resnet38-{data}-{profile}-s{seed}", accuracy, **values)


def test_complete_row_by_hand(spec, store, sources):
    fill(store, "sbm", [92.4, 92.5, 92.6], macs_best=1.2345e14, macs_end=1.5e14, energy=33.333, latency=310.5)
    row = row_of(build_table(spec, store, "paper", 3, sources), "SBM")
    expected = {
        "accuracy_last": "92.00 ± 0.25",
        "accuracy_best_test": "92.50 ± 0.25",
        "seeds": "3/3",
        "macs_best": "1.23e14",
        "macs_end": "1.50e14",
        "cp": "6.250",
        "energy": "33.33",
        "latency": "310.50",
        "verdict": "reproduced",
        "runs": " ".join(f"sbm-resnet38-cifar10-paper-s{s}" for s in range(3)),
    }
    assert {key: row.text(key) for key in expected} == expected
    best = row.cells["accuracy_best_test"]
    assert (best.value, best.n, best.origin) == (pytest.approx(92.5), 3, "measured")
    assert best.high - best.low == pytest.approx(2 * 4.30265 * 0.1 / 3**0.5, rel=1e-5)
    assert row.cells["energy"].origin == "derived"
    assert "fractrain-fitted" in row.cells["energy"].source


def test_verdicts_of_paper_rows(spec, store, sources):
    fill(store, "sbm", [91.0, 91.1, 91.2])
    fill(store, "dfq", [92.4, 92.5, 92.6])
    fill(store, "fp32", [93.0, 93.1, 93.2])
    table = build_table(spec, store, "paper", 3, sources)
    assert row_of(table, "SBM").text("verdict") == "differs (-1.56)"
    assert row_of(table, "DFQ").text("verdict") == "reproduced"
    assert row_of(table, "FP32").text("verdict") == "inconclusive (no published value)"
    assert row_of(table, "WAGEUBN").text("verdict") == "not run (no plugin)"
    assert row_of(table, "FracTrain").text("verdict") == "not run"


def test_one_seed_has_no_interval_and_no_verdict(spec, store, sources):
    fill(store, "sbm", [92.66])
    row = row_of(build_table(spec, store, "paper", 1, sources), "SBM")
    assert row.text("accuracy_best_test") == "92.66"
    assert row.cells["accuracy_best_test"].low is None
    assert row.text("verdict") == "inconclusive (n=1, 3 needed)"


def test_smoke_cannot_be_taken_for_a_reproduction(spec, mixed_store, sources):
    table = build_table(spec, mixed_store, "smoke", 3, sources)
    assert "profile smoke" in table.title
    assert "digits for CIFAR-10, digits100 for CIFAR-100" in table.title
    assert table.watermark.startswith("NOT A REPRODUCTION")
    assert {row.kind for row in table.rows} == {"method"}  # no gains
    for row in table.rows:
        assert "(for CIFAR-10" in row.text("data")
        assert row.text("data") in row.group
        assert {cell.origin for cell in row.cells.values()} <= {"", "measured", "derived", "not run"}
        assert row.text("verdict").split()[0] in ("yes", "not", "(2/3", "(0/3")  # says whether it learns
    keys = {column.key for column in table.columns}
    assert {
        "accuracy_last",
        "train_accuracy",
        "seconds",
        "effective_end",
        "cp_end",
        "accuracy_best_test_relative",
    } <= keys
    assert not [key for key in keys if key.endswith(("_published", "_claim", "_verdict"))]
    assert not {"energy", "latency", "energy_relative", "latency_relative"} & keys  # modelled for other networks
    shown = " ".join([*table.notes, *table.rules])
    assert "published:" not in shown
    assert "printed" not in shown


@pytest.mark.parametrize(("last", "trivial", "word"), [(10.1, 10.0, "yes"), (10.0, 10.0, "NO"), (50.0, None, "–")])
def test_a_smoke_row_says_whether_it_has_learned(spec, store, sources, last, trivial, word):
    more = {} if trivial is None else {"accuracy_trivial": trivial}
    store.add("sbm-resnet38-digits-smoke-s0", last + 0.5, **more)  # last is half a point below the best
    row = row_of(build_table(spec, store, "smoke", 1, sources), "SBM")
    assert row.text("accuracy_last") == f"{last:.2f}"
    assert row.text("verdict") == word


def test_short_is_watermarked_and_paper_is_not(spec, store, sources):
    short = build_table(spec, store, "short", 1, sources)
    assert "profile short" in short.title
    assert "much shorter runs;" in short.watermark
    paper = build_table(spec, store, "paper", 1, sources)
    assert paper.watermark == ""
    assert paper.title.endswith("[profile paper]")


def test_paper_profile_on_other_data_is_not_judged(spec, store, sources):
    profiles = {**spec.profiles, "paper": spec.profiles["smoke"]}
    changed = spec.model_copy(update={"profiles": profiles})
    fill(store, "sbm", [92.6, 92.7, 92.65], data="digits")
    row = row_of(build_table(changed, store, "paper", 3, sources), "SBM")
    assert row.text("verdict") == "inconclusive (not the paper's data)"


def test_incomplete_rows_are_never_averaged(spec, mixed_store, sources):
    table = build_table(spec, mixed_store, "short", 3, sources)
    for method, model, data, text, seeds, reason in (
        ("PFQ", "ResNet-38", "CIFAR-100", "2/3 seeds", "2/3", "2/3 seeds, 1 diverged"),
        ("DFQ", "ResNet-74", "CIFAR-10", "2/3 seeds", "2/3", "2/3 seeds"),
        ("SBM", "ResNet-74", "CIFAR-10", "0/3 seeds", "0/3", "0/3 seeds, 1 failed, 1 interrupted"),
    ):
        row = row_of(table, method, model, data)
        assert (row.text("accuracy_last"), row.text("seeds")) == (text, seeds)
        assert row.text("verdict") == f"inconclusive (reduced profile; {reason})"
        for key in ("accuracy_best_test", "macs_best", "macs_end", "cp", "energy", "latency"):
            assert (row.text(key), row.cells[key].value, row.cells[key].origin) == ("–", None, "not run")


@pytest.mark.parametrize("status", ["failed", "diverged", "interrupted", "running"])
def test_how_a_single_run_ended_is_shown(spec, store, sources, status):
    store.add("sbm-resnet38-cifar10-paper-s0", status=status)
    row = row_of(build_table(spec, store, "paper", 1, sources), "SBM")
    assert row.text("accuracy_last") == status
    assert row.text("verdict") == f"inconclusive (0/1 seeds, 1 {status})"
    assert row.text("runs") == "sbm-resnet38-cifar10-paper-s0"


def test_incompatible_rows_say_why(spec, store, sources):
    rows = tuple(r.model_copy(update={"settings": {"bits": 1}}) if r.key == "sbm" else r for r in spec.rows)
    table = build_table(spec.model_copy(update={"rows": rows}), store, "paper", 1, sources)
    assert row_of(table, "SBM").text("verdict") == "not run (incompatible)"
    assert any("bits must be at least 2" in n for n in table.notes)


def test_missing_plugins_are_named_once(spec, store, sources):
    notes = build_table(spec, store, "paper", 1, sources).notes
    assert [n for n in notes if "no plugin" in n] == [
        "WAGEUBN was not run (no plugin): no method 'wageubn'",
        "DoReFa was not run (no plugin): no method 'dorefa'",
    ]


def test_measured_improvement_over_the_baselines_there_are(spec, store, sources):
    fill(store, "sbm", [92.4, 92.5, 92.6], macs_best=1.0e14, macs_end=2.0e14, energy=30.0, latency=300.0)
    fill(store, "fractrain", [92.3, 92.6, 92.5], macs_best=4.0e13, macs_end=5.0e13, energy=24.0, latency=225.0)
    table = build_table(spec, store, "paper", 3, sources)
    row = row_of(table, "FracTrain gain", kind="improvement recomputed")
    expected = {
        "macs_best": "60.0 %", "macs_end": "75.0 %", "energy": "20.0 %",
        "latency": "25.0 %", "cp": "–", "verdict": "differs (see notes)",
    }  # fmt: skip
    assert {key: row.text(key) for key in expected} == expected
    difference = row.cells["accuracy_best_test"]
    assert difference.value == pytest.approx(-0.1 / 3)  # of -0.1, +0.1, -0.1
    assert difference.n == 3
    assert any("over 1 of 3 baselines (SBM)" in n for n in table.notes)
    gain = next(n for n in table.notes if n.startswith("ResNet-38, CIFAR-10, FracTrain gain: MACs "))
    assert "MACs differs (-6.36); " in gain  # 60 % measured, 66.36 % by the published rows
    assert "latency inconclusive (the hardware model is fitted to the published rows)" in gain
    assert "accuracy reproduced" in gain
    other = row_of(table, "FracTrain gain", data="CIFAR-100", kind="improvement recomputed")
    assert other.text("macs_best") == "–"


def test_an_accurate_row_with_half_the_saving_is_no_reproduction(spec, store, sources):
    published = {"macs_best": 1.18e14, "energy": 33.55, "latency": 310.47}
    fill(store, "sbm", [92.60, 92.66, 92.72], **published)
    fill(store, "fractrain", [92.48, 92.54, 92.60], **{**published, "macs_best": 0.79e14})
    table = build_table(spec, store, "paper", 3, sources)
    row = row_of(table, "FracTrain")
    assert row.text("verdict") == "reproduced"  # the accuracy
    assert row.text("accuracy_best_test_claim") == "-0.12"
    assert row.text("accuracy_best_test_claim_verdict") == "reproduced"
    assert row.text("macs_best_claim").startswith("2.97 (66.4 % less)")
    assert row.text("macs_best_claim_verdict") == "differs (-33.31)"
    assert any("ResNet-38, CIFAR-10, FracTrain, MACs SBM/this: differs (-33.31)." in n for n in table.notes)
    assert row_of(table, "FracTrain gain", kind="improvement recomputed").text("verdict") == "differs (see notes)"


def test_measured_improvement_is_a_range_over_several_baselines(spec, store, sources):
    kept = tuple(r for r in spec.rows if r.key in ("sbm", "dfq", "fractrain"))
    improvement = spec.improvement.model_copy(update={"baselines": ("sbm", "dfq")})
    changed = spec.model_copy(update={"rows": kept, "improvement": improvement})
    fill(store, "sbm", [90.0], macs_best=8e13)
    fill(store, "dfq", [91.0], macs_best=5e13)
    fill(store, "fractrain", [91.5], macs_best=4e13)
    table = build_table(changed, store, "paper", 1, sources)
    row = row_of(table, "FracTrain gain", kind="improvement recomputed")
    assert row.text("macs_best") == "20.0~50.0 %"
    assert row.cells["macs_best"].source.endswith("least over DFQ, most over SBM")
    where = "ResNet-38, CIFAR-10, FracTrain gain, measured"
    assert f"{where}, Paper's MACs: least over DFQ, most over SBM." in table.notes
    assert row.text("accuracy_best_test") == "+0.50 vs DFQ"  # the better of the two


def test_one_saving_over_rivals_of_equal_cost_is_one_number(spec, store, sources):
    kept = tuple(r for r in spec.rows if r.key in ("sbm", "dfq", "fractrain"))
    improvement = spec.improvement.model_copy(update={"baselines": ("sbm", "dfq")})
    fill(store, "sbm", [90.0], macs_best=8e13)
    fill(store, "dfq", [91.0], macs_best=8e13)
    fill(store, "fractrain", [91.5], macs_best=4e13)
    changed = spec.model_copy(update={"rows": kept, "improvement": improvement})
    row = row_of(build_table(changed, store, "paper", 1, sources), "FracTrain gain", kind="improvement recomputed")
    assert row.text("macs_best") == "50.0 %"


def test_whole_model_and_gated_blocks_stand_beside_each_other(spec, store, sources):
    """By the one, this made-up FracTrain saves 68 %, by the other 42 %: the order of methods may turn."""
    fill(store, "sbm", [92.0], macs_best=1e14, effective_best=1e14, bitops_best=1.024e17)
    fill(store, "fractrain", [92.0], macs_best=3.16e13, effective_best=5.8e13, bitops_best=5.9392e16)
    table = build_table(spec, store, "paper", 1, sources)
    row = row_of(table, "FracTrain gain", kind="improvement recomputed")
    assert [row.text(k) for k in ("macs_best", "effective_best", "bitops_best")] == ["68.4 %", "42.0 %", "42.0 %"]
    shown = [c.key for c in table.columns if c.short]
    assert shown.index("effective_best") == shown.index("macs_best") + 1


def test_an_incomplete_subject_has_no_measured_improvement(spec, store, sources):
    fill(store, "sbm", [92.4, 92.5, 92.6])
    fill(store, "fractrain", [92.3, 92.6])
    row = row_of(build_table(spec, store, "paper", 3, sources), "FracTrain gain", kind="improvement recomputed")
    assert row.text("macs_best") == row.text("accuracy_best_test") == "–"


def test_extrapolations_of_the_hardware_model_are_noted_once(spec, mixed_store, sources):
    table = build_table(spec, mixed_store, "short", 3, sources)
    found = [n for n in table.notes if "extrapolation" in n]
    assert len(found) == 1
    assert found[0].startswith("Energy and latency of 3 rows are extrapolations")
    assert "cp 100 %" in row_of(table, "FP32").cells["energy"].source


def test_optional_numbers_are_shown_only_if_every_seed_has_them(spec, store, sources):
    fill(store, "sbm", [92.4, 92.5], energy=None)
    row = row_of(build_table(spec, store, "paper", 2, sources), "SBM")
    assert (row.text("energy"), row.text("latency")) == ("–", "0.3000")


def test_every_row_has_every_column_and_every_number_an_origin(spec, mixed_store, sources):
    table = build_table(spec, mixed_store, "short", 3, sources)
    keys = {c.key for c in table.columns}
    assert len(table.rows) == 4 * 9
    for row in table.rows:
        assert set(row.cells) == keys
        for cell in row.cells.values():
            if cell.value is not None or cell.low is not None:
                assert cell.origin in ("published", "measured", "derived")
            if cell.origin == "published":
                assert cell.source


def test_every_number_column_states_unit_and_direction(spec, store, sources):
    for column in build_table(spec, store, "paper", 1, sources).columns:
        if column.origin:
            assert "[" in column.head, column.head
            assert ("↑" in column.head) != ("↓" in column.head), column.head


@pytest.mark.parametrize(("profile", "seeds"), [("smok", 1), ("smoke", 0), ("smoke", [1, 1])])
def test_bad_arguments(spec, store, sources, profile, seeds):
    with pytest.raises(ConfigError):
        build_table(spec, store, profile, seeds, sources)


def test_accuracies_no_better_than_always_one_class_are_named(spec, store, sources):
    pair, row = spec.pairs[0], spec.rows_of(spec.pairs[0])[0]
    for seed, best in enumerate((9.0, 10.5)):
        run_id = f"{row.method}-{pair.model}-{pair.dataset}-paper-s{seed}"
        store.add(run_id, best)
        store.records[run_id].measured.values["accuracy_trivial"] = 10.0
    said = [note for note in build_table(spec, store, "paper", 2, sources).notes if "trivial" in note]
    assert said[0] == f"{pair.dataset}, trivial predictor (always one class): accuracy, % 10.00."
    assert len(said) == 2
    assert said[1].endswith(f"{row.label}: NOT better than the trivial predictor.")
