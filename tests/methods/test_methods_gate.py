"""The gate network: its cost by hand, its recurrence along depth, and its straight-through gradient."""

from __future__ import annotations

import pytest
import torch

from fractrain.cost.metrics import summarize
from fractrain.methods.base import MethodContext
from fractrain.methods.dfq import DFQ
from fractrain.methods.gate import GateNetwork, straight_through
from fractrain.models import registry as models

CHANNELS = [16] * 7 + [32] * 6 + [64] * 5  # inputs of ResNet-38's blocks


@pytest.mark.parametrize(("channels", "expected"), [(16, 3152), (32, 3664), (64, 4688)])
def test_macs_of_one_gate_by_hand(channels, expected):
    assert channels * 32 + 32 * 16 + 4 * 16 * (16 + 16) + 16 * 5 == expected
    assert GateNetwork([channels], 5).macs(0) == expected


def test_macs_of_all_gates_are_the_authors_less_their_dead_last_one():
    gate = GateNetwork(CHANNELS, 5)
    used = sum(gate.macs(i) for i in range(18))
    assert used == 67_488
    assert used + 4_688 == 72_176
    r74 = GateNetwork([16] * 13 + [32] * 12 + [64] * 11, 5)
    assert sum(r74.macs(i) for i in range(36)) + 4_688 == 141_200


def test_the_gate_starts_as_the_authors_does():
    """N(0, sqrt(2 / outputs)) for projections, N(0, sqrt(2 / (inputs * outputs))) for the head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = GateNetwork([64] * 200, candidates=5)
    for place, outputs in ((0, 32), (2, 16)):
        weights = torch.cat([f[place].weight.detach().flatten() for f in gate.features])
        assert weights.std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.01)
        assert (weights.abs() < weights.std()).float().mean().item() == pytest.approx(0.6827, abs=0.01)  # normal
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = torch.stack([GateNetwork([2], candidates=5).head.weight.detach() for _ in range(200)])
    assert heads.std().item() == pytest.approx((2 / (16 * 5)) ** 0.5, rel=0.02)


def test_resnet38_gets_gates_of_these_sizes_and_the_ledger_sees_their_overhead():
    method = DFQ()
    context = MethodContext()
    model = method.prepare(models.build("resnet38", 10, (3, 32, 32)), context)
    assert model.precision_gate.channels == CHANNELS
    context.ledger.samples(1)
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    share = summarize(context.ledger, 0).gate_overhead
    assert share == 67_488 / 83_280_512
    assert 0.0008 <= share <= 0.0009
    rows = [r for r in context.ledger.rows() if r.layer.endswith(".gate")]
    assert {(r.product, r.bits1, r.bits2) for r in rows} == {(p, 32, 32) for p in ("FW", "EB", "GC")}
    assert sum(r.macs for r in rows) == 3 * 67_488


def random_gate(channels=(3, 5, 4), candidates=4) -> GateNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        gate = GateNetwork(channels, candidates).double()
        for p in gate.parameters():
            torch.nn.init.normal_(p)
    return gate


def inputs(channels=(3, 5, 4), seed=2):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(6, c, generator=g, dtype=torch.float64) for c in channels]


def test_state_runs_along_depth_as_one_lstm_over_the_blocks():
    gate, xs = random_gate(), inputs()
    ours = torch.stack([gate(i, x) for i, x in enumerate(xs)])
    features = torch.stack([gate.features[i](x) for i, x in enumerate(xs)])
    lstm = torch.nn.LSTM(16, 16).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(lstm, f"{name}_l0").data = getattr(gate.cell, name).data
    hidden, _ = lstm(features)  # starts at zero
    torch.testing.assert_close(ours, torch.softmax(gate.head(hidden), dim=2), rtol=1e-12, atol=1e-14)


def test_state_starts_anew_in_every_forward_pass():
    gate, xs = random_gate(), inputs()
    first = [gate(i, x) for i, x in enumerate(xs)]
    second = [gate(i, x) for i, x in enumerate(xs)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    gate(0, xs[0])  # a pass that is broken off
    assert torch.equal(gate(0, xs[0]), first[0])
    changed = inputs(seed=3)
    gate(0, changed[0])
    assert not torch.equal(gate(1, xs[1]), first[1])  # block 1 does depend on block 0's input


def test_same_images_twice_give_the_same_choices_in_a_model():
    method = DFQ()
    model = method.prepare(models.build("resnet38", 10, (3, 8, 8)), MethodContext())
    torch.nn.init.normal_(model.precision_gate.head.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    choices = []
    for _ in range(2):
        model(x)
        choices.append([b.choice for b in method._blocks])
    assert all(torch.equal(a, b) for a, b in zip(*choices, strict=True))
    assert len({int(k) for c in choices[0] for k in c}) > 1


def test_straight_through_is_exactly_one_hot_with_the_gradient_of_the_probabilities():
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(7, 5, generator=g, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, 5, generator=g, dtype=torch.float64)
    mask, choice = straight_through(torch.softmax(scores, dim=1))
    assert torch.equal(mask.detach(), torch.eye(5, dtype=torch.float64)[scores.argmax(dim=1)])
    assert torch.equal(choice, scores.argmax(dim=1))
    (ours,) = torch.autograd.grad(((mask * weights).sin()).sum(), scores)
    p = torch.softmax(scores, dim=1)
    hard = torch.eye(5, dtype=torch.float64)[p.argmax(dim=1)]
    (theirs,) = torch.autograd.grad((((hard - p.detach() + p) * weights).sin()).sum(), scores)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_ties_go_to_the_first_candidate():
    assert straight_through(torch.full((2, 5), 0.2))[1].tolist() == [0, 0]
