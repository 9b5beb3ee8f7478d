"""Products in a model's own code, reached by ``attach(..., example_inputs=x)``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from field_models import Functional
from layer_models import LowRank, Standardized, batches, seeded
from own_code_models import Attending, LayeredFunctional, LayeredWords, Tied, Words
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fractrain
from fractrain.methods import registry
from fractrain.util.errors import ConfigError

X = next(batches(1))[0]
BY_METHOD = [
    (Functional, LayeredFunctional, "sbm", {"layers": "all"}), (Functional, LayeredFunctional, "fp8", {}),
    (Functional, LayeredFunctional, "fp32", {}), (Words, LayeredWords, "sbm", {"layers": "all"}),
    (Words, LayeredWords, "static8", {}),
]  # fmt: skip


def standardized() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), Standardized(8, 8, 3), nn.Flatten(), nn.Linear(128, 8), LowRank(8, 4))


MODELS = pytest.mark.parametrize("build", [Functional, Words, standardized], ids=["functional", "words", "subclasses"])


def attach(method: str, model: nn.Module, **settings: Any) -> fractrain.Session:
    own = {"sbm": {"layers": "all"}, "cpt": {"total_steps": 8}}.get(method, {})
    return fractrain.attach(method, model, example_inputs=X, **own, **settings)


def train(session: fractrain.Session, steps: int = 3) -> list[torch.Tensor]:
    optimizer = session.optimizer(lr=0.05)
    seen = []
    for x, y in batches(steps):
        out = session.model(x)
        session.loss(F.cross_entropy(out, y)).backward()
        seen += [out.detach(), *(p.grad.clone() for p in session.model.parameters() if p.grad is not None)]
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    return [*seen, *(t.detach().clone() for t in session.plain_state_dict().values())]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize(("own", "layered", "method", "settings"), BY_METHOD)
def test_a_function_s_product_is_that_of_a_layer_of_its_name(
    own: Any, layered: Any, method: str, settings: Any
) -> None:
    ours = fractrain.attach(method, seeded(own), example_inputs=X, **settings)
    other = fractrain.attach(method, seeded(layered), **settings)
    for x, y in batches(2):
        outs = []
        for session in (ours, other):
            outs.append(session.model(x))
            session.model.zero_grad()
            session.loss(F.cross_entropy(outs[-1], y)).backward()
            session.step()
        assert torch.equal(*outs)
        wants = {n: p.grad for n, p in other.model.named_parameters()}
        given = {p.grad.double().abs().sum().item() for p in ours.model.parameters() if p.grad is not None}
        assert given == {g.double().abs().sum().item() for g in wants.values() if g is not None}
    assert {(p.name, p.status, p.macs) for p in ours.report().products} == {
        (p.name, p.status, p.macs) for p in other.report().products
    }
    assert ours.report().covered == 100
    rows = [sorted(map(str, s.ledger.rows())) for s in (ours, other)]
    assert rows[0] == rows[1]


@MODELS
def test_fp32_has_the_plain_model_s_bits(build: Any) -> None:
    plain = seeded(build)
    session = attach("fp32", copy.deepcopy(plain))
    assert same(train(session), train(fractrain.attach("fp32", copy.deepcopy(plain))))
    session = attach("fp32", copy.deepcopy(plain))
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for training in (True, False):
            with mode():
                assert torch.equal(session.model.train(training)(X), plain.train(training)(X))
    assert session.report().covered == 100


@MODELS
def test_sixteen_bits_are_near_the_plain_model_in_float64(build: Any) -> None:
    plain = seeded(build)
    session = attach("static", copy.deepcopy(plain), bits=16, grad_bits=16, layers="all")
    twin = plain.double()
    loss = session.model(X).square().mean()
    loss.backward()
    want = twin(X.double()).square().mean()
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-3)
    for p, q in zip(session.model.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).norm() <= 5e-3 * q.grad.norm() + 1e-6


@MODELS
def test_a_resumed_session_goes_on_with_the_same_bits(build: Any) -> None:
    def go(session: fractrain.Session, data: list[Any]) -> None:
        optimizer = torch.optim.SGD(session.model.parameters(), 0.05)
        for x, y in data:
            optimizer.zero_grad()
            session.loss(F.cross_entropy(session.model(x), y)).backward()
            optimizer.step()
            session.step()

    data = list(batches(4))
    whole, first, second = (attach("sbm", seeded(build)) for _ in range(3))
    go(whole, data)
    go(first, data[:2])
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    go(second, data[2:])
    assert same(*(list(s.model.state_dict().values()) for s in (whole, second)))
    assert any("functional" in name for name in whole.model.state_dict())
    assert list(whole.ledger.rows()) == list(second.ledger.rows())
    assert torch.equal(whole.model.eval()(X), second.model.eval()(X))


@MODELS
def test_copies_pickles_and_compiled_models_give_the_same_bits(build: Any) -> None:
    session = attach("sbm", seeded(build))
    train(session)
    session.model.eval()
    with torch.no_grad():
        want = session.model(X)
        assert torch.equal(copy.deepcopy(session.model)(X), want)
        assert torch.equal(pickle.loads(pickle.dumps(session.model))(X), want)
        assert torch.equal(torch.compile(session.model, backend="eager")(X), want)
    with torch.inference_mode():
        assert torch.equal(session.model(X), want)
    with pytest.raises(ConfigError, match="cannot be traced"):
        torch.fx.symbolic_trace(session.model)
    twin = copy.deepcopy(session.model)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2)
        assert torch.equal(session.model(X), want)
        assert not torch.equal(twin(X), want)


@MODELS
def test_a_detached_model_is_the_plain_one(build: Any) -> None:
    session, plain = attach("sbm", seeded(build)), seeded(build)
    weights = {n: t.clone() for n, t in session.plain_state_dict().items()}
    assert weights.keys() == plain.state_dict().keys()
    model = session.detach()
    assert str(model) == str(plain)
    assert not any("forward" in vars(m) for m in model.modules())
    assert torch.equal(model(X), plain(X))


class Checkpointed(Words):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patch(x).flatten(2).mT
        y = y + checkpoint(self.first, y, use_reentrant=False)
        return self.head((y + checkpoint(self.second, y, use_reentrant=True)).mean(1))


def test_whole_modules_may_be_checkpointed_and_functions_in_their_code_are_refused() -> None:
    assert same(train(attach("sbm", seeded(Checkpointed))), train(attach("sbm", seeded(Words))))
    for reentrant in (False, True):
        model = seeded(Words)
        model.second.checkpointed = reentrant
        session = attach("sbm", model)
        with pytest.raises(ConfigError, match=r"second\.functional\.matmul_2: activation checkpointing inside"):
            session.model(X)


def test_a_computed_weight_is_not_taken_for_one_before() -> None:
    session = attach("sbm", seeded(standardized))
    train(session, 1)
    with torch.no_grad():  # in training mode, where quantized weights are kept
        outs = [session.model(X)]
        for p in session.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        outs.append(session.model(X))
        session.model.eval()
        for layer in session.model.modules():
            if hasattr(layer, "forget_weights"):
                layer.forget_weights()
        session.model.train()
        assert torch.equal(session.model(X), outs[1])
    assert not torch.equal(*outs)


def test_a_product_that_the_examples_have_not_shown_is_named_and_computed_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x = torch.tensor([[0, 3], [6, 3]])  # one expert
    model = seeded(Tied)
    session = fractrain.attach("sbm", model, layers="all", example_inputs=x)
    session.model(x)
    assert session.report().covered == 100
    assert {p.operation for p in session.report().products} == {"QuantLinear"}
    two = torch.tensor([[0, 3], [6, 3], [1, 0]])
    caplog.clear()
    for _ in range(2):
        session.model(two)
    assert [r.message for r in caplog.records if "example_inputs" in r.message] == [
        "the model: a product (linear) that example_inputs has not shown stays in floating point, and is counted only "
        "where a first pass shows it"
    ]
    caplog.clear()
    other = fractrain.attach("fp32", seeded(Tied), example_inputs=x)
    assert torch.equal(other.model(two), seeded(Tied)(two))
    outside = other.report().outside
    assert not caplog.records
    assert [(p.name, p.why) for p in outside] == [("", "computed in the code of the model")]


def test_without_examples_nothing_changes_and_a_warning_names_them(caplog: pytest.LogCaptureFixture) -> None:
    session = fractrain.attach("sbm", seeded(Words), layers="all")
    session.model(X)
    assert session.report().covered < 90
    assert not any("functional" in name for name, _ in session.model.named_modules())
    assert "attach(..., example_inputs=x) reaches products in a model's own code" in caplog.text
    caplog.clear()
    attach("sbm", seeded(Words)).model(X)
    assert "example_inputs" not in caplog.text


def test_finding_leaves_random_numbers_modes_and_statistics_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), seeded(Functional))
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    session = attach("fp32", model)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert [m.training for m in (session.model, model[0], model[1], model[2].functional)] == [True, False, True, True]
    assert all(torch.equal(t, session.plain_state_dict()[n]) for n, t in before.items())


def test_inputs_by_name_and_by_place() -> None:
    for example in (X, (X,), {"x": X}):
        session = fractrain.attach("sbm", seeded(Words), layers="all", example_inputs=example)
        session.model(X)
        assert session.report().covered == 100


class Row(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(super().forward(x).flatten(1), torch.ones(2, 8 * 36))


def test_a_container_that_multiplies_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"the model \(Row\) multiplies in its own code, and has no place"):
        attach("sbm", Row(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize("method", ["dfq", "fractrain"])
def test_gates_choose_for_a_block_s_own_products(method: str) -> None:
    settings = {"forward": "authors"} if method == "dfq" else {}
    session = attach(method, seeded(Words), blocks=["first", "second"], **settings)
    train(session, 2)
    products = {p.name: p.status for p in session.report().products}
    own = {n for n in products if n.endswith(("mix_1", "matmul_1", "linear_1"))}
    assert len(own) == 6
    assert session.report().covered == 100
    if method == "dfq":
        assert {products[n] for n in own} == {"quantized"}
        widths = {(r.bits1, r.bits2) for r in session.ledger.rows() if r.layer == "second.functional.matmul_1"}
        assert all(max(pair) <= 12 for pair in widths)
    assert session.model.eval()(X).isfinite().all()


GATED = {"dfq", "fractrain", "slu"}


@pytest.mark.parametrize("method", [m for m in registry.names() if m not in GATED and m != "adam8bit"])
def test_every_method_trains_on_own_products(method: str) -> None:
    session = attach(method, seeded(standardized if method == "dorefa" else Words))  # dorefa refuses attention
    train(session, 2)
    assert session.report().covered == 100
    assert session.model.eval()(X).isfinite().all()


def test_attention_alone_may_be_the_model() -> None:
    x = torch.randn(2, 5, 16)
    plain = seeded(Attending)
    session = fractrain.attach("sbm", copy.deepcopy(plain), layers="all", example_inputs=x)
    y = session.model(x)
    assert not torch.equal(y, plain(x))
    torch.testing.assert_close(y, plain(x), rtol=0.1, atol=0.1)
