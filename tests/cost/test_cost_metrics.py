"""Ledger metrics against hand counts, and against a slow loop over single samples on random ledgers."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_forms import published_macs

from fractrain.cost import metrics
from fractrain.cost.formulas import AUTHORS_FORWARD_MACS, static_cp
from fractrain.cost.ledger import Entry, Ledger
from fractrain.cost.metrics import block_of
from fractrain.util.errors import ConfigError


def layer(name: str, macs: int, a: int, g: int, w: int | None = None) -> list[Entry]:
    """The three products of one layer."""
    w = a if w is None else w
    return [Entry(name, "FW", a, w, macs), Entry(name, "EB", g, w, macs), Entry(name, "GC", a, g, macs)]


def count(ledger: Ledger, work: str, units: int, entries: list[Entry]) -> None:
    ledger.count(work, units, lambda: entries)


def static_ledger(a: int, g: int, w: int | None = None, epochs: int = 2, samples: int = 10) -> Ledger:
    ledger = Ledger({"blocks": ["b.0", "b.1"], "forward_macs": 1000})
    for epoch in range(epochs):
        ledger.begin("train", epoch)
        ledger.samples(samples)
        count(ledger, "stem", samples, layer("stem", 100, 32, 32))
        count(ledger, "b0", samples, layer("b.0.conv", 300, a, g, w))
        count(ledger, "b1", samples, layer("b.1.conv", 600, a, g, w))
    return ledger


# -- hand counts -----------------------------------------------------------------------------------------------------


def test_hand_count() -> None:
    ledger = Ledger({"blocks": ["b"], "forward_macs": 30})
    ledger.begin("train", 0)
    ledger.samples(2)
    count(ledger, "stem", 2, [Entry("stem", "FW", 32, 32, 10), Entry("stem", "GC", 32, 32, 10)])
    count(ledger, "conv", 2, layer("b.conv", 20, 4, 8))
    count(ledger, "gate", 2, [Entry("b.gate.fc", "FW", 32, 32, 3)])
    assert metrics.raw_macs(ledger) == 2 * (10 + 10 + 3 * 20 + 3)
    bits = 2 * ((10 + 10 + 3) * 1024 + 20 * (4 * 4 + 8 * 4 + 4 * 8))
    assert metrics.bitops(ledger) == bits
    assert metrics.effective_macs(ledger) == bits / 1024
    assert metrics.cp(ledger) == pytest.approx(100 * (16 + 32 + 32) / 3 / 1024, rel=1e-14)
    assert metrics.summarize(ledger, 0).gate_overhead == 3 / 30
    assert metrics.summarize(ledger, 0).end.macs_paper == pytest.approx(metrics.cp(ledger) / 100 * 2 * 3 * 30)


@pytest.mark.parametrize(("a", "g", "w"), [(8, 8, None), (8, 12, None), (8, 16, None), (6, 8, None), (6, 12, 4)])
def test_static_training_has_the_closed_form_cp(a: int, g: int, w: int | None) -> None:
    ledger = static_ledger(a, g, w)
    assert metrics.cp(ledger) == pytest.approx(static_cp(a, g, w), rel=1e-14)
    assert metrics.summarize(ledger, 0).end.macs_paper == pytest.approx(published_macs(static_cp(a, g, w), 2, 10, 1000))


def test_floating_point_is_100_percent_and_effective_equals_raw() -> None:
    ledger = static_ledger(32, 32)
    assert metrics.cp(ledger) == 100.0
    assert metrics.effective_macs(ledger) == metrics.raw_macs(ledger) == 2 * 10 * 3 * 1000


def test_published_dfq_macs_from_a_ledger() -> None:
    """130 epochs of 390 batches of 128 at cp 3 %: 50,700 iterations, the ResNet-38 CIFAR-10 row (4.96e13)."""
    ledger = Ledger({"blocks": ["b"], "forward_macs": AUTHORS_FORWARD_MACS["resnet38"]})
    for epoch in range(164):
        ledger.begin("train", epoch)
        ledger.samples(390 * 128)
        # (21 * 4*8 + 4 * 6*4) / (25 * 1024) = 0.03
        count(ledger, "b", 390 * 128, [Entry("b.conv", "FW", 4, 8, 21), Entry("b.conv", "GC", 6, 4, 4)])
    assert metrics.cp(ledger) == pytest.approx(3.0, rel=1e-14)
    macs = metrics.summarize(ledger, best_epoch=129).best.macs_paper
    assert macs == pytest.approx(4.96e13, abs=5e10)
    assert macs == pytest.approx(published_macs(3, 50_700, 128, 84.9e6))


# -- blocks, gates, weights ------------------------------------------------------------------------------------------


def test_a_layer_belongs_to_its_longest_dotted_prefix() -> None:
    blocks = frozenset({"layer1.1", "layer1.10", "layer1.10.inner", "head"})
    assert block_of("layer1.1.conv", blocks) == "layer1.1"
    assert block_of("layer1.10.conv", blocks) == "layer1.10"
    assert block_of("layer1.10.inner.conv.x", blocks) == "layer1.10.inner"
    assert block_of("layer1.100.conv", blocks) is None
    assert block_of("head", blocks) == "head"
    assert block_of("stem", blocks) is None
    assert block_of("layer1.1.gate.fc", blocks) is None
    assert block_of("layer1.1.gated.fc", blocks) == "layer1.1"
    assert block_of("gate.layer", frozenset({"gate.layer"})) == "gate.layer"
    assert block_of("anything", frozenset()) == ""


def test_stem_classifier_and_gates_are_not_in_cp_but_in_effective_macs() -> None:
    ledger = static_ledger(4, 8)
    before, cost = metrics.cp(ledger), metrics.effective_macs(ledger)
    count(ledger, "gate", 7, layer("b.0.gate.lstm", 50, 32, 32))
    count(ledger, "fc", 7, layer("fc", 5, 16, 16))
    assert metrics.cp(ledger) == before
    assert metrics.effective_macs(ledger) == cost + 7 * 3 * (50 + 5 / 4)


def test_blocks_count_alike_whatever_their_size_unless_weighted() -> None:
    ledger = Ledger({"blocks": ["x", "y"]})
    ledger.samples(1)
    count(ledger, "x", 1, layer("x.c", 1, 8, 8))
    count(ledger, "y", 1, layer("y.c", 999, 16, 16))
    assert metrics.cp(ledger) == pytest.approx((6.25 + 25) / 2)
    for weights, expected in (([3, 1], 10.9375), ({"y": 1, "x": 3}, 10.9375), ([0, 2], 25)):
        ledger.meta["block_weights"] = weights
        assert metrics.cp(ledger) == pytest.approx(expected)
    ledger.meta.pop("blocks"), ledger.meta.pop("block_weights")
    assert metrics.cp(ledger) == pytest.approx((6.25 + 999 * 25) / 1000)  # all layers as one


def test_within_a_block_layers_count_by_their_macs() -> None:
    ledger = Ledger({"blocks": ["x"]})
    count(ledger, "x", 4, layer("x.a", 10, 8, 8) + layer("x.b", 30, 16, 16))
    assert metrics.cp(ledger) == pytest.approx((10 * 6.25 + 30 * 25) / 40)


def test_a_skipped_product_costs_nothing_but_stays_in_the_denominator() -> None:
    ledger = Ledger({"blocks": ["x"], "forward_macs": 10})
    ledger.samples(4)
    count(ledger, "run", 3, layer("x.c", 10, 32, 32))
    count(ledger, "skip", 1, layer("x.c", 10, 0, 0))
    assert metrics.cp(ledger) == 75.0
    assert metrics.raw_macs(ledger) == metrics.effective_macs(ledger) == 90
    assert metrics.summarize(ledger, 0).end.macs_paper == 90


def test_train_and_eval_are_kept_apart() -> None:
    ledger = static_ledger(8, 8, epochs=1)
    ledger.begin("eval", 0)
    ledger.samples(5)
    count(ledger, "e0", 5, [Entry("b.0.conv", "FW", 4, 4, 300)])
    count(ledger, "e1", 5, [Entry("b.1.conv", "FW", 4, 4, 600)])
    assert metrics.cp(ledger) == 6.25
    assert metrics.cp(ledger, phase="eval") == 100 * 16 / 1024
    assert metrics.raw_macs(ledger, phase="eval") == 5 * 900


# -- random ledgers against a slow loop ------------------------------------------------------------------------------

CANDIDATES = [(3, 6), (4, 6), (4, 8), (6, 8), (6, 12)]


def random_run(seed: int) -> tuple[Ledger, list[dict[str, Any]]]:
    """A ledger filled as a gated network fills it, and the same run as one record per sample, layer and product."""
    rng = random.Random(seed)
    blocks = [f"layer.{i}" for i in range(rng.randint(1, 4))]
    macs = {b: [rng.randint(1, 10**6) for _ in range(rng.randint(1, 3))] for b in blocks}
    ledger = Ledger({"blocks": blocks, "forward_macs": 12345})
    records: list[dict[str, Any]] = []

    def block_entries(b: str, k: int) -> list[Entry]:
        return [e for i, m in enumerate(macs[b]) for e in layer(f"{b}.conv{i}", m, *CANDIDATES[k], 4)]

    def note(epoch: int, entries: list[Entry]) -> None:
        records.extend({"epoch": epoch, **e._asdict()} for e in entries)

    for epoch in range(rng.randint(1, 3)):
        ledger.begin("train", epoch)
        for _ in range(rng.randint(1, 3)):
            batch = rng.randint(1, 9)
            ledger.samples(batch)
            fixed = [*layer("stem", 77, 32, 32), Entry("layer.0.gate.fc", "FW", 32, 32, 5)]
            count(ledger, "fixed", batch, fixed)
            for _ in range(batch):
                note(epoch, fixed)
            for b in blocks:
                chosen = [rng.randrange(len(CANDIDATES)) for _ in range(batch)]
                units = torch.bincount(torch.tensor(chosen), minlength=len(CANDIDATES))
                works = tuple(f"{b}/{k}" for k in range(len(CANDIDATES)))
                ledger.count_selected(works, units, lambda k, b=b: block_entries(b, k))
                for k in chosen:
                    note(epoch, block_entries(b, k))
    return ledger, records


def slow_cp(records: list[dict[str, Any]], blocks: list[str]) -> Fraction:
    ratios = []
    for b in blocks:
        mine = [r for r in records if r["layer"].startswith(b + ".conv")]
        cost = sum(Fraction(r["macs"] * r["bits1"] * r["bits2"], 1024) for r in mine)
        ratios.append(cost / sum(r["macs"] for r in mine))
    return 100 * sum(ratios) / len(ratios)


@pytest.mark.parametrize("seed", range(12))
def test_random_ledgers_agree_with_a_loop_over_single_samples(seed: int) -> None:
    ledger, records = random_run(seed)
    blocks = ledger.meta["blocks"]
    for until in [*ledger.epochs(), None]:
        kept = [r for r in records if until is None or r["epoch"] <= until]
        assert metrics.raw_macs(ledger, until) == sum(r["macs"] for r in kept)
        assert metrics.bitops(ledger, until) == sum(r["macs"] * r["bits1"] * r["bits2"] for r in kept)
        exact = sum(Fraction(r["macs"]) * Fraction(r["bits1"], 32) * Fraction(r["bits2"], 32) for r in kept)
        assert metrics.effective_macs(ledger, until) == float(exact)
        assert metrics.cp(ledger, until) == pytest.approx(float(slow_cp(kept, blocks)), rel=1e-12)
        samples = sum(r["layer"] == "stem" and r["product"] == "FW" for r in kept)
        # cp is linear in samples, so the sum over epochs equals the pooled cp times all samples
        summary = metrics.summarize(ledger, max(ledger.epochs()) if until is None else until)
        assert summary.best.macs_paper == pytest.approx(
            float(slow_cp(kept, blocks)) / 100 * samples * 3 * 12345, rel=1e-12
        )
        forward = [r for r in kept if r["product"] == "FW"]
        gates = sum(r["macs"] for r in forward if "gate" in r["layer"])
        if until is None:
            assert summary.gate_overhead == gates / (sum(r["macs"] for r in forward) - gates)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.lists(st.tuples(st.integers(1, 31), st.integers(1, 31), st.integers(1, 31)), min_size=2, max_size=4),
    which=st.integers(0, 11),
    units=st.integers(1, 1000),
)
def test_every_cost_rises_strictly_with_each_width(bits: list[tuple[int, ...]], which: int, units: int) -> None:
    def build(widths: list[tuple[int, ...]]) -> Ledger:
        ledger = Ledger({"blocks": [f"b.{i}" for i in range(len(widths))], "forward_macs": 50})
        ledger.samples(units)
        for i, (a, g, w) in enumerate(widths):
            count(ledger, str(i), units, layer(f"b.{i}.conv", 10 + i, a, g, w))
        return ledger

    block, operand = divmod(which, 3)
    block %= len(bits)
    raised = [list(b) for b in bits]
    raised[block][operand] += 1
    low, high = build(bits), build([tuple(b) for b in raised])
    for figure in (metrics.cp, metrics.effective_macs, metrics.bitops):
        assert figure(high) > figure(low)
    assert metrics.raw_macs(high) == metrics.raw_macs(low)
    more, less = (metrics.summarize(ledger, 0).end.macs_paper for ledger in (high, low))
    assert more > less  # type: ignore[operator]


# -- summary ---------------------------------------------------------------------------------------------------------


def test_summary_at_best_and_at_end() -> None:
    ledger = static_ledger(8, 8, epochs=5)
    ledger.meta["forward_macs"] = 83_280_512
    summary = metrics.summarize(ledger, best_epoch=2)
    for point, epochs in ((summary.best, 3), (summary.end, 5)):
        assert (point.epoch, point.samples) == (epochs - 1, 10 * epochs)
        assert point.raw_macs == 3000 * 10 * epochs
        assert point.effective_macs == metrics.effective_macs(ledger, epochs - 1) == point.bitops / 1024
        assert point.cp_percent == 6.25
        assert point.macs_paper == pytest.approx(0.0625 * 10 * epochs * 3 * 83_280_512)
    assert summary.gate_overhead == 0.0
    flat = summary.as_dict()
    assert flat["macs_paper@best"] == summary.best.macs_paper
    assert len(flat) == 2 * 9 + 1


def test_cost_of_the_whole_model_counts_stem_and_gates_against_full_precision_without_gates() -> None:
    ledger = Ledger({"blocks": ["b"], "forward_macs": 1100})
    ledger.samples(4)
    entries = [
        Entry("stem", "FW", 32, 32, 100), Entry("stem", "GC", 32, 32, 100), Entry("b.gate.fc", "FW", 32, 32, 10),
        Entry("b.conv", "FW", 8, 8, 1000), Entry("b.conv", "EB", 8, 8, 1000), Entry("b.conv", "GC", 0, 0, 1000),
    ]  # fmt: skip
    ledger.count("step", 4, lambda: entries)
    point = metrics.summarize(ledger, 0).end
    assert point.cost_percent == pytest.approx(100 * (200 + 10 + 2 * 1000 / 16) / 3200, rel=1e-12)
    assert point.cp_percent == pytest.approx(100 * (2 / 16) / 3, rel=1e-12)
    ledger = Ledger({"blocks": ["b"], "forward_macs": 1100})
    ledger.samples(1)
    ledger.count("step", 1, lambda: [Entry("stem", "FW", 32, 32, 100), Entry("b.c", "FW", 32, 32, 7)])
    assert metrics.summarize(ledger, 0).end.cost_percent == 100


def test_summary_without_forward_macs() -> None:
    ledger = static_ledger(8, 8)
    del ledger.meta["forward_macs"]
    assert metrics.summarize(ledger, 1).end.macs_paper is None


# -- bad input -------------------------------------------------------------------------------------------------------


def test_an_empty_ledger_is_refused_where_a_ratio_is_asked() -> None:
    ledger = Ledger({"forward_macs": 1})
    assert metrics.raw_macs(ledger) == 0
    assert metrics.effective_macs(ledger) == 0
    for figure in (metrics.cp, metrics.cost_percent):
        with pytest.raises(ConfigError, match="no work of phase 'train'"):
            figure(ledger)
    with pytest.raises(ConfigError, match="no work"):
        metrics.summarize(ledger, 0)
    with pytest.raises(ConfigError, match="up to epoch -1"):
        metrics.cp(static_ledger(8, 8), until_epoch=-1)


def test_wrong_names_and_numbers_are_refused() -> None:
    ledger = static_ledger(8, 8)
    with pytest.raises(ConfigError, match="best_epoch=2: the ledger holds epochs 0 to 1"):
        metrics.summarize(ledger, 2)
    named = {"b.0": 1, "b.1": 1, "b.2": 1}
    for weights, wrong in (
        ([1, 1, 1], "3 block weights for 2 blocks"), (named, r"b\.2 missing or unknown"), ([0, 0], "negative"),
        ([2, -1], "negative"),
    ):  # fmt: skip
        ledger.meta["block_weights"] = weights
        with pytest.raises(ConfigError, match=wrong):
            metrics.cp(ledger)
    del ledger.meta["block_weights"]
    ledger.meta["blocks"] = ["b.0", "b.7"]
    with pytest.raises(ConfigError, match=r"'b\.7' of the ledger did no work"):
        metrics.cp(ledger)


def test_work_without_samples_is_refused() -> None:
    ledger = Ledger({"forward_macs": 1})
    count(ledger, "x", 1, layer("x", 1, 8, 8))
    with pytest.raises(ConfigError, match="no samples in epoch 0"):
        metrics.summarize(ledger, 0)


def test_quantized_bit_operations_leave_out_what_has_a_floating_point_operand() -> None:
    ledger = Ledger()
    ledger.samples(3)
    work = [Entry("a", "FW", 8, 4, 10), Entry("a", "EB", 8, 32, 10), Entry("head", "FW", 32, 32, 5)]
    ledger.count("x", 3, lambda: work)
    point = metrics.summarize(ledger, 0).end
    assert (point.quantized_bitops, point.bitops) == (3 * 320, 3 * (320 + 2560 + 5120))
