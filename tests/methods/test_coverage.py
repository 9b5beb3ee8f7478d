"""What a session says of the products that really ran, on models that hide them from a list of modules."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from field_models import Attention, CrossAttention, Encoder, Functional, Recurrent, UNet, Upsampler
from layer_models import LowRank, Residual, Standardized, batches, chain, seeded
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fractrain
from fractrain.util.errors import ConfigError

MODELS: list[Callable[[], nn.Module]] = [Residual, chain, Upsampler, UNet, Functional, Attention]


def step(session: fractrain.Session, count: int = 1) -> None:
    for x, y in batches(count):
        session.loss(nn.functional.cross_entropy(session.model(x), y)).backward()
        session.step()


def macs_of(model: nn.Module, x: torch.Tensor) -> int:
    """Forward MACs by PyTorch's own counter."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("method", ["fp32", "sbm", "pfq", "dfq"])
@pytest.mark.parametrize("build", MODELS, ids=lambda b: b.__name__)
def test_the_report_has_every_multiply_accumulate_of_the_plain_model(build, method: str) -> None:
    plain = seeded(build)
    x, _ = next(batches(1))
    want = macs_of(copy.deepcopy(plain).train(), x)
    if method == "dfq" and build is not Residual:
        pytest.skip("no blocks to gate")
    session = fractrain.attach(method, plain)
    step(session)
    report = session.report()
    assert report.macs == want
    assert sum(report.percent(s) for s in ("quantized", "float", "outside")) == pytest.approx(100)
    assert (report.percent("quantized") > 0) == (method != "fp32")


@pytest.mark.parametrize("build", MODELS, ids=lambda b: b.__name__)
def test_the_ledger_has_what_the_report_has_in_training_and_evaluation(build) -> None:
    session = fractrain.attach("sbm", seeded(build))
    step(session, 3)
    forward = sum(r.macs for r in session.ledger.rows() if r.product == "FW")
    assert forward == 3 * session.report().macs
    session.model.eval()
    with torch.no_grad():
        session.model(next(batches(1))[0])
    evaluated = sum(r.macs for r in session.ledger.rows() if r.phase == "eval")
    assert evaluated == session.report().macs  # no backward products


def test_another_shape_is_watched_anew_and_a_known_one_is_not() -> None:
    session = fractrain.attach("sbm", seeded(Functional))
    for side in (8, 12, 8):
        session.loss(session.model(torch.randn(2, 3, side, side)).sum()).backward()
        session.step()
    counted = sum(r.macs for r in session.ledger.rows() if r.product == "FW")
    plain = seeded(Functional)
    assert counted == 2 * macs_of(plain, torch.randn(2, 3, 8, 8)) + macs_of(plain, torch.randn(2, 3, 12, 12))


def test_backward_products_outside_of_layers_are_counted_where_they_run() -> None:
    model = seeded(Functional)
    model.mixer.requires_grad_(False)
    session = fractrain.attach("sbm", model)
    step(session)
    by_product = {
        product: {r.macs for r in session.ledger.rows() if r.product == product and r.layer == ""}
        for product in ("FW", "EB", "GC")
    }
    rows = [r for r in session.ledger.rows() if r.layer == ""]  # the model's own code
    assert {r.bits1 for r in rows} == {32}
    frozen = next(p for p in session.report().products if p.operation == "bmm")
    assert frozen.eb
    assert not frozen.gc
    assert by_product["FW"] == by_product["EB"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda k: k.__name__)
def test_recurrent_layers_are_named_and_counted_at_32_bits(kind: type[nn.RNNBase]) -> None:
    model = seeded(lambda: Recurrent(kind))
    want = model.recurrent_macs(4, 8)
    session = fractrain.attach("sbm", model)
    step(session)
    found = [p for p in session.report().products if p.name == "cell"]
    assert sum(p.macs for p in found) == want
    assert {(p.status, p.why) for p in found} == {("outside", "recurrent layers stay in floating point")}
    counted = {
        p: sum(r.macs for r in session.ledger.rows() if r.layer == "cell" and r.product == p) for p in ("FW", "GC")
    }
    assert counted == {"FW": want, "GC": want}


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Standardized(4, 4, 3), nn.Flatten(), nn.Linear(64, 4)),
            "Standardized may",
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), LowRank(8, 4), nn.Linear(4, 4)), "LowRank may compute"),
    ],
    ids=["convolution", "linear"],
)
def test_layers_with_a_computation_of_their_own_are_named_with_the_reason(layer, why: str) -> None:
    session = fractrain.attach("pfq", seeded(lambda: nn.Sequential(*layer())))
    step(session)
    outside = session.report().outside
    assert len(outside) >= 1
    assert outside[0].why.startswith(why)


