"""Layers whose weights a module multiplies itself: quantized, counted once, and given back."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from field_models import Borrowing, Lending
from layer_models import batches, seeded
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

import fractrain
from fractrain.layers.functional import read_only_by_weight


class Called(Borrowing):
    """The same network with its layers called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.grow(torch.relu(self.stem(x))).flatten(2).mT
        return self.head(torch.relu(self.mix(y)).mean(1))


def swin() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), ShiftedWindowAttention(8, [2, 2], [1, 1], 2), nn.Linear(8, 4))


def gradients(session: fractrain.Session, x: torch.Tensor) -> list[torch.Tensor]:
    y = session.model(x)
    session.loss(y.square().mean()).backward()
    session.step()
    return [y, *(p.grad for p in session.model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("method", "settings"), [("sbm", {"layers": "all"}), ("fp8", {}), ("fp32", {})])
def test_a_weight_used_by_a_function_gives_what_the_called_layer_gives(method: str, settings: dict[str, str]) -> None:
    x = next(batches(1))[0]
    ours = fractrain.attach(method, seeded(Borrowing), **settings)
    other = fractrain.attach(method, seeded(Called), **settings)
    for a, b in zip(gradients(ours, x), gradients(other, x), strict=True):
        assert torch.equal(a, b)
    assert ours.report() == other.report()
    assert ours.report().covered == 100
    assert list(ours.ledger.rows()) == list(other.ledger.rows())


def test_swin_s_projections_are_quantized_and_its_products_named() -> None:
    x, plain = torch.randn(2, 4, 4, 8), seeded(swin)
    session = fractrain.attach("sbm", copy.deepcopy(plain), layers="all")
    y = session.model(x)
    found = {p.name: p.status for p in session.report().products}
    assert found == {"0": "quantized", "1.qkv": "quantized", "1": "outside", "1.proj": "quantized", "2": "float"}
    assert {p.operation for p in session.report().outside} == {"bmm"}
    assert not torch.equal(y, plain(x))
    as_fp32 = fractrain.attach("fp32", copy.deepcopy(plain)).model
    assert torch.equal(as_fp32(x), plain(x))


def test_what_is_called_too_or_multiplied_otherwise_is_counted_once_and_named() -> None:
    plain = seeded(Lending)
    x = next(batches(1))[0]
    session = fractrain.attach("fp32", copy.deepcopy(plain))
    assert torch.equal(session.model(x), plain(x))
    products = [(p.name, p.operation, p.status) for p in session.report().products]
    assert products == [
        ("stem", "QuantConv2d", "float"), ("", "convolution", "outside"), ("mix", "QuantLinear", "float"),
        ("", "mm", "outside"), ("head", "QuantLinear", "float"),
    ]  # fmt: skip


def test_copies_pickles_and_compiled_models_use_their_own_layers() -> None:
    x = next(batches(1))[0]
    session = fractrain.attach("pfq", seeded(Borrowing), layers="all")  # not a plugin, which other tests read anew
    session.model(x)
    model = session.model.eval()
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want)
        with torch.no_grad():
            other.mix.weight.zero_()
            assert not torch.equal(other(x), want)
        assert torch.equal(model(x), want)
    assert torch.equal(torch.compile(model, backend="eager")(x), want)


def test_detach_takes_the_redirection_away() -> None:
    session = fractrain.attach("sbm", seeded(Borrowing), layers="all")
    x = next(batches(1))[0]
    session.model(x)
    plain = session.detach()
    assert "forward" not in vars(plain)
    assert torch.equal(plain(x), seeded(Borrowing)(x))


def test_only_modules_that_read_nothing_but_weights_are_watched() -> None:
    assert read_only_by_weight(Borrowing) == ("grow", "mix")
    assert read_only_by_weight(Called) == ()
    assert read_only_by_weight(Lending) == ("grow",)
    assert read_only_by_weight(ShiftedWindowAttention) == ("qkv", "proj")
    assert read_only_by_weight(nn.Sequential) == ()
