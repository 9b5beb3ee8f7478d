"""Loops that call a model in parts, freeze parts of it, write its weights without a trace, or look at its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_models import Residual, Waves, batches, chain, seeded
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import fractrain
from fractrain.methods import registry
from fractrain.util.errors import ConfigError

X = next(batches(1))[0]
OPTIONS: dict[str, dict[str, Any]] = {"cpt": {"total_steps": 8}, "slu": {"bits": 8, "grad_bits": 8}}
TWO = pytest.mark.parametrize("build", [Residual, Waves])


def products(session: fractrain.Session) -> dict[tuple[str, str], int]:
    return {(r.layer, r.product): r.macs for r in session.ledger.rows() if r.phase == "train"}


@TWO
@pytest.mark.parametrize("method", ["fp32", "fp8", "dfq"])
def test_a_step_whose_products_nobody_could_count_is_refused_in_a_line(build: Any, method: str) -> None:
    session = fractrain.attach(method, seeded(build))
    optimizer = session.optimizer(lr=0.05)

    def step(run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        session.loss(run(X).square().mean()).backward()
        optimizer.step()
        session.step()

    step(session.model)
    for run in (session.model.stem if build is Residual else lambda x: session.model.stem(x.flatten(2)),
                session.model.eval()):  # fmt: skip
        with pytest.raises(ConfigError, match=r"without a pass through session\.model in training mode") as error:
            step(run)
        assert "\n" not in str(error.value)
    session.model.train()
    step(session.model)
    assert session.ledger.sample_count("train", 0) == 2 * len(X)


@TWO
@pytest.mark.parametrize("method", ["sbm", "fp8", "dfq", "slu"])
def test_a_part_that_is_frozen_in_evaluation_mode_is_counted_as_it_runs(build: Any, method: str) -> None:
    options = {"threshold": "skipnet", **OPTIONS["slu"]} if method == "slu" else {}
    whole, session = (fractrain.attach(method, seeded(build), **options) for _ in range(2))
    session.model.block1.eval()
    for one in (whole, session):
        one.loss(one.model(X).square().mean()).backward()
        one.step()
    assert session.model.block1.conv1.weight.grad is not None
    gates = ("block1.gate", "block2.gate")  # one that is frozen does not learn
    rest = [{k: n for k, n in products(one).items() if k[0] not in gates} for one in (session, whole)]
    assert rest[0].keys() == rest[1].keys()
    assert rest[0] == rest[1]
    session.model.eval()
    session.model(X)  # with gradients, as many evaluate
    assert {r.product for r in session.ledger.rows() if r.phase == "eval"} == {"FW"}


def shift(model: nn.Module, seed: int, how: str) -> None:
    torch.manual_seed(seed)
    for p in model.parameters():
        noise = 0.3 * torch.randn_like(p)
        if how == "new storage":
            p.data = p.data + noise
        else:
            p.data.add_(noise)


@TWO
@pytest.mark.parametrize("how", ["new storage", "in place"])
@pytest.mark.parametrize("method", ["sbm", "mx", "dfq"])
def test_weights_written_without_a_trace_are_seen_in_the_next_pass(build: Any, method: str, how: str) -> None:
    """As evolution strategies do: forward passes in training mode, none backward."""
    session = fractrain.attach(method, seeded(build))
    other = copy.deepcopy(session.model)
    for seed in range(4):
        shift(session.model, seed, how)
        other.load_state_dict(session.model.state_dict())  # leaves a trace
        assert torch.equal(session.model(X), other(X))


@TWO
@pytest.mark.parametrize("method", ["sbm", "fp32"])
def test_weights_given_for_one_call_are_used_in_it(build: Any, method: str) -> None:
    session = fractrain.attach(method, seeded(build))
    outs = []
    with torch.no_grad():
        for factor in (1.0, 0.5, 1.0):
            weights = {n: p * factor for n, p in session.model.named_parameters()}
            outs.append(functional_call(session.model, weights, (X,)))
            del weights
    assert torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[1])


class Nested(nn.Module):
    """Dicts, lists, tuples and plain values in and out."""

    def __init__(self, inner: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner, self.a, self.b = inner(), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, count: int, batch: dict[str, Any], *more: list[torch.Tensor], scale: Any = None) -> Any:
        y = self.inner(batch["images"][0]) + more[0][0] * (scale or {"by": 1})["by"]
        return {"out": (self.b(torch.relu(self.a(y))), [y]), "count": count}


@pytest.mark.parametrize("build", [chain, Waves])
@pytest.mark.parametrize("method", [m for m in registry.names() if m not in ("dfq", "fractrain", "slu")])
def test_nested_inputs_and_outputs(build: Any, method: str) -> None:
    session = fractrain.attach(method, seeded(lambda: Nested(build)), **OPTIONS.get(method, {}))
    optimizer = session.optimizer(lr=0.05)
    for x, y in batches(2):
        out = session.model(2, {"images": (x, None), "name": "a"}, [torch.ones(4, 4)], scale={"by": 0.5})
        assert out["count"] == 2
        session.loss(F.cross_entropy(out["out"][0], y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    assert session.ledger.sample_count("train", 0) == 8
    session.model.eval()(2, {"images": [X]}, [torch.ones(4, 4)])
    plain = session.detach() if method != "wageubn" else session.model
    assert plain(2, {"images": [X]}, [torch.ones(4, 4)])["out"][0].isfinite().all()


@pytest.mark.parametrize("build", [chain, Residual])
def test_detach_leaves_hooks_of_the_user_and_takes_ours(build: Any) -> None:
    seen: list[str] = []
    session = fractrain.attach("cpt", seeded(build), total_steps=4)  # has a hook of its own
    session.model.register_forward_hook(lambda *_: seen.append("after attach"))
    session.model(X)
    plain = session.detach()
    seen.clear()
    plain(X)
    assert seen == ["after attach"]
    assert not plain._forward_pre_hooks


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "parametrized": parametrizations.weight_norm,
}


@TWO
@pytest.mark.parametrize("how", CHANGES)
def test_weights_replaced_since_attach_train_and_are_refused_in_words(build: Any, how: str) -> None:
    session = fractrain.attach("sbm", seeded(build))
    layer = session.model.block2.conv1
    CHANGES[how](layer)
    session.loss(session.model(X).square().mean()).backward()
    session.step()
    for call in (session.plain_state_dict, session.detach):
        with pytest.raises(ConfigError, match=r"block2\.conv1\.weight of the plain .* replaced since attach") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("build", [chain, Residual])
def test_a_gradient_of_a_gradient_is_refused_in_torch_s_words(build: Any) -> None:
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(fractrain.attach("sbm", seeded(build)).model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        g.square().sum().backward()