def test_the_method_s_own_choices_are_named() -> None:
    session = fractrain.attach("static8", seeded(chain))
    step(session)
    assert [(p.name, p.status, p.why) for p in session.report().products] == [
        ("0", "float", "the method leaves the first layer"),
        ("3", "quantized", ""),
        ("8", "quantized", ""),
        ("10", "float", "the method leaves the last layer"),
    ]
    assert "0.6 % outside" not in str(session.report())
    assert str(session.report()).splitlines()[1].split()[2] == "0"


def test_gates_are_not_the_model_s_products() -> None:
    session = fractrain.attach("dfq", seeded(Residual))
    step(session)
    assert not [p for p in session.report().products if "gate" in p.name]
    assert session.report().covered == 100


@pytest.mark.parametrize("build", [Functional, Attention], ids=lambda b: b.__name__)
def test_strict_refuses_products_that_no_method_reaches(build, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fractrain"):
        session = fractrain.attach("sbm", seeded(build))
        step(session, 3)
    assert len([r for r in caplog.records if "session.report() names them" in r.message]) == 1
    strict = fractrain.attach("sbm", seeded(build), strict=True)
    with pytest.raises(ConfigError, match=r"% of the forward MACs are outside of layers that methods reach") as error:
        strict.model(next(batches(1))[0])
    assert "\n" not in str(error.value)
    fractrain.attach("sbm", seeded(chain), strict=True).model(next(batches(1))[0])


@pytest.mark.parametrize("build", [Functional, UNet, Residual], ids=lambda b: b.__name__)
def test_costs_lead_with_the_whole_model(build) -> None:
    session = fractrain.attach("sbm", seeded(build))
    step(session)
    costs = session.costs()
    assert next(iter(costs)) == "cost_percent"
    effective = sum(r.macs * r.bits1 * r.bits2 for r in session.ledger.rows()) / 1024
    assert costs["cost_percent"] == pytest.approx(100 * effective / costs["raw_macs"])
    assert costs["covered_percent"] == session.report().covered
    assert "% of 32-bit training" in repr(session)
    rest = f"methods reach {costs['covered_percent']:.1f} % of the forward MACs; the rest is at 32 bits"
    assert (rest in repr(session)) == (build is Functional)


def test_a_report_before_any_pass_says_so() -> None:
    with pytest.raises(ConfigError, match="before the first forward pass"):
        fractrain.attach("sbm", seeded(chain)).report()


def test_a_failed_pass_is_not_a_report_and_leaves_no_hooks() -> None:
    session = fractrain.attach("sbm", seeded(chain))
    with pytest.raises(RuntimeError, match="channels"):  # PyTorch's own words
        session.model(torch.randn(2, 5, 8, 8))
    with pytest.raises(ConfigError, match="before the first forward pass"):
        session.report()
    step(session)
    assert session.report().covered == 100
    own = [m for m in session.model.modules() if m is not session.model]
    assert not [m for m in own if m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called]


def test_fused_evaluation_of_an_encoder_is_counted() -> None:
    """PyTorch's fused operation computes the layer of a floating point model; its MACs are those of the plain parts."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    session = fractrain.attach("fp32", layer)
    x = torch.randn(2, 5, 16)
    session.model.eval()
    with torch.no_grad():
        session.model(x)
    assert session.report().macs == 2 * 5 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 5 * 5 * 16


@pytest.mark.parametrize("method", ["sbm", "pfq"])
@pytest.mark.parametrize("build", [Encoder, CrossAttention], ids=lambda b: b.__name__)
def test_layers_all_quantizes_what_the_papers_convolutions_leave(build, method: str, caplog) -> None:
    with caplog.at_level(logging.WARNING, "fractrain"):
        papers = fractrain.attach(method, seeded(build))
        step(papers)
    few = papers.report()
    left = 100 - few.percent("quantized")
    assert left > 80
    assert f"{method} leaves {left:.1f} % of the forward MACs of {build.__name__}" in caplog.text
    assert "layers=all" in caplog.text
    whole = fractrain.attach(method, seeded(build), layers="all")
    step(whole)
    assert whole.report().percent("quantized") > 95  # the classifier stays
    assert whole.costs()["cost_percent"] < papers.costs()["cost_percent"] / 2
