"""What a hardware model cannot price: the cell says so, one line says why, and the table goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import figure_fakes

from fractrain.engine.store import RunStore
from fractrain.report.build import build_table
from fractrain.report.sources import measure_run
from fractrain.report.spec import load_spec

RECORDS = Path(__file__).parents[2] / "results" / "evidence" / "cifar10-one-epoch"


def test_a_missing_meter_and_settings_that_do_not_fit_are_reasons_in_one_line() -> None:
    record = next(r for r in RunStore(RECORDS).records() if r.config.method == "sbm")
    without = measure_run(record, "measured")
    assert without.not_priced == "no meter was read"
    assert "energy" not in without.values
    assert without.values["latency"] > 0
    small = measure_run(record, "bitfusion:weight_kb=1:input_kb=1:output_kb=1:rows=4096")
    assert "not even the smallest tile fits" in small.not_priced
    assert "\n" not in small.not_priced
    assert small.values["bitops_end"] == without.values["bitops_end"] > 0


def test_the_cell_says_not_priced_and_the_table_goes_on(store: Any) -> None:
    spec = load_spec("table2")
    for key in ("sbm", "dfq"):
        figure_fakes.add(store, spec, key, "smoke", 0)
    run_id = figure_fakes.make_config(spec.request(spec.pairs[0], spec.row("dfq"), "smoke"), 0).run_id
    record = store.records[run_id]
    values = {key: value for key, value in record.measured.values.items() if key not in ("energy", "latency")}
    record.measured = replace(record.measured, values=values, not_priced="broken: cycles is nan")
    table = build_table(spec, store, "smoke", 1, figure_fakes.sources(), modelled=True)
    rows = {row.text("method"): row for row in table.rows if row.text("seeds") == "1/1"}
    assert rows["DFQ"].text("energy") == rows["DFQ"].text("latency") == "not priced"
    assert "broken: cycles is nan" in rows["DFQ"].cells["energy"].source
    assert rows["DFQ"].cells["accuracy_last"].value is not None
    assert rows["SBM"].cells["energy"].value is not None
    assert f"Not priced by {spec.hardware}: broken: cycles is nan." in table.notes
