"""The dynasty plugin: sensitivities against hand formulas, declared = observed, feedback, resume, learning."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fractrain.cost.ledger import Ledger
from fractrain.layers.convert import quant_layers
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.numerics.tiles import expand_tiles, fit_map

FIXED = {"tighten": 0.0, "relax": 0.0}


def dynasty(**settings):
    return registry.create("dynasty", settings)


def module():
    import sys

    registry.get("dynasty")
    return sys.modules[registry.get("dynasty").__module__]


def model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResNetCifar(1, 10).to(memory_format=torch.channels_last)


def batch(step, n=16, size=8):
    gen = torch.Generator().manual_seed(step)
    y = torch.randint(0, 10, (n,), generator=gen)
    x = torch.randn(n, 3, size, size, generator=gen) * 0.5
    x[torch.arange(n), 0, y % size, :] += 2.0  # something to learn
    x[torch.arange(n), 1, :, y // 5] += 2.0
    return x.contiguous(memory_format=torch.channels_last), y


class Run:
    """A short training with state in memory."""

    def __init__(self, n=16, lr=0.02, **settings):
        self.method = dynasty(**{"refresh": 2, "observe": 1, **settings})
        self.ledger, self.n, self.losses = Ledger(), n, []
        self.model = self.method.prepare(model(), MethodContext(ledger=self.ledger))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.step = 0

    def go(self, steps):
        for _ in range(steps):
            x, y = batch(self.step, self.n if self.step % 3 else max(1, self.n - 5))
            self.method.on_step_start(self.step)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            self.method.on_step_end(self.step, loss.detach())
            self.losses.append(loss.item())
            self.step += 1
        return self

    def state(self):
        buffer = io.BytesIO()
        torch.save([self.model.state_dict(), self.optimizer.state_dict(), self.method.state_dict()], buffer)
        return buffer.getvalue()

    def load(self, state, step):
        for target, saved in zip(
            (self.model, self.optimizer, self.method), torch.load(io.BytesIO(state), weights_only=True), strict=True
        ):
            target.load_state_dict(saved)
        self.step = step
        return self


# -- sensitivity -----------------------------------------------------------------------------------------------------


def test_sensitivities_of_a_linear_layer_equal_the_formula_by_loops():
    n, ins, outs = 6, 5, 3
    method = dynasty(tile=(4, 2), observe=1)
    net = method.prepare(nn.Sequential(nn.Linear(ins, outs)), MethodContext())
    (layer,) = quant_layers(net)
    seen = {}
    x = torch.randn(n, ins, generator=torch.Generator().manual_seed(0)).requires_grad_()
    method.on_step_start(0)
    y = net(x)
    y.register_hook(lambda g: seen.update(e=g.clone()))
    F.cross_entropy(y, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    method.on_step_end(0, torch.tensor(1.0))
    macs = ins * outs

    def columns(width):
        return [list(range(c, min(c + 2, width))) for c in range(0, width, 2)]

    def fisher(value, gradient, rows, scale):
        """Mean square gradient times range^2 / 12 of a tile."""
        tiles = []
        for cols in columns(value.shape[1]):
            v = [float(value[r, c]) for r in rows for c in cols]
            g = [float(gradient[r, c]) for r in rows for c in cols]
            tiles.append(scale * sum(i * i for i in g) / len(g) * (max(v) - min(v)) ** 2 / 12)
        return tiles

    got = method.state_dict()["sensitivity"]["0"]
    want_w = fisher(layer.weight.detach(), layer.weight.grad, range(3), n)
    assert got["W"].reshape(-1).tolist() == pytest.approx([s * ins * outs / macs for s in want_w], rel=1e-4)
    halves = [fisher(x.detach(), x.grad, rows, n * n) for rows in (range(4), range(4, 6))]
    want_a = [(a + b) / 2 * ins / macs for a, b in zip(*halves, strict=True)]
    assert got["A"].reshape(-1).tolist() == pytest.approx(want_a, rel=1e-4)
    signal = float(seen["e"].double().square().mean())
    ones = torch.ones_like(seen["e"])
    halves = [fisher(seen["e"], ones, rows, 1.0) for rows in (range(4), range(4, 6))]
    want_e = [(a + b) / 2 / signal / macs for a, b in zip(*halves, strict=True)]
    assert got["E"].reshape(-1).tolist() == pytest.approx(want_e, rel=1e-4)


def test_the_first_layers_input_has_no_gradient_and_stays_widest():
    run = Run(**FIXED).go(3)
    stem = next(quant_layers(run.model))
    assert torch.equal(stem.precision.fw_a.bits, torch.full_like(stem.precision.fw_a.bits, 8))


def test_sensitivities_are_measured_only_in_their_steps_and_need_no_extra_pass():
    run = Run(observe=3)
    calls = []
    original = run.method._observe
    run.method._observe = lambda layer, seen: (calls.append(run.step), original(layer, seen))
    run.go(7)
    layers = len(list(quant_layers(run.model)))
    assert calls == [s for s in (0, 3, 6) for _ in range(layers)]


# -- maps ------------------------------------------------------------------------------------------------------------


def test_codes_in_every_tile_are_as_many_as_the_map_declares():
    run = Run(n=16, widths=[2, 3, 8], budget=4.0, tile=(8, 4), **FIXED).go(6)
    found = {"A": set(), "W": set(), "E": set()}

    def observer(layer, name, op, x, values):
        tile, full = op.format.granularity, fit_map(op.bits, x.shape, op.format.granularity)
        ids = torch.arange(full.numel()).view(full.shape)
        where, flat = expand_tiles(ids, x.shape, tile).reshape(-1), values.reshape(-1)
        for k, width in enumerate(full.reshape(-1).tolist()):
            codes = flat[where == k].unique()
            assert len(codes) <= 2**width
            found[name[-1].upper()].add((width, len(codes) > 4, len(codes) > 8))

    for training in (True, False):
        run.model.train(training)
        for layer in quant_layers(run.model):
            layer.observer = observer
            assert isinstance(layer.precision.fw_w.bits, torch.Tensor)
        x, y = batch(99, 13 if training else 5)
        F.cross_entropy(run.model(x), y).backward() if training else run.model(x)
    for role, seen in found.items():  # several widths occur, and wide tiles do use more codes than narrow ones may
        assert {8} < {w for w, _, _ in seen} <= {2, 3, 8}, role
        assert (8, True, True) in seen, role


def test_the_ledger_sees_the_declared_widths_and_every_mac():
    run = Run(**FIXED).go(4)
    run.ledger.begin("train", 1)
    run.go(1)
    rows = [r for r in run.ledger.rows() if r.epoch == 1]
    assert {r.bits1 for r in rows} | {r.bits2 for r in rows} <= {2, 4, 8}
    n = 16 if 4 % 3 else 11
    for layer in quant_layers(run.model):
        forward = sum(r.macs for r in rows if r.layer == layer.site and r.product == "FW")
        assert forward == n * run.method._macs[layer.site]


@pytest.mark.parametrize("budget", [3.0, 4.0, 6.0])
def test_the_products_cost_no_more_than_those_of_a_uniform_map(budget):
    run = Run(budget=budget, widths=[2, 3, 4, 6, 8], **FIXED).go(4)
    projected = run.method.projected_cost()
    assert 0.7 * budget**2 < projected <= budget**2
    run.ledger.begin("train", 7)
    run.go(1)
    rows = [r for r in run.ledger.rows() if r.epoch == 7]
    counted = sum(r.macs * r.bits1 * r.bits2 for r in rows) / sum(r.macs for r in rows)
    assert counted == pytest.approx(projected, rel=0.1)  # by mean widths per layer, not tile by tile


def maps_of(run):
    """The widths that layers use, by layer and operand."""
    operands = {"A": "fw_a", "W": "fw_w", "E": "eb_e"}
    return {
        (layer.site, role): torch.as_tensor(getattr(layer.precision, name).bits).reshape(-1)
        for layer in quant_layers(run.model) for role, name in operands.items()
    }  # fmt: skip


CONTROL = {"widths": [2, 3, 4, 6, 8], "tile": (4, 4), "refresh": 2, "fall": 0.0, **FIXED}


def test_a_shuffled_map_has_the_widths_of_the_adaptive_one_at_other_tiles():
    adaptive, shuffled = (maps_of(Run(map=kind, **CONTROL).go(2)) for kind in ("adaptive", "shuffled"))
    moved = 0
    for key, widths in adaptive.items():
        assert torch.equal(widths.sort().values, shuffled[key].sort().values)
        moved += not torch.equal(widths, shuffled[key])
    assert moved > len(adaptive) / 3  # the others have one width, or one tile


def test_a_random_map_costs_the_same_and_leaves_what_is_unknown_widest():
    adaptive, random = (Run(map=kind, **CONTROL).go(2) for kind in ("adaptive", "random"))
    stem = next(quant_layers(random.model)).site
    assert set(maps_of(random)[stem, "A"].tolist()) == {8}
    assert random.method.projected_cost() == pytest.approx(adaptive.method.projected_cost(), rel=0.05)
    per_operand = [{key: sorted(m.tolist()) for key, m in maps_of(run).items()} for run in (adaptive, random)]
    assert per_operand[0] != per_operand[1]


@pytest.mark.parametrize("kind", ["shuffled", "random"])
def test_controls_keep_their_order_and_resume(kind):
    steady = Run(map=kind, **CONTROL).go(4)
    assert steady.method._order(50, "a").equal(steady.method._order(50, "a"))
    assert not steady.method._order(50, "a").equal(steady.method._order(50, "b"))
    resumed = Run(map=kind, **CONTROL).load(Run(map=kind, **CONTROL).go(3).state(), 3).go(1)
    assert resumed.state() == steady.state()
    assert all(torch.equal(widths, maps_of(steady)[key]) for key, widths in maps_of(resumed).items())


def test_what_maps_and_analysis_take_by_hand():
    method = dynasty(tile=(4, 2), observe=2, refresh=1, **FIXED)
    net = method.prepare(nn.Sequential(nn.Linear(5, 3)), MethodContext(batch_size=6))
    assert "map_kib" not in method.metrics()  # nothing was measured yet
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    method.on_step_start(0)
    F.cross_entropy(net(x), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    method.on_step_end(0, torch.tensor(1.0))
    found, width = method.metrics(), method.mean_widths()
    tiles = {"A": 1 * 3, "W": 1 * 3, "E": 1 * 2}  # rows of tiles come back: one row of each map
    values = {"A": 6 * 5, "W": 15, "E": 6 * 3}
    bits = sum(values[role] * width[role] for role in "AWE")
    assert found["map_kib"] == pytest.approx(sum(tiles.values()) * 2 / 8192)  # 2 bits name one of three widths
    stored = sum(tiles.values()) * 2 + sum(values.values()) / 8 * 32
    assert found["storage_percent"] == pytest.approx(100 * stored / bits)
    products = 3 * 6 * 15 * method.projected_cost() / 1024
    assert found["analysis_percent"] == pytest.approx(100 * sum(values.values()) / 2 / products)


def test_uniform_maps_are_the_plain_width():
    run = Run(map="uniform", budget=3).go(3)
    assert {(r.bits1, r.bits2) for r in run.ledger.rows()} == {(3, 3)}
    assert run.method.metrics()["bits_w"] == 3


def test_skipped_tiles_are_errors_only():
    run = Run(widths=[0, 2, 4], budget=2.0, budget_low=2.0, **FIXED).go(8)
    maps = [layer.precision for layer in quant_layers(run.model)]
    assert min(int(p.eb_e.bits.min()) for p in maps) == 0
    assert min(int(torch.as_tensor(o.bits).min()) for p in maps for o in (p.fw_a, p.fw_w)) == 2


def test_another_image_size_in_evaluation_still_works():
    run = Run(**FIXED).go(4)
    run.model.eval()
    assert run.model(batch(0, 3, size=12)[0]).isfinite().all()


def test_ends_may_stay_in_float():
    run = Run(keep_first=True, keep_last=True).go(2)
    layers = list(quant_layers(run.model))
    assert layers[0].precision.is_float
    assert layers[-1].precision.is_float
    assert not layers[1].precision.is_float


# -- feedback --------------------------------------------------------------------------------------------------------


def test_steering_by_hand():
    steer = module().steer
    s = registry.get("dynasty").Settings(fall=0.1, tighten=0.25, relax=0.5, budget_low=3.0, budget_high=6.0)
    assert steer(4.0, None, 1.0, s) == 4.0  # nothing to compare with
    assert steer(4.0, 1.0, 0.9, s) == 3.75  # fell by a tenth
    assert steer(4.0, 1.0, 0.91, s) == 4.5  # stalls
    assert steer(4.0, 1.0, 2.0, s) == 4.5  # rises
    assert steer(4.0, 1.0, math.nan, s) == 4.5
    assert steer(3.1, 1.0, 0.5, s) == 3.0
    assert steer(5.9, 1.0, 1.0, s) == 6.0


def test_the_budget_follows_the_loss_it_is_told():
    method = dynasty(refresh=2, observe=1, budget=4.0, fall=0.0, tighten=0.5, relax=1.0)
    method.prepare(model(), MethodContext())
    budgets = []
    for step, loss in enumerate([4.0, 4.0, 2.0, 2.0, 3.0, 3.0, 1.0, 1.0]):
        method.on_step_end(step, torch.tensor(loss))
        budgets.append(method.metrics()["budget"])
    assert budgets == [4.0, 4.0, 4.0, 3.5, 3.5, 4.5, 4.5, 4.0]


def test_a_tighter_budget_costs_less():
    costs = []
    for budget in (3.0, 4.0, 6.0):
        run = Run(budget=budget, widths=[2, 3, 4, 6, 8], **FIXED).go(5)
        costs.append(sum(r.macs * r.bits1 * r.bits2 for r in run.ledger.rows()))
    assert costs == sorted(costs)
    assert costs[0] < costs[-1] / 2


# -- state, determinism, learning ------------------------------------------------------------------------------------


def test_resumed_before_the_first_refresh_equals_uninterrupted_bit_for_bit():
    at = 1
    whole = Run(refresh=2).go(9)
    first = Run(refresh=2).go(at)
    second = Run(refresh=2).load(first.state(), at).go(9 - at)
    assert second.losses == whole.losses[at:]
    assert second.state() == whole.state()
    assert Run(refresh=2).go(9).state() == whole.state()


def test_state_is_a_copy():
    run = Run().go(3)
    kept = copy.deepcopy(run.method.state_dict())
    given = run.method.state_dict()
    run.go(3)
    assert given["budget"] == kept["budget"]
    for site, values in kept["sensitivity"].items():
        for role, value in values.items():
            assert torch.equal(given["sensitivity"][site][role], value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"widths": [4, 2]}, "ascend"), ({"widths": [1, 2]}, "2..16"), ({"widths": [0]}, "2..16"),
        ({"tile": [0, 16]}, "1x1"), ({"budget": 9.0}, "budget_low"), ({"map": "uniform", "budget": 2.5}, "whole"),
        ({"refresh": 0}, "refresh"), ({"decay": 1.0}, "decay"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_in_one_line(settings, told):
    from fractrain.util.errors import ConfigError

    with pytest.raises(ConfigError, match=told):
        dynasty(**settings)


def test_it_says_that_it_is_a_reconstruction():
    kind = registry.get("dynasty")
    assert "reconstruction (ours)" in kind.source
    assert "reconstruction" in kind.summary()
    assert module().__doc__.count("reconstruction, ours") >= 4
