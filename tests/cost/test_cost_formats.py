"""Number formats in the ledger: names and scale bits beside widths; ledgers without them stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fractrain.cost import metrics
from fractrain.cost.formats import bits_with_scales, by_format, format_costs
from fractrain.cost.ledger import Entry, Ledger
from fractrain.layers.convert import convert
from fractrain.layers.state import QuantState
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.numerics.formats import Affine, PerAxis
from fractrain.numerics.precision import Operand, Precision


def counted(name: str, **settings: object) -> Ledger:
    """One step of three linear layers 64 -> 64 on four vectors; the first and the last are in float32."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    method = registry.create(name, settings)
    context = MethodContext()
    model = method.prepare(model, context).train()
    model(torch.randn(4, 64)).sum().backward()
    return context.ledger


def test_fp8_and_int8_have_equal_bitops_and_are_told_apart():
    fp8, int8 = counted("fp8"), counted("int8_rowwise")
    assert metrics.bitops(fp8) == metrics.bitops(int8)
    assert metrics.cp(fp8) == metrics.cp(int8)
    pairs = {(s.first, s.second): s.macs for s in by_format(fp8)}
    macs = 4 * 64 * 64
    assert pairs == {
        ("float32", "float32"): 5 * macs,  # the input of the first layer needs no gradient
        ("e4m3/float32", "e4m3/float32"): macs, ("e5m2/float32", "e4m3/float32"): macs,
        ("e4m3/float32", "e5m2/float32"): macs,
    }  # fmt: skip
    assert {(s.first, s.second): s.macs for s in by_format(int8)}[("int8/float32", "int8/float32")] == 3 * macs
    shares = by_format(fp8)
    assert sum(s.share_percent for s in shares) == pytest.approx(100)
    assert shares[0].cp_percent == 100.0
    assert shares[1].cp_percent == 6.25


def test_scales_are_a_figure_of_their_own():
    assert bits_with_scales(counted("mx", format="mxfp4")) == {"e2m1/e8m0": 4.25}
    assert bits_with_scales(counted("mx")) == {"e4m3/e8m0": 8.25}
    nvfp4 = bits_with_scales(counted("nvfp4", rotation=False, weights_2d=False))
    assert nvfp4 == {"e2m1/e4m3": 4.5}
    squares = bits_with_scales(counted("nvfp4"))
    assert squares["e2m1/e4m3 (rotated by 16)"] == 4.5
    assert squares["e2m1/e4m3"] == pytest.approx((4.5 + 2 * (4 + 8 / 256) + 4.5) / 4)  # A, W in FW and EB, E
    rows = bits_with_scales(counted("int8_rowwise"))
    # FW: A and W by rows of 64; EB: E by rows, W by columns of 64; GC: by columns of the batch, as long as it is
    assert rows == {"int8/float32": pytest.approx(8 + 4 / 6 * 32 / 64)}


def test_ragged_blocks_are_counted_whole():
    model = nn.Sequential(*(nn.Linear(40, 40) for _ in range(3)))
    context = MethodContext()
    registry.create("mx", {}).prepare(model, context).eval()(torch.randn(4, 40))
    (entry,) = [r for r in context.ledger.rows() if r.format1]  # FW alone
    assert (entry.scale1, entry.scale2) == (2 * 8 / 40, 2 * 8 / 40)


def test_a_ledger_of_grids_is_written_as_before():
    state = QuantState()
    model = convert(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
        Precision.of(Operand(8, Affine()), Operand(4, Affine(PerAxis(0))), Operand(6, Affine(rounding="stochastic"))),
        state, keep_last=False,
    )  # fmt: skip
    model.train()(torch.randn(2, 8)).sum().backward()
    assert all(len(entry) == 5 for entries in state.ledger.state_dict()["work"].values() for entry in entries)
    assert format_costs(state.ledger) == {}


def test_records_made_before_formats_still_evaluate():
    old = {
        "version": 1, "meta": {"forward_macs": 10, "blocks": []}, "work": {"a": [["a", "FW", 8, 4, 10]]},
        "units": [["train", 0, "a", 3]], "samples": [["train", 0, 3]],
    }  # fmt: skip
    ledger = Ledger()
    ledger.load_state_dict(old)
    assert metrics.bitops(ledger) == 30 * 32
    assert ledger.state_dict() == old
    assert [(s.first, s.second, s.macs) for s in by_format(ledger)] == [("int8", "int4", 30)]


def test_a_ledger_with_formats_is_read_back_and_merged():
    ledger = counted("mx")
    twin = Ledger()
    twin.load_state_dict(ledger.state_dict())
    assert twin.digest() == ledger.digest()
    twin.add(ledger.state_dict())
    assert sum(r.macs for r in twin.rows()) == 2 * sum(r.macs for r in ledger.rows())
    assert Entry("a", "FW", 8, 8, 1, "e4m3/e8m0", "", 0.25).as_list() == [
        "a",
        "FW",
        8,
        8,
        1,
        "e4m3/e8m0",
        "",
        0.25,
        0.0,
    ]
