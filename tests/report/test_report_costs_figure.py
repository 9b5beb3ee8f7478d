"""The figure of costs: its numbers against the prices of the ledgers, its drawings on tiny records, what is missing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import figure_fakes
import pytest

from fractrain.cost.hardware import LayerShape, create
from fractrain.cost.ledger import Entry, Ledger
from fractrain.cost.price import Counts, price
from fractrain.report import output
from fractrain.report.cost_figure import GATES, CostFigure, build_costs, compose, part_of
from fractrain.report.draw import style
from fractrain.report.sources import Work
from fractrain.report.spec import load_spec
from fractrain.util.errors import ConfigError

SHAPES = {
    "stem": LayerShape("conv", 3, 16, (3, 3), (1, 1), (32, 32), (32, 32), first=True),
    "groups.0.0.conv": LayerShape("conv", 16, 16, (3, 3), (1, 1), (32, 32), (32, 32)),
    "groups.1.0.conv": LayerShape("conv", 16, 32, (3, 3), (2, 2), (32, 32), (16, 16)),
    "groups.2.0.conv": LayerShape("conv", 32, 64, (3, 3), (2, 2), (16, 16), (8, 8)),
    "head": LayerShape("linear", 64, 10),
}
BLOCKS = ["groups.0.0", "groups.1.0", "groups.2.0"]
EPOCHS = 6
WIDTHS = {
    "sbm": [8] * EPOCHS, "pfq": [3, 3, 4, 4, 6, 8], "dfq": [8, 5, 4, 5, 4, 5], "fractrain": [3, 3, 4, 3, 4, 4],
    "dynasty": [4, 4, 3, 3, 4, 3],
}  # fmt: skip


def work(widths: list[int], gated: bool) -> Work:
    """A run whose blocks have one width in each period."""
    ledger = Ledger({"blocks": BLOCKS, "batch_size": 32, "forward_macs": sum(g.macs for g in SHAPES.values())})
    for epoch, bits in enumerate(widths):
        ledger.begin("train", epoch)
        ledger.samples(320)
        for name, shape in SHAPES.items():
            own = 32 if name in ("stem", "head") else bits
            products = ("FW", "GC") if name == "stem" else ("FW", "EB", "GC")
            entries = [Entry(name, p, own, own, shape.macs) for p in products]
            ledger.count(f"{name}{own}", 320, lambda found=entries: found)
        if gated:
            ledger.count("gate", 320, lambda: [Entry("groups.0.0.gate.fc", "FW", 32, 32, 160)])
    return Work(Counts.from_ledger(ledger), SHAPES)


WORKS = {key: work(widths, key in ("dfq", "fractrain")) for key, widths in WIDTHS.items()}


@pytest.fixture
def given(store: Any) -> Any:
    """A function from row keys to specification, store and sources in which these rows are finished."""
    spec = load_spec("figure-cost")

    def make(*keys: str) -> tuple[Any, Any, Any]:
        found = {}
        for key in keys:
            config = figure_fakes.make_config(spec.request(spec.pairs[0], spec.row(key), "smoke"), 0)
            store.add(config.run_id, samples_best=100, samples_end=100)
            found[config.run_id] = WORKS[key]
        return spec, store, replace(figure_fakes.sources(), work=lambda record: found[record.run_id])

    return make


def built(given: Any, *keys: str) -> CostFigure:
    spec, store, sources = given(*keys)
    return build_costs(spec, store, "smoke", 1, sources)


def test_shares_add_up_to_a_step_and_periods_to_the_run(given: Any) -> None:
    figure = built(given, *WORKS)
    for hardware in figure.hardware:
        for key, label in (("sbm", "SBM"), ("dfq", "DFQ"), ("dynasty", "DYNASTY")):
            whole = price(WORKS[key].counts, create(hardware), SHAPES).until()
            shares = [s for s in figure.shares if (s.hardware, s.row) == (hardware, label)]
            assert sum(s.seconds for s in shares) == pytest.approx(whole.seconds.total / (EPOCHS * 10))
            assert sum(s.joules for s in shares) == pytest.approx(whole.joules.total / (EPOCHS * 10))
            periods = [p for p in figure.periods if (p.hardware, p.row) == (hardware, label)]
            assert [p.start for p in periods] == pytest.approx([n / EPOCHS for n in range(EPOCHS)])
            assert sum(10 * p.seconds for p in periods) == pytest.approx(whole.seconds.total)


def test_pfq_has_a_curve_that_rises_with_its_stages_and_no_bar(given: Any) -> None:
    figure = built(given, *WORKS)
    assert {share.row for share in figure.shares} == {"SBM", "DFQ", "FracTrain", "DYNASTY"}
    pfq = [p.seconds for p in figure.periods if (p.hardware, p.row) == (figure.hardware[1], "PFQ")]
    assert pfq == sorted(pfq)
    assert len(set(pfq)) == 4


def test_parts_are_groups_of_blocks_ends_and_gates(given: Any) -> None:
    assert built(given, *WORKS).parts == ("stem", "groups.0", "groups.1", "groups.2", "head", GATES)
    blocks = frozenset(BLOCKS)
    assert part_of("groups.0.0.gate.fc", blocks) == GATES
    assert part_of("stem.0", frozenset()) == "stem"
    assert part_of("layer1.0.conv1", frozenset({"layer1.0"})) == "layer1"


def test_a_row_that_is_not_finished_and_one_that_cannot_be_priced_are_told(given: Any) -> None:
    figure = built(given, "sbm", "dfq")
    assert figure.remarks == ("Not finished, so not drawn: FracTrain, DYNASTY, PFQ.",)
    spec, store, sources = given("sbm")
    lost = replace(sources, work=lambda record: Work(WORKS["sbm"].counts, {}))
    remarks = build_costs(spec, store, "smoke", 1, lost).remarks
    assert any(r.startswith("SBM not priced by bitfusion:16x16: ") and "is not known" in r for r in remarks)
    assert any(share.hardware == "bit-product:published" for share in build_costs(spec, store, "smoke", 1, lost).shares)


def test_every_format_is_written_and_the_same_twice(given: Any, tmp_path: Path) -> None:
    spec, store, sources = given(*WORKS)
    table, files = output.write(spec, store, "smoke", tmp_path, 1, sources)
    names = [f"figure-cost-smoke.{e}" for e in ("svg", "png", "pdf", "md", "csv", "tex", "html", "json")]
    assert sorted(file.name for file in files) == sorted(names)
    first = {file.name: file.read_bytes() for file in files}
    assert first["figure-cost-smoke.png"].startswith(b"\x89PNG")
    assert first["figure-cost-smoke.pdf"].startswith(b"%PDF")
    assert b"<svg" in first["figure-cost-smoke.html"]
    assert b"](figure-cost-smoke.svg)" in first["figure-cost-smoke.md"]
    assert json.loads(first["figure-cost-smoke.json"])["name"] == table.name == "figure-cost"
    assert output.table_content(spec, store, "smoke", 1, "svg", sources) == first["figure-cost-smoke.svg"]
    lines = list(csv.DictReader(io.StringIO(first["figure-cost-smoke.csv"].decode())))
    figure = build_costs(spec, store, "smoke", 1, sources)
    assert len(lines) == len(figure.shares) + len(figure.periods)
    assert {line["kind"] for line in lines} == {"share", "period"}


@pytest.mark.parametrize("keys", [tuple(WORKS), ("sbm",), ()])
def test_no_text_leaves_the_page_or_hides_another(given: Any, keys: tuple[str, ...]) -> None:
    figure = built(given, *keys)
    with style("figure-cost"):
        made = compose(figure)
        made.canvas.draw()
        page = made.bbox
        boxes = [text.get_window_extent() for text in made.texts]
        for axes in made.axes:
            inside = [t for t in axes.texts if t.get_text()]
            boxes += [axes.title.get_window_extent(), *(t.get_window_extent() for t in inside)]
        for box in boxes:
            assert page.x0 <= box.x0
            assert box.x1 <= page.x1
            assert page.y0 <= box.y0
            assert box.y1 <= page.y1
        for legend in made.legends:
            assert legend.get_window_extent().x1 <= page.x1
    assert len(made.axes) == 6


def test_bad_input_is_one_line(given: Any) -> None:
    spec, store, sources = given("sbm")
    with pytest.raises(ConfigError, match="leave out --panel"):
        output.table_content(spec, store, "smoke", 1, "svg", sources, output.Wanted(panel="1"))
    with pytest.raises(ConfigError, match="draws no costs"):
        build_costs(load_spec("table2"), store, "smoke", 1, sources)


def test_its_runs_are_those_of_tables_2_and_6() -> None:
    figure, pair = load_spec("figure-cost"), load_spec("figure-cost").pairs[0]
    for name, keys in (("table2", ("sbm", "pfq", "dfq", "fractrain")), ("table6", ("dynasty",))):
        table = load_spec(name)
        own = next(p for p in table.pairs if p.key == pair.key)
        for key in keys:
            for profile in ("smoke", "short", "paper"):
                asked = figure.request(pair, figure.row(key), profile)
                assert asked == table.request(own, table.row(key), profile)
