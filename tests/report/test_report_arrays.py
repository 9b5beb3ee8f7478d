"""Widths and claims on hardware models: by hand, against the closed form of ideal arrays, and known figures."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import figure_fakes
import pytest

from fractrain.cost.hardware import LayerShape
from fractrain.cost.ledger import Entry, Ledger
from fractrain.cost.price import Counts
from fractrain.engine.store import RunStore
from fractrain.report.arrays import (
    Factor,
    at_widths,
    judge_on,
    mean_product_width,
    mean_widths,
    mixed,
    of_layers,
    quantized,
)
from fractrain.report.build import build_table
from fractrain.report.render import FORMATS, render
from fractrain.report.sources import Work, run_work
from fractrain.report.spec import load_spec
from fractrain.util.errors import ConfigError

SHAPES = {
    "stem": LayerShape("conv", 3, 16, (3, 3), (1, 1), (32, 32), (32, 32), first=True),
    "b0.conv": LayerShape("conv", 64, 64, (3, 3), (1, 1), (16, 16), (16, 16)),
    "b1.conv": LayerShape("conv", 64, 128, (3, 3), (2, 2), (16, 16), (8, 8)),
    "head": LayerShape("linear", 128, 10),
}
WIDTHS = (2, 4, 8)
CLAIMS = (5.1, 4.7)


def work(*mixes: tuple[float, int, int, int]) -> Work:
    """A step of 16 samples with both ends in floating point: shares of A, W, E widths in the blocks."""
    ledger = Ledger({"blocks": ["b0", "b1"], "batch_size": 16, "forward_macs": sum(g.macs for g in SHAPES.values())})
    ledger.samples(100)
    for name, shape in SHAPES.items():
        if name in ("stem", "head"):
            products = ("FW", "GC") if name == "stem" else ("FW", "EB", "GC")
            ledger.count(name, 100, lambda n=name, p=products, m=shape.macs: [Entry(n, x, 32, 32, m) for x in p])
            continue
        for share, a, w, e in mixes:
            entries = [Entry(name, "FW", a, w, shape.macs), Entry(name, "EB", e, w, shape.macs),
                       Entry(name, "GC", a, e, shape.macs)]  # fmt: skip
            ledger.count(f"{name}{a}{w}{e}", round(100 * share), lambda found=entries: found)
    return Work(Counts.from_ledger(ledger), SHAPES)


EIGHT = work((1.0, 8, 8, 8))


def test_only_layers_that_both_quantize_are_compared() -> None:
    assert quantized(EIGHT.counts) == {"b0.conv", "b1.conv"}
    part = of_layers(EIGHT.counts, frozenset({"b1.conv"}))
    assert {key.layer for key in part.keys} == {"b1.conv"}
    assert part.macs.sum() == 300 * SHAPES["b1.conv"].macs


def test_mean_widths_by_hand() -> None:
    found = mean_widths([of_layers(work((0.25, 2, 4, 8), (0.75, 4, 8, 2)).counts, frozenset({"b0.conv", "b1.conv"}))])
    for name in ("b0.conv", "b1.conv", ""):
        assert found[name] == pytest.approx({"A": 3.5, "W": 7.0, "E": 3.5})
    assert mean_product_width([of_layers(EIGHT.counts, quantized(EIGHT.counts))]) == 8
    two = of_layers(work((1.0, 4, 4, 4)).counts, frozenset({"b0.conv"}))
    assert mean_product_width([two, two]) == 4


def test_the_first_layer_has_its_errors_from_the_gradient_product() -> None:
    ledger = Ledger()
    ledger.samples(1)
    ledger.count("x", 1, lambda: [Entry("a", "FW", 4, 6, 10), Entry("a", "GC", 4, 3, 10)])
    assert mean_widths([Counts.from_ledger(ledger)])["a"] == {"A": 4, "W": 6, "E": 3}


def test_uniform_work_keeps_every_mac() -> None:
    counts = work((0.25, 2, 4, 8), (0.75, 4, 8, 2)).counts
    found = at_widths(counts, 4, 2)
    assert found.macs.sum() == counts.macs.sum()
    assert {key[2:4] for key in found.keys} == {(4, 2)}


@pytest.mark.parametrize(("claim", "needs"), [(2.0, 5.66), (3.0, 4.62), (4.0, 4.00), (5.1, 3.54)])
def test_an_ideal_array_needs_eight_over_the_root_of_the_claim(claim: float, needs: float) -> None:
    """Known figures, and the closed form."""
    found = judge_on("bit-product", [work((1.0, 4, 4, 4))], [EIGHT], WIDTHS, (claim, claim)).speed
    assert found is not None
    assert found.needed == pytest.approx(8 / math.sqrt(claim))
    assert found.needed == pytest.approx(needs, abs=5e-3)
    assert found.measured == pytest.approx(4.0)
    assert found.narrowest == pytest.approx(16.0)


@pytest.mark.parametrize(("moved", "needs"), [(0.0, 3.69), (0.05, 3.58), (0.1, 3.47), (0.2, 3.25), (0.5, 2.58)])
def test_energy_with_a_share_that_moves_data(moved: float, needs: float) -> None:
    found = judge_on(f"bit-product:moved={moved}", [EIGHT], [EIGHT], WIDTHS, CLAIMS).energy
    assert found is not None
    assert found.needed == pytest.approx(needs, abs=6e-3)
    b = found.needed
    assert (1 - moved) * b * b / 64 + moved * b / 8 == pytest.approx(1 / 4.7, rel=1e-6)


def test_a_mix_is_what_independent_draws_give() -> None:
    costs = {(a, b): float(a * b + a) for a in WIDTHS for b in WIDTHS}
    assert mixed(costs, WIDTHS, 4.0) == 20
    assert mixed(costs, WIDTHS, 3.0) == pytest.approx((6 + 10 + 12 + 20) / 4)
    assert mixed(costs, WIDTHS, 8.0) == 72
    assert mixed({(4, 4): 7.0}, (4,), 4.0) == 7


@pytest.mark.parametrize("hardware", ["bit-serial", "bitfusion", "roofline:a100", "fractrain-fitted"])
def test_other_models_price_both_rows(hardware: str) -> None:
    found = judge_on(hardware, [work((1.0, 2, 2, 2))], [EIGHT], WIDTHS, CLAIMS)
    assert not found.problem
    for factor in (found.speed, found.energy):
        assert factor is not None
        assert factor.measured == pytest.approx(factor.narrowest)
        assert factor.measured > 1


def test_fitted_lines_are_out_of_reach() -> None:
    found = judge_on("fractrain-fitted", [work((1.0, 2, 2, 2))], [EIGHT], WIDTHS, CLAIMS)
    assert found.speed is not None
    assert found.speed.needed is None
    assert (
        found.speed.verdict(5.1)
        == f"out of reach on this array: the narrowest widths everywhere give {found.speed.narrowest:.2f}x"
    )


def test_verdicts_in_words_never_say_reproduced() -> None:
    said = [
        Factor(3.0, 16.0, 3.54).verdict(5.1),
        Factor(5.3, 16.0, 3.54).verdict(5.1),
        Factor(1.1, 1.7, None).verdict(5.1),
    ]
    assert said == [
        "plausible on this array at a mean width of 3.54 bits or less; these widths give 3.00x",
        "plausible on this array: these widths give 5.30x",
        "out of reach on this array: the narrowest widths everywhere give 1.70x",
    ]


def test_a_model_that_cannot_price_says_why() -> None:
    lost = Work(EIGHT.counts, {})
    found = judge_on("bitfusion", [lost], [EIGHT], WIDTHS, CLAIMS)
    assert found.speed is None
    assert "layer 'b0.conv' is not known" in found.problem
    assert judge_on("bit-product", [lost], [EIGHT], WIDTHS, CLAIMS).speed is not None


# -- table 6 -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(store: Any) -> Any:
    """Table 6 with runs whose ledgers are those above; of DYNASTY at 3.5 bits half of the tiles have 2 bits."""
    spec, works = load_spec("table6"), {"static8": EIGHT, "dynasty": work((1.0, 4, 4, 4))}
    works["dynasty-3.5"] = work((0.5, 2, 4, 4), (0.5, 4, 2, 4))
    found = {}
    for key, own in works.items():
        run_id = figure_fakes.make_config(spec.request(spec.pairs[0], spec.row(key), "short"), 0).run_id
        store.add(run_id)
        found[run_id] = own
    sources = replace(figure_fakes.sources(), work=lambda record: found[record.run_id])
    return build_table(spec, store, "short", 1, sources)


def test_table6_shows_widths_by_tensor_and_layer(table: Any) -> None:
    section = next(s for s in table.sections if s.key == "widths")
    rows = {row.text("layer"): row for row in section.rows}
    assert list(rows) == ["all together", "b0.conv", "b1.conv"]
    assert [rows["b0.conv"].text(f"dynasty-3.5-{x}") for x in "AWE"] == ["3.00", "3.00", "4.00"]
    assert [rows["all together"].text(f"dynasty-{x}") for x in "AWE"] == ["4.00"] * 3


def test_table6_sets_every_model_beside_the_claims(table: Any) -> None:
    section = next(s for s in table.sections if s.key == "arrays")
    spec = load_spec("table6")
    rows = [row for row in section.rows if "3.5" in row.text("row")]
    assert [row.text("hardware") for row in rows] == list(spec.arrays.hardware)
    for row in section.rows:
        assert (row.text("speed_claim"), row.text("energy_claim")) == ("up to 5.1x", "up to 4.7x")
        for kind in ("speed", "energy"):
            assert re.match("plausible on this array|out of reach on this array", row.text(f"{kind}_verdict"))
    ideal = rows[0]
    assert ideal.cells["speed_needs"].value == pytest.approx(3.542, abs=1e-3)
    assert "reproduced" not in " ".join(row.text(f"{k}_verdict") for row in section.rows for k in ("speed", "energy"))
    assert "bitfusion is not the paper's hardware" in section.caption
    assert section.caption.count("bitfusion is not") == 1


@pytest.mark.parametrize("fmt", list(FORMATS))
def test_table6_has_both_sections_in_every_format(table: Any, fmt: str) -> None:
    made = render(table, fmt)
    assert fmt == "csv" or ("What hardware models make of the claims" in made and "Mean widths by layer" in made)


def test_table6_without_runs_has_no_such_sections() -> None:
    table = build_table(load_spec("table6"), None, "paper", 1, figure_fakes.sources())
    assert [s.key for s in table.sections if s.key in ("widths", "arrays")] == []


def test_table6_has_a_row_that_could_reach_the_claim() -> None:
    settings = load_spec("table6").row("dynasty-3.5").settings
    assert settings["budget"] == settings["budget_high"] < 8 / math.sqrt(5.1)
    assert settings["keep_first"]
    assert settings["keep_last"]


def test_a_record_that_cannot_be_read_leaves_the_table_standing(store: Any) -> None:
    spec = load_spec("table6")
    figure_fakes.fill(store, spec, "short")

    def lost(record: Any) -> Work:
        raise ConfigError("the model is not known")

    table = build_table(spec, store, "short", 1, replace(figure_fakes.sources(), work=lost))
    assert [s.key for s in table.sections if s.key in ("widths", "arrays")] == []
    assert table.rows


def test_the_work_of_a_committed_record() -> None:
    """Gates are in floating point and no layers that are compared."""
    root = Path(__file__).parents[2] / "results" / "evidence" / "cifar10-one-epoch"
    works = {record.config.method: run_work(record) for record in RunStore(root).records()}
    layers = quantized(works["sbm"].counts)
    assert len(layers) == 39  # 36 in blocks, two shortcuts, the stem
    compared = layers & quantized(works["fractrain"].counts)
    assert compared <= works["sbm"].geometry.keys()
    found = judge_on("bit-product", [works["fractrain"]], [works["sbm"]], (3, 4, 6, 8), CLAIMS).speed
    assert found is not None
    assert 1 < found.measured < found.narrowest == pytest.approx(64 / 9)
