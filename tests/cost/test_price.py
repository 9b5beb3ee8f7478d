"""Pricing a ledger: sums by hand, every epoch and group, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fractrain.cost.hardware import Cost, HardwareModel, LayerShape, Parts, Priced, Workload, WorkRow, create
from fractrain.cost.ledger import Entry, Ledger
from fractrain.cost.price import OVERHEAD, Counts, Recorded, price
from fractrain.util.errors import ConfigError, PluginError

SHAPES = {"b.conv": LayerShape("conv", 4, 8, (3, 3), (1, 1), (6, 6), (6, 6)), "head": LayerShape("linear", 8, 2)}


def ledger() -> Ledger:
    """Two epochs of 10 and 20 samples; in the second, half of the samples skip a product and widths differ."""
    found = Ledger({"blocks": ["b"], "batch_size": 5, "forward_macs": 10384})
    macs = SHAPES["b.conv"].macs
    for epoch, samples in enumerate((10, 20)):
        found.begin("train", epoch)
        found.samples(samples)
        found.count(f"conv{epoch}", samples // 2, lambda: [Entry("b.conv", "FW", 4, 8, macs)])
        found.count("other", samples // 2, lambda: [Entry("b.conv", "FW", 0, 8, macs)])
        found.count("gate", samples, lambda: [Entry("b.gate", "FW", 32, 32, 50)])
        found.count("head", samples, lambda: [Entry("head", "GC", 32, 32, 16)])
        found.begin("eval", epoch)
        found.count("head", 1000, lambda: [Entry("head", "FW", 32, 32, 16)])
    return found


def test_counts_by_hand() -> None:
    counts = Counts.from_ledger(ledger())
    assert tuple(key[:4] for key in counts.keys) == (
        ("b.conv", "FW", 4, 8),
        ("b.gate", "FW", 32, 32),
        ("head", "GC", 32, 32),
    )
    macs = SHAPES["b.conv"].macs
    assert counts.macs.tolist() == [[5 * macs, 500, 160], [10 * macs, 1000, 320]]
    assert (counts.samples, counts.batch, counts.forward_macs) == ((10, 20), 5, 10384)
    assert counts.cp == pytest.approx([100 * 0.5 * 32 / 1024] * 2)


def test_additive_cost_is_the_sum_over_rows() -> None:
    counts, model = Counts.from_ledger(ledger()), create("bit-product:fixed=0.3:moved=0.1")
    run = price(counts, model, SHAPES)
    for line in range(2):
        rows = [WorkRow(*key[:4], n) for key, n in zip(counts.keys, counts.macs[line], strict=True)]
        by_hand = np.sum([model.row(row).figures() for row in rows], axis=0)
        np.testing.assert_allclose(run.by_epoch[line], by_hand, rtol=1e-12)
    assert run.until(0) == Cost.from_figures(run.by_epoch[0])
    assert run.until().seconds.total == pytest.approx(run.by_epoch[:, 1:5].sum())
    assert (run.samples(0), run.samples(), run.note()) == (10, 30, "")


def test_models_see_a_full_batch_of_each_row_once_and_the_gates_shape() -> None:
    seen: list[WorkRow] = []

    class Watch(HardwareModel):
        name, needs_geometry = "watch", True

        def row(self, row: WorkRow) -> Cost:
            seen.append(row)
            return Cost(cycles=row.samples)

    run = price(Counts.from_ledger(ledger()), Watch(), SHAPES)
    assert [(r.layer, r.samples, r.batch, r.block) for r in seen] == [
        ("b.conv", 5, 5, "b"), ("b.gate", 5, 5, None), ("head", 5, 5, None),
    ]  # fmt: skip
    assert seen[1].shape == LayerShape("linear", 7, 7)  # 50 MACs in a square
    assert run.by_epoch[:, 0].tolist() == pytest.approx([5 + 500 / 49 + 10, 2 * (5 + 500 / 49 + 10)])


def test_frame_has_every_executed_key_and_the_overhead() -> None:
    table = price(Counts.from_ledger(ledger()), create("fractrain-fitted"), SHAPES).frame()
    assert list(table["layer"]) == ["b.conv", "b.gate", "head"] * 2 + [OVERHEAD] * 2
    assert table["macs"].sum() == Counts.from_ledger(ledger()).macs.sum()
    whole = price(Counts.from_ledger(ledger()), create("fractrain-fitted"), SHAPES).until()
    assert table.filter(like="seconds_").to_numpy().sum() == pytest.approx(whole.seconds.total)


def test_unknown_layers_are_a_problem_only_where_shapes_are_needed() -> None:
    class Shapes(HardwareModel):
        name, needs_geometry = "shapes", True

        def row(self, row: WorkRow) -> Cost:
            return Cost(cycles=row.samples)

    counts = Counts.from_ledger(ledger())
    assert price(counts, create("bit-product"), {}).until().cycles > 0
    with pytest.raises(ConfigError, match=r"shapes, layer b.conv FW at 4 x 8 bits: layer 'b.conv' is not known"):
        price(counts, Shapes(), {})
    unknown = Ledger({"blocks": ["b"]})
    unknown.samples(1)
    unknown.count("x", 1, lambda: [Entry("b.conv", "FW", 8, 8, 5)])
    with pytest.raises(ConfigError, match="needs the batch size"):
        price(Counts.from_ledger(unknown), Shapes(), SHAPES)


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (Cost(cycles=math.nan), "cycles of b.conv FW at 4 x 8 bits is nan"),
        (Cost(Parts(dram=-1.0)), "seconds_dram of b.conv FW at 4 x 8 bits is -"),
        (Cost(joules=Parts(compute=math.inf)), "joules_compute of b.conv FW at 4 x 8 bits is inf"),
        (None, "AttributeError"),
        (
            ZeroDivisionError("no width 4\nat all"),
            "b.conv FW at 4 x 8 bits: ZeroDivisionError: no width 4 at all",
        ),
    ],
)
def test_a_model_that_fails_or_returns_no_cost_is_one_line(result: Any, told: str) -> None:
    class Broken(HardwareModel):
        name = "broken"

        def row(self, row: WorkRow) -> Cost:
            if isinstance(result, Exception):
                raise result
            return result  # type: ignore[no-any-return]

    with pytest.raises(PluginError, match=told) as caught:
        price(Counts.from_ledger(ledger()), Broken(), SHAPES)
    assert "\n" not in str(caught.value)


def test_a_model_that_prices_too_few_rows_is_one_line() -> None:
    class Few(HardwareModel):
        name, additive = "few", False

        def work(self, work: Workload) -> Priced:
            return Priced([])

    with pytest.raises(PluginError, match="few: priced 0 rows of 3"):
        price(Counts.from_ledger(ledger()), Few(), SHAPES)


def test_an_empty_ledger_is_refused() -> None:
    with pytest.raises(ConfigError, match="no work of phase 'train'"):
        Counts.from_ledger(Ledger())


LINES = [{"epoch": 0, "seconds": 4.0, "joules": 50.0}, {"epoch": 1, "seconds": 9.0, "joules": 80.0}]


def test_measured_is_what_clock_and_meter_said() -> None:
    recorded = Recorded.from_metrics(LINES)
    assert (recorded.seconds, recorded.joules) == ({0: 4.0, 1: 5.0}, {0: 50.0, 1: 30.0})
    run = price(Counts.from_ledger(ledger()), create("measured"), recorded=recorded)
    assert (run.until(0).seconds.total, run.until().seconds.total) == (4.0, 9.0)
    assert (run.until(0).joules.total, run.until().joules.total) == (50.0, 80.0)
    assert run.until().cycles == 0


def test_what_was_not_measured_is_no_number() -> None:
    without = Recorded.from_metrics([{**line, "joules": None} for line in LINES])
    run = price(Counts.from_ledger(ledger()), create("measured"), recorded=without)
    assert run.until().seconds.total == 9
    assert math.isnan(run.until().joules.total)
    partly = Recorded.from_metrics([{**LINES[0], "joules": None}, LINES[1]])
    assert partly.joules == {}  # the meter was not there from the start
    with pytest.raises(ConfigError, match="not measured"):
        price(Counts.from_ledger(ledger()), create("measured"))


def test_formats_and_scales_reach_the_model() -> None:
    seen: list[WorkRow] = []

    class Watch(HardwareModel):
        name = "watch"

        def row(self, row: WorkRow) -> Cost:
            seen.append(row)
            return Cost(cycles=1.0)

    found = Ledger()
    found.samples(1)
    found.count("x", 1, lambda: [Entry("b", "FW", 8, 8, 5, "e4m3/e8m0", "", 0.25, 0.0), Entry("b", "FW", 8, 8, 7)])
    price(Counts.from_ledger(found), Watch())
    assert [(row.formats, row.scales) for row in seen] == [(("", ""), (0.0, 0.0)), (("e4m3/e8m0", ""), (0.25, 0.0))]
