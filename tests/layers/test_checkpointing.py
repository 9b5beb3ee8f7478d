"""Activation checkpointing: the same training, counted once, and the forward products done again counted as such."""

from __future__ import annotations

import pytest
import torch
from layer_models import Residual, batches, chain, seeded
from method_groups import FLOAT_METHODS
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fractrain
from fractrain.methods import registry
from fractrain.util.errors import ConfigError

OPTIONS = {"cpt": {"total_steps": 8}, "slu": {"bits": 8, "grad_bits": 8}}
GATED = ("dfq", "fractrain", "slu")
METHODS = registry.names()


class Checkpointed(Residual):
    """The blocks in one segment or in two, checkpointed or not."""

    reentrant: bool | None = None  # None: kept as usual
    apart = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        if self.reentrant is None:
            y = self.block2(self.block1(y))
        elif self.apart:
            for block in (self.block1, self.block2):
                y = checkpoint(block, y, use_reentrant=self.reentrant)
        else:
            y = checkpoint(lambda z: self.block2(self.block1(z)), y, use_reentrant=self.reentrant)
        return self.head(y.mean((2, 3)))


def attach(method: str, model: nn.Module) -> fractrain.Session:
    return fractrain.attach(method, model, **OPTIONS.get(method, {}))


def train(session: fractrain.Session, steps: int = 3) -> list[torch.Tensor]:
    optimizer = session.optimizer(lr=0.05)
    for x, y in batches(steps):
        session.loss(nn.functional.cross_entropy(session.model(x), y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    return [t.detach().clone() for t in session.model.state_dict().values()]


def macs(session: fractrain.Session, phase: str) -> dict[tuple[str, str, int, int], int]:
    found: dict[tuple[str, str, int, int], int] = {}
    for r in session.ledger.rows():
        if r.phase == phase:
            key = (r.layer, r.product, r.bits1, r.bits2)
            found[key] = found.get(key, 0) + r.macs
    return found


def check_same(plain: fractrain.Session, session: fractrain.Session, again: set[str]) -> None:
    """Weights, ranges, statistics and counts; ``again`` are the parts of the model that are run again."""
    before, after = train(plain), train(session)
    for name, a, b in zip(plain.model.state_dict(), before, after, strict=True):
        own = plain.method.name not in FLOAT_METHODS or ("running" not in name and "tracked" not in name)
        assert not own or torch.equal(a, b), name  # PyTorch's BatchNorm updates its statistics twice
    train_macs = macs(plain, "train")
    assert macs(session, "train") == train_macs
    assert macs(plain, "recompute") == {}
    forward = {k: n for k, n in train_macs.items() if k[1] == "FW" and k[0].split(".")[0] in again}
    assert forward
    assert macs(session, "recompute") == forward
    assert session.costs() == plain.costs()
    assert session.ledger.sample_count("train", 0) == plain.ledger.sample_count("train", 0) == 12


@pytest.mark.parametrize("apart", [True, False], ids=["two segments", "one"])
@pytest.mark.parametrize("method", METHODS)
def test_training_is_the_same_and_counted_once(method: str, apart: bool) -> None:
    plain, session = (attach(method, seeded(Checkpointed)) for _ in range(2))
    session.model.reentrant, session.model.apart = False, apart
    check_same(plain, session, {"block1", "block2"})


@pytest.mark.parametrize("apart", [True, False], ids=["two segments", "one"])
@pytest.mark.parametrize("method", METHODS)
def test_so_it_is_in_the_reentrant_form_where_no_gate_is_hidden(method: str, apart: bool) -> None:
    plain, session = (attach(method, seeded(Checkpointed)) for _ in range(2))
    session.model.reentrant, session.model.apart = True, apart
    if method in GATED:
        with pytest.raises(ConfigError, match="use_reentrant=False") as error:
            train(session)
        assert "\n" not in str(error.value)
    else:
        check_same(plain, session, {"block1", "block2"})


class Row(nn.Module):
    """Layers in a row, checkpointed as PyTorch's helper does it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain()
        self.reentrant: bool | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.reentrant is None:
            return self.layers(x)
        return checkpoint_sequential(self.layers, 3, x.requires_grad_(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["sbm", "static8"])
def test_layers_in_a_row(method: str, reentrant: bool) -> None:
    plain, session = (attach(method, seeded(Row)) for _ in range(2))
    session.model.reentrant = reentrant
    before, after = train(plain), train(session)
    for name, a, b in zip(plain.model.state_dict(), before, after, strict=True):
        assert torch.equal(a, b), name
    # the first layer's input wants a gradient here
    first = {k for k in macs(session, "train") if k[:2] == ("layers.0", "EB")}
    assert {k: n for k, n in macs(session, "train").items() if k not in first} == macs(plain, "train")


def test_gates_find_the_pass_that_is_run_again() -> None:
    """Two forward passes, then backward through both."""
    gradients = []
    for reentrant in (None, False):
        session = attach("dfq", seeded(Checkpointed))
        session.model.reentrant = reentrant
        loss = torch.zeros(())
        for x, y in batches(2):
            loss = loss + session.loss(nn.functional.cross_entropy(session.model(x), y))
        loss.backward()
        gradients.append([p.grad for p in session.model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_more_passes_than_are_kept_are_refused() -> None:
    session = attach("dfq", seeded(Checkpointed))
    session.model.reentrant = False
    losses = [session.loss(nn.functional.cross_entropy(session.model(x), y)) for x, y in batches(6)]
    with pytest.raises(ConfigError, match="more than 4 forward passes"):
        losses[0].backward()
