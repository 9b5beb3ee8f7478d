"""cpt: the schedule against values worked out by hand, the widths that really run, and the precision range test."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import fractrain
from fractrain.cost import metrics
from fractrain.layers.convert import quant_layers
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.util.errors import ConfigError

cpt = sys.modules[registry.get("cpt").__module__]


# cos(pi/5) = .809, cos(2 pi/5) = .309: 3 + 2.5 (1 - cos) = 3, 3.477, 4.727, 6.273, 7.523
BY_HAND = {
    (3, 8, 5): [3, 3, 5, 6, 8],
    (3, 8, 2): [3, 6],  # 5.5, half to even
    (4, 8, 4): [4, 5, 6, 7],  # 4, 4.586, 6, 7.414
    (4, 6, 3): [4, 4, 6],  # 4, 4.5 (half to even), 5.5 (half to even)
    (8, 8, 7): [8] * 7,
    (3, 8, 1): [3],
}


@pytest.mark.parametrize(("case", "values"), BY_HAND.items())
def test_schedule_by_hand(case, values):
    low, high, period = case
    if (low, high, period) == (4, 6, 3):  # cos(pi/3) is not exactly .5 in floating point: either neighbour is right
        got = [cpt.cyclic_bits(t, period, low, high) for t in range(period)]
        assert got[0] == 4
        assert got[1] in (4, 5)
        assert got[2] in (5, 6)
        return
    assert [cpt.cyclic_bits(t, period, low, high) for t in range(2 * period)] == 2 * values


def test_the_paper_run_has_32_cycles_of_2000_steps():
    assert cpt.cycle_length(64_000, 32, 6) == 2000
    bits = [cpt.cyclic_bits(t, 2000, 3, 8) for t in range(64_000)]
    drops = [t for t in range(1, 64_000) if bits[t] < bits[t - 1]]
    assert drops == [2000 * k for k in range(1, 32)]
    assert (bits[0], bits[1999], bits[2000], bits[-1]) == (3, 8, 3, 8)
    # where the width changes: 3 + 2.5 (1 - cos(pi t / T)) = k + .5
    edges = [math.acos(1 - (k + 0.5 - 3) / 2.5) / math.pi * 2000 for k in range(3, 8)]
    changes = [t for t in range(1, 2000) if bits[t] != bits[t - 1]]
    # 5.5 lies at t = 1000 exactly, and half goes to the even 6
    assert changes == [math.ceil(round(e, 6)) for e in edges]


@pytest.mark.parametrize(
    ("total", "cycles", "widths", "period"),
    [
        (64_000, 32, 6, 2000),
        (240, 32, 6, 7),
        (241, 32, 6, 7),
        (64, 32, 6, 2),
        (63, 32, 6, 6),
        (3, 32, 6, 3),
        (9, 9, 1, 1),
    ],
)
def test_cycle_length(total, cycles, widths, period):
    assert cpt.cycle_length(total, cycles, widths) == period


@given(st.integers(0, 10**6), st.integers(1, 5000), st.integers(2, 16), st.integers(0, 14))
def test_the_width_stays_in_its_bounds_and_rises_within_a_cycle(step, period, low, span):
    high = min(16, low + span)
    now = cpt.cyclic_bits(step, period, low, high)
    assert low <= now <= high
    if step % period:
        assert now >= cpt.cyclic_bits(step - 1, period, low, high)
    else:
        assert now == low


def digits_net(total, seed=0, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetCifar(1, 10, channels=1)
    return fractrain.attach("cpt", model, seed=seed, total_steps=total, **settings)


def digits():
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return x, torch.tensor(data.target)


def run(session, optimizer, steps, size=64):
    x, y = digits()
    accuracies = []
    for step in steps:
        rows = torch.randperm(1500, generator=torch.Generator().manual_seed(step))[:size]
        out = session.model(x[rows])
        session.loss(F.cross_entropy(out, y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
        accuracies.append(float((out.argmax(1) == y[rows]).double().mean()))
    return accuracies


def test_the_layers_run_at_the_width_of_the_step_and_evaluate_at_the_highest():
    session = digits_net(10, cycles=2)
    optimizer = torch.optim.SGD(session.model.parameters(), lr=0.01)
    seen = []
    layer = next(iter(quant_layers(session.model)))
    layer.observer = lambda _l, name, op, _x, _q: seen.append((name, op.bits))
    for step in range(10):
        seen.clear()
        run(session, optimizer, [step], size=4)
        width = BY_HAND[(3, 8, 5)][step % 5]
        assert dict(seen)["fw_a"] == dict(seen)["fw_w"] == width
        assert dict(seen)["E"] == 8
    seen.clear()
    session.model.eval()
    session.model(digits()[0][:2])
    assert {bits for _, bits in seen} == {8}
    session.model.train()
    run(session, optimizer, [10], size=4)
    assert dict(seen)["fw_a"] == 3, "the eleventh step begins a third cycle"


def test_evaluation_at_the_width_of_the_step_as_the_authors_do():
    session = digits_net(10, cycles=2, evaluation="current")
    run(session, torch.optim.SGD(session.model.parameters(), lr=0.01), range(2), size=4)
    session.method.on_step_start(1)
    saved = session.state_dict()
    fresh = digits_net(10, cycles=2, evaluation="current")
    fresh.load_state_dict(saved)
    for one in (session, fresh):
        one.model.eval()
        one.method._set_widths(one.model, ())
        assert {m.precision.fw_a.bits for m in quant_layers(one.model) if not m.precision.is_float} == {3}
    assert fresh.method.metrics()["bits"] == session.method.metrics()["bits"] == 3


def test_cost_is_the_mean_over_the_schedule():
    """cp = mean over steps of (b^2 + 2 b g) / (3 * 1024), exactly."""
    session = digits_net(10, cycles=2)
    run(session, torch.optim.SGD(session.model.parameters(), lr=0.01), range(10), size=4)
    costs = [Fraction(b * b + 2 * b * 8, 3 * 1024) for b in 2 * BY_HAND[(3, 8, 5)]]
    session.ledger.meta["blocks"] = [n for n, m in session.model.named_modules() if type(m).__name__ == "BasicBlock"]
    # the first layers' error is not propagated to the data, which is why the blocks are counted and not the stem
    assert metrics.cp(session.ledger) == pytest.approx(float(100 * sum(costs) / 10), rel=1e-12)


def test_equal_bounds_are_static_training_bit_for_bit():
    def weights(name, **settings):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ResNetCifar(1, 10, channels=1)
        session = fractrain.attach(name, model, total_steps=4, **settings)
        run(session, torch.optim.SGD(session.model.parameters(), lr=0.05), range(4), size=8)
        return session.model.state_dict()

    ours, static = weights("cpt", bits=(5, 5), grad_bits=(6, 6)), weights("static", bits=5, grad_bits=6)
    assert all(torch.equal(ours[k], static[k]) for k in static)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"bits": [8, 3]}, "ascend"), ({"bits": [1, 8]}, "greater than or equal to 2"), ({"grad_bits": [8, 32]}, "16")],
)
def test_bad_settings_are_refused_in_one_line(settings, match):
    with pytest.raises(ConfigError, match=match) as error:
        registry.create("cpt", settings)
    assert "\n" not in str(error.value)


def test_without_the_length_of_training_there_is_no_schedule():
    method = registry.create("cpt")
    method.prepare(ResNetCifar(1, 4), MethodContext())
    method.on_step_start(0)
    with pytest.raises(ConfigError, match="total_steps"):
        method.on_step_start(1)


# -- precision range test ----------------------------------------------------------------------------------------------


def scripted(rises):
    """A training whose accuracy rises by ``rises[bits]`` over the steps of a width, linearly."""
    state = {"bits": 0, "n": 0}

    def hold(bits):
        state.update(bits=bits, n=0)

    def step():
        state["n"] += 1
        return 0.1 + rises[state["bits"]] * (state["n"] - 1) / 9

    return hold, step


def test_range_test_by_hand():
    hold, step = scripted({2: 0.0, 3: 0.009, 4: 0.18, 5: 0.5})
    result = cpt.precision_range_test(hold, step, widths=(2, 3, 4, 5), steps=10, window=2, threshold=0.01)
    assert result.low == 4
    # ten values 0, r/9, ..., r: mean of the last two minus mean of the first two = 8/9 r
    assert result.gains == pytest.approx({2: 0.0, 3: 0.008, 4: 0.16}, abs=1e-12)


def test_range_test_needs_more_than_the_threshold():
    hold, step = scripted({2: 0.01, 3: 0.02})
    gain = 0.01 * 8 / 9
    assert cpt.precision_range_test(hold, step, widths=(2, 3), steps=10, window=2, threshold=gain + 1e-9).low == 3
    assert cpt.precision_range_test(hold, step, widths=(2, 3), steps=10, window=2, threshold=gain - 1e-9).low == 2


def test_range_test_that_finds_nothing_says_so():
    hold, step = scripted({2: 0.0, 3: -0.1})
    with pytest.raises(ConfigError, match="2 to 3 bits"):
        cpt.precision_range_test(hold, step, widths=(2, 3), steps=10, window=2)
    for bad in ({"widths": ()}, {"widths": (4, 3)}, {"window": 6}, {"window": 0}):
        with pytest.raises(ConfigError, match="two windows"):
            cpt.precision_range_test(hold, step, **{"widths": (2, 3), "steps": 10, "window": 2, **bad})


def test_range_test_on_a_real_training_holds_the_width_and_then_lets_go():
    session = digits_net(1000)
    optimizer = torch.optim.SGD(session.model.parameters(), lr=0.03, momentum=0.9)
    counter = iter(range(1000))
    result = cpt.precision_range_test(
        session.method.hold, lambda: run(session, optimizer, [next(counter)], size=32)[0], steps=20, window=5,
        threshold=0.1,
    )  # fmt: skip
    widths = {r.bits1 for r in session.ledger.rows() if r.layer == "stem.0" and r.product == "FW"}
    assert widths == set(result.gains)
    assert max(result.gains) == result.low <= 6
    session.method.hold(None)
    run(session, optimizer, [0], size=4)
    assert session.method.metrics()["bits"] == cpt.cyclic_bits(session.method.state.step, 31, 3, 8)
