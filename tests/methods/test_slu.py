"""slu: outputs and gradients against a float64 network written out by hand, costs against a hand count."""

from __future__ import annotations

import copy
import io
import math
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torch import nn

import fractrain
from fractrain.cost import metrics
from fractrain.layers.convert import quant_layers
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.numerics.stochastic_rounding import noise_key, uniform
from fractrain.util.errors import ConfigError
from fractrain.util.seeds import derive_seed

slu = sys.modules[registry.get("slu").__module__]
N, SIZE, CLASSES = 10, 8, 4
GATED = ("groups.0.1", "groups.1.0", "groups.1.1", "groups.2.0", "groups.2.1")
STRIDE = {"groups.1.0": 2, "groups.2.0": 2}


def build(seed=0, double=False, **settings):
    """A prepared 14-layer ResNet (six blocks), its gates pushed apart, and a batch."""
    context = MethodContext(seed=seed, batch_size=N)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = ResNetCifar(2, CLASSES)
        context.ledger.meta["blocks"] = plain.gateable_blocks()
        method = registry.create("slu", settings)
        model = method.prepare(plain, context)
        for p in model.skip_gate.parameters():
            nn.init.normal_(p, 0.0, 1.0)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0.0, 0.3)
        x, y = torch.randn(N, 3, SIZE, SIZE), torch.randint(0, CLASSES, (N,))
    if double:
        model, x = model.double(), x.double()
    return method, model.train(), x, y, context.ledger


def blocks_of(model):
    return [m for m in model.modules() if isinstance(m, slu.SkipBlock)]


# -- the network written out by hand -----------------------------------------------------------------------------------


class Naive:
    """Plain autograd; ``authors``: every block for all samples; else on open samples, as batches of their own."""

    def __init__(self, parameters, draws, authors, reweighted):
        self.p, self.draws, self.authors, self.reweighted = parameters, draws, authors, reweighted
        self.masks = []

    def __call__(self, x):
        h = F.relu(self.norm("stem.1", F.conv2d(x, self.p["stem.0.weight"], padding=1)))
        h = self.block("groups.0.0", h, None)  # always runs
        state = (h.new_zeros(len(x), 10), h.new_zeros(len(x), 10))
        for i, name in enumerate(GATED):
            hard, prob, state = self.gate(i, name, h, state)
            self.masks.append(hard - prob.detach() + prob)
            m = hard + (prob - prob.detach()) / (prob.detach() if self.reweighted else 1.0)
            s = h
            if f"{name}.block.shortcut.inner.0.weight" in self.p:
                s = F.conv2d(h, self.p[f"{name}.block.shortcut.inner.0.weight"], stride=2)
                s = self.norm(f"{name}.block.shortcut.inner.1", s)
            if self.authors:
                mm = m.view(-1, 1, 1, 1)
                h = mm * self.block(f"{name}.block", h, s, STRIDE.get(name, 1)) + (1 - mm) * s
                continue
            rows = [k for k in range(len(x)) if m[k] > 0.5]
            f = self.block(f"{name}.block", h[rows], s[rows], STRIDE.get(name, 1)) if rows else None
            out = []
            for k in range(len(x)):
                out.append(m[k] * f[rows.index(k)] + (1 - m[k]) * s[k] if k in rows else s[k])
            h = torch.stack(out)
        return h.mean(dim=(2, 3)) @ self.p["head.weight"].t() + self.p["head.bias"]

    def gate(self, i, name, h, state):
        p, (hidden, cell) = self.p, state
        z = h.mean(dim=(2, 3)) @ p[f"skip_gate.features.{i}.weight"].t() + p[f"skip_gate.features.{i}.bias"]
        c = "skip_gate.cell."
        s = z @ p[c + "weight_ih"].t() + p[c + "bias_ih"] + hidden @ p[c + "weight_hh"].t() + p[c + "bias_hh"]
        take, forget, new, show = s.chunk(4, dim=1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
        hidden = torch.sigmoid(show) * torch.tanh(cell)
        prob = torch.sigmoid(hidden @ p["skip_gate.head.weight"].t() + p["skip_gate.head.bias"])[:, 0]
        hard = (prob > self.draws(name)).to(prob.dtype)
        return hard, prob, (hidden, cell)

    def block(self, name, x, s, stride=1):
        y = F.relu(self.norm(f"{name}.bn1", F.conv2d(x, self.p[f"{name}.conv1.weight"], stride=stride, padding=1)))
        y = self.norm(f"{name}.bn2", F.conv2d(y, self.p[f"{name}.conv2.weight"], padding=1))
        return F.relu(y + (x if s is None else s))

    def norm(self, name, y):
        mean = y.mean(dim=(0, 2, 3)).view(1, -1, 1, 1)
        var = ((y - mean) ** 2).mean(dim=(0, 2, 3)).view(1, -1, 1, 1)
        w, b = self.p[name + ".weight"].view(1, -1, 1, 1), self.p[name + ".bias"].view(1, -1, 1, 1)
        return (y - mean) / torch.sqrt(var + 1e-5) * w + b


def documented_draws(seed, step):
    return lambda name: uniform(noise_key(derive_seed(seed, "rounding"), step, f"{name}.gate.train"), torch.arange(N))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("threshold", ["bernoulli", "skipnet"])
@pytest.mark.parametrize("closed", ["skipped", "computed"])
def test_outputs_and_all_gradients_equal_the_network_written_out(closed, threshold, seed):
    method, model, x, y, _ = build(seed, double=True, closed=closed, threshold=threshold, beta=0.02, minimum=40.0)
    method.on_step_start(7)
    ours_x = x.clone().requires_grad_()
    logits = model(ours_x)
    (F.cross_entropy(logits, y) + method.extra_loss()).backward()

    draws = documented_draws(seed, 7) if threshold == "bernoulli" else (lambda name: 0.5)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    naive = Naive(leaves, draws, closed == "computed", closed == "skipped" and threshold == "bernoulli")
    theirs_x = x.clone().requires_grad_()
    expected = naive(theirs_x)
    share = 100 * sum(float(m.detach().sum()) for m in naive.masks) / (N * len(GATED))
    assert 5 < share < 95, "the batch should open some gates and close some"
    cost = sum(m.sum() for m in naive.masks)
    (F.cross_entropy(expected, y) + 0.02 * (-1 if share <= 40 else 1) * cost).backward()

    def close(a, b, what):
        assert float((a - b).abs().max()) <= 1e-11 * (float(b.abs().max()) or 1.0), what

    for block, mask in zip(blocks_of(model), naive.masks, strict=True):
        assert torch.equal(block.mask.detach(), mask.detach().round())
        assert set(block.mask.detach().tolist()) <= {0.0, 1.0}
    close(logits.detach(), expected.detach(), "outputs")
    close(ours_x.grad, theirs_x.grad, "input")
    for name, p in model.named_parameters():
        theirs = leaves[name].grad
        if p.grad is None:  # no sample went through
            assert theirs is None or not theirs.any(), name
            continue
        close(p.grad, theirs, name)
    assert model.skip_gate.head.weight.grad.abs().max() > 0


def alone(mask, place, **settings):
    """One gated block in float64 whose gate is made to give ``mask``, and its input."""
    _, model, x, _, ledger = build(3, double=True, **settings)
    block = model.get_submodule(place)
    wanted = torch.tensor(mask, dtype=torch.float64)
    block._thresholds = lambda p: torch.where(wanted > 0, -torch.ones_like(p), 2 * torch.ones_like(p))
    block._gate[0].features[0] = block._gate[0].features[GATED.index(place)]
    block._gate[0].channels = [block._gate[0].channels[GATED.index(place)]]
    block.index = 0  # from now on asked without the gates before it
    h = model.groups[0][0](model.stem(x)).detach()
    if place == "groups.1.1":
        h = model.groups[1][0].block.shortcut.inner(h).detach()
    ledger.load_state_dict(type(ledger)(ledger.meta).state_dict())  # begin the count here
    return block, h, ledger


MASK = [1, 0, 0, 1, 1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("place", ["groups.0.1", "groups.1.0", "groups.1.1"])
def test_a_closed_block_has_no_forward_no_backward_and_no_update(place):
    block, h, _ = alone(MASK, place)
    seen = []
    for layer in quant_layers(block.block):
        layer.register_forward_hook(lambda m, args, out: seen.append((m.site, len(args[0]), m.training)))
    out = block(h)
    trained = [(site, n) for site, n, training in seen if training and ".shortcut" not in site]
    assert trained == [(f"{place}.conv1", 5), (f"{place}.conv2", 5)], "the block must run on the open samples alone"
    shortcuts = [n for site, n, training in seen if ".shortcut" in site]
    assert shortcuts == ([N] if place == "groups.1.0" else []), "the projection runs once, for all samples"

    closed = [k for k in range(N) if not MASK[k]]
    inner = [(n, p) for n, p in block.block.named_parameters() if "shortcut" not in n]
    grads = torch.autograd.grad(out[closed].square().sum(), [p for _, p in inner], allow_unused=True, retain_graph=True)
    assert all(g is None or not g.any() for g in grads)
    # what the open samples give is exactly what they give in a batch of their own
    opened = [k for k in range(N) if MASK[k]]
    together = torch.autograd.grad(out[opened].square().sum(), [p for _, p in inner], retain_graph=True)
    with torch.no_grad():
        base = block.block.shortcut.inner(h) if block.place else h
    apart = block._run(block.call((h,), {}), h[opened], base[opened], torch.tensor(opened))
    assert torch.equal(apart, out[opened])
    by_themselves = torch.autograd.grad(apart.square().sum(), [p for _, p in inner])
    for (name, _), a, b in zip(inner, together, by_themselves, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=0), name
    assert torch.equal(out[closed], base[closed])


@pytest.mark.parametrize("place", ["groups.0.1", "groups.1.0"])
def test_a_block_that_nobody_enters_is_left_alone(place):
    block, h, ledger = alone([0] * N, place)
    before = copy.deepcopy({k: v for k, v in block.block.state_dict().items() if "shortcut" not in k})
    out = block(h.requires_grad_())
    (out.sum() + block.mask.sum()).backward()
    assert all(p.grad is None for n, p in block.block.named_parameters() if "shortcut" not in n)
    assert all(torch.equal(block.block.state_dict()[k], v) for k, v in before.items()), "statistics must stay"
    assert block._gate[0].head.weight.grad.abs().max() > 0, "the cost term reaches the gate"
    assert {r.bits1 * r.bits2 for r in ledger.rows() if ".conv" in r.layer} == {0}


def test_one_open_sample_uses_the_running_statistics_of_batch_norm():
    block, h, _ = alone([0, 0, 0, 1, 0, 0, 0, 0, 0, 0], "groups.0.1")
    before = block.block.bn1.running_mean.clone()
    out = block(h)
    assert torch.equal(before, block.block.bn1.running_mean)
    assert block.block.bn1.training
    block.block.eval()
    assert torch.allclose(out[3], block.block(h[3:4])[0], rtol=1e-12)


def test_shapes_that_do_not_fit_are_refused_in_one_line():
    block, h, _ = alone([1] * N, "groups.0.1")
    block.block.conv2 = nn.Conv2d(16, 16, 3, stride=2, padding=1).double()
    block.block.shortcut = nn.AvgPool2d(2)
    with pytest.raises(ConfigError, match=r"groups\.0\.1.*leave it out") as error:
        block(h)
    assert "\n" not in str(error.value)


# -- accounting --------------------------------------------------------------------------------------------------------


def hand_macs():
    """Forward MACs per sample by layer of the six blocks at 8x8, from the formula out * in * k * k * H * W."""
    macs, inputs = {}, 16
    for g, width in enumerate((16, 32, 64)):
        area = (8 // 2**g) ** 2
        for b in range(2):
            name = f"groups.{g}.{b}"
            macs[f"{name}.conv1"] = width * inputs * 9 * area
            macs[f"{name}.conv2"] = width * width * 9 * area
            if inputs != width:
                macs[f"{name}.shortcut.0"] = width * inputs * area
            inputs = width
    return macs


@pytest.mark.parametrize("settings", [{}, {"closed": "computed"}, {"bits": 8, "grad_bits": 6, "weight_bits": 4}])
def test_the_ledger_equals_a_hand_count(settings):
    _, model, x, _, ledger = build(1, **settings)
    opened = dict.fromkeys(("groups.0.0",), 0)
    steps = 3
    for step in range(steps):
        blocks_of(model)[0].state.step = step
        model(x).sum().backward()
        for b in blocks_of(model):
            opened[b.name] = opened.get(b.name, 0) + int(b.mask.sum())
    total = N * steps
    opened["groups.0.0"] = total
    assert any(0 < n < total for n in opened.values())
    a, e = settings.get("bits", 32), settings.get("grad_bits", 32)
    w = settings.get("weight_bits", a)
    counted: dict[tuple, int] = {}
    for r in ledger.rows():
        key = (r.layer, r.product, r.bits1, r.bits2)
        counted[key] = counted.get(key, 0) + r.macs
    expected = {}
    for layer, macs in hand_macs().items():
        n = opened[layer.rsplit(".conv", 1)[0]] if ".conv" in layer else total
        for product, widths in (("FW", (a, w)), ("EB", (e, w)), ("GC", (a, e))):
            expected[(layer, product, *widths)] = macs * n
            expected[(layer, product, 0, 0)] = macs * (total - n)
    for i, name in enumerate(GATED):
        channels = (16, 16, 32, 32, 64)[i]
        for product in ("FW", "EB", "GC"):
            expected[(f"{name}.gate", product, 32, 32)] = (channels * 10 + 4 * 10 * (10 + 10) + 10) * total
    ours = {k: n for k, n in counted.items() if not k[0].startswith(("stem", "head"))}
    assert ours == {k: n for k, n in expected.items() if n}
    # cp: the mean over blocks of open work over all work, the projection always open
    shares = []
    for name, n in opened.items():
        own = {k: m for k, m in hand_macs().items() if k.startswith(f"{name}.")}
        shortcut = own.get(f"{name}.shortcut.0", 0)
        body = sum(own.values()) - shortcut
        shares.append((body * n / total + shortcut) / (body + shortcut))
    assert metrics.cp(ledger) == pytest.approx(100 * (a * w + e * w + a * e) / 3072 * sum(shares) / 6, rel=1e-12)


def test_evaluation_counts_forward_work_of_open_samples_only():
    _, model, x, _, ledger = build(1)
    model.eval()
    ledger.begin("eval", 0)
    with torch.no_grad():
        model(x)
    opened = {b.name: int(b.mask.sum()) for b in blocks_of(model)}
    assert {r.product for r in ledger.rows()} == {"FW"}
    for name, n in opened.items():
        run = sum(r.macs for r in ledger.rows() if r.layer == f"{name}.conv1" and r.bits1)
        assert run == hand_macs()[f"{name}.conv1"] * n


def test_gates_cost_less_than_the_sources_say():
    """E2-Train: below .04 % of the operations (ResNet-74, CIFAR-10: 168,215,168 MACs)."""
    from fractrain.methods.gate import GateNetwork

    gate = GateNetwork([16] * 12 + [32] * 12 + [64] * 11, 1, hidden=0, embed=10)
    assert sum(gate.macs(i) for i in range(35)) == 12 * 160 + 12 * 320 + 11 * 640 + 35 * 810
    assert sum(gate.macs(i) for i in range(35)) / 168_215_168 < 4e-4


# -- decisions ---------------------------------------------------------------------------------------------------------


def masks(model, x):
    with torch.no_grad():
        model(x)
    return torch.stack([b.mask for b in blocks_of(model)])


def test_draws_are_a_function_of_seed_step_block_and_sample():
    method, model, x, _, ledger = build(1)
    ledger.enabled = False
    for m in model.modules():  # so that all steps see the same activations
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    first = []
    for step in (0, 1, 2):
        method.on_step_start(step)
        first.append(masks(model, x))
    assert not torch.equal(first[0], first[1])
    method.on_step_start(1)
    assert torch.equal(masks(model, x), first[1])
    model.eval()
    evaluated = masks(model, x)
    method.on_step_start(2)
    assert torch.equal(masks(model, x), evaluated), "evaluation is a function of the weights alone"
    method.state.sample_offset = 4
    assert torch.equal(masks(model, x[4:]), evaluated[:, 4:]), "on any number of workers"


def test_gates_open_as_often_as_their_probability_says():
    method, model, _, _, ledger = build(1)
    ledger.enabled = False
    block = blocks_of(model)[0]
    counts, n = torch.zeros(3), 4000
    p = torch.tensor([0.1, 0.5, 0.93])
    for step in range(n):
        method.on_step_start(step)
        counts += (p > block._thresholds(p)).float()
    sigma = torch.sqrt(p * (1 - p) / n)
    assert ((counts / n - p).abs() < 4.5 * sigma).all()


@pytest.mark.parametrize(("minimum", "sign"), [(100.0, -1), (60.0, -1), (59.9, 1), (0.0, 1)])
def test_the_cost_term_turns_around_at_the_minimum(minimum, sign):
    """beta * reg * sum(m), reg = -1 up to the minimum. Five gates, ten samples, 30 open: 60 %."""
    method, model, *_ = build(1, minimum=minimum, beta=0.5)
    for i, b in enumerate(blocks_of(model)):
        b.mask = torch.tensor([1.0] * (6, 10, 3, 4, 7)[i] + [0.0] * (4, 0, 7, 6, 3)[i], requires_grad=True)
    extra = method.extra_loss()
    assert float(extra.detach()) == sign * 0.5 * 30
    extra.backward()
    assert all(torch.equal(b.mask.grad, torch.full((N,), sign * 0.5)) for b in blocks_of(model))
    assert method.metrics() == {"open_percent": 60.0}
    model.eval()
    assert method.extra_loss() is None


# -- mini-batch dropping -----------------------------------------------------------------------------------------------


def test_mini_batches_are_dropped_with_their_probability_and_by_the_step_alone():
    method, *_ = build(5, smd=0.3)
    dropped = [method.skip_step(s) for s in range(3000)]
    assert abs(sum(dropped) / 3000 - 0.3) < 4.5 * math.sqrt(0.3 * 0.7 / 3000)
    again, *_ = build(5, smd=0.3)
    assert [again.skip_step(s) for s in reversed(range(3000))] == dropped[::-1]
    other, *_ = build(6, smd=0.3)
    assert [other.skip_step(s) for s in range(3000)] != dropped
    off, *_ = build(5)
    assert not any(off.skip_step(s) for s in range(100))


def digits():
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(data.target)


def session_of(seed=0, n=1, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetCifar(n, 10, channels=1)
    session = fractrain.attach("slu", model, seed=seed, **settings)
    return session, torch.optim.SGD(session.model.parameters(), lr=0.05, momentum=0.9)


def run(session, optimizer, steps, size=64):
    x, y = digits()
    for step in steps:
        if session.skip():
            continue
        rows = torch.randperm(1500, generator=torch.Generator().manual_seed(step))[:size]
        session.loss(F.cross_entropy(session.model(x[rows]), y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()


def test_a_dropped_mini_batch_leaves_no_trace():
    session, optimizer = session_of(smd=0.5)
    dropped = [session.method.skip_step(s) for s in range(8)]
    assert 0 < sum(dropped) < 8
    last = None
    for step in range(8):
        before = copy.deepcopy(session.model.state_dict())
        run(session, optimizer, [step], size=8)
        after = session.model.state_dict()
        assert all(torch.equal(after[k], before[k]) for k in after) == dropped[step]
        last = session.ledger.sample_count("train", 0)
    assert last == 8 * (8 - sum(dropped))
    assert session.state_dict()["steps"] == 8
    session.epoch()


def test_an_epoch_of_dropped_mini_batches_only_has_no_loss():
    session, optimizer = session_of(smd=0.9)
    losses = []
    session.method.on_epoch_end = lambda epoch, loss: losses.append(loss)
    steps = next(s for s in range(1000) if not any(session.method.skip_step(t) for t in range(s, s + 3)) or s)
    start = next(s for s in range(steps, 1000) if session.method.skip_step(s))
    session._steps = start
    run(session, optimizer, [0])
    session.epoch()
    assert math.isnan(losses[0])
    with pytest.raises(RuntimeError, match=r"session\.step"):
        session.epoch()


@pytest.mark.parametrize("settings", [{"smd": 0.5, "bits": 6, "grad_bits": 8}, {"closed": "computed"}])
def test_resumed_bit_for_bit(settings):
    straight, optimizer = session_of(**settings)
    run(straight, optimizer, range(8), size=8)
    first, optimizer = session_of(**settings)
    run(first, optimizer, range(5), size=8)
    stream = io.BytesIO()
    torch.save((first.model.state_dict(), optimizer.state_dict(), first.state_dict()), stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    second, optimizer = session_of(**settings)
    for part, state in zip((second.model, optimizer, second), saved, strict=True):
        part.load_state_dict(state)
    run(second, optimizer, range(5, 8), size=8)
    ours, theirs = second.model.state_dict(), straight.model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert second.ledger.digest() == straight.ledger.digest()
    assert second.method.metrics() == straight.method.metrics()


@pytest.mark.parametrize("settings", [{"bits": 8, "grad_bits": 8, "threshold": "skipnet"}, {"smd": 0.5}])
def test_learns(settings):
    session, optimizer = session_of(n=1, **settings)
    run(session, optimizer, range(90))
    x, y = digits()
    session.model.eval()
    with torch.no_grad():
        accuracy = float((session.model(x[1500:]).argmax(1) == y[1500:]).double().mean())
    assert accuracy > 0.75


def test_the_cost_term_drives_the_share_of_open_gates():
    shares = {}
    for minimum in (10.0, 90.0):
        session, optimizer = session_of(minimum=minimum, beta=2e-2)
        run(session, optimizer, range(60), size=32)
        session.method.on_epoch_start(1)
        run(session, optimizer, range(60, 80), size=32)
        shares[minimum] = session.method.metrics()["open_percent"]
    assert shares[10.0] < 35
    assert shares[90.0] > 65


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "gated"), [("resnet18", 7), ("resnet50", 15), ("mobilenet_v2", 10)])
def test_torchvision_models_train(name, gated):
    model = getattr(torchvision.models, name)(num_classes=4)
    session = fractrain.attach("slu", model)
    assert len(blocks_of(session.model)) == gated
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 3, 32, 32, generator=g), torch.tensor([0, 1, 2, 3])
    session.loss(F.cross_entropy(session.model(x), y)).backward()
    session.step()
    assert 0 < session.costs()["cp_percent"] < 100
    session.model.eval()
    assert torch.isfinite(session.model(x)).all()


def test_a_model_can_be_copied_and_saved_between_forward_and_backward():
    method, model, x, y, ledger = build(2)
    loss = F.cross_entropy(model(x), y) + method.extra_loss()
    twin = copy.deepcopy(model)
    torch.save(model.state_dict(), io.BytesIO())
    loss.backward()
    ledger.enabled = False
    model.eval()
    twin.eval()
    assert torch.equal(twin(x), model(x))
    assert twin.skip_gate is not model.skip_gate
    assert {id(b._gate[0]) for b in blocks_of(twin)} == {id(twin.skip_gate)}


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1))

    def forward(self, x):
        return self.b(self.a(x))


def test_models_without_shortcuts_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"no shortcut in block 'b' \(Sequential\)") as error:
        fractrain.attach("slu", Plain(), blocks=["a", "b"])
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="nothing to gate in 1 block"):
        fractrain.attach("slu", Plain(), blocks=["a"])


def test_an_empty_batch_is_refused_in_one_line():
    _, model, x, *_ = build()
    with pytest.raises(ConfigError, match="empty batch"):
        model(x[:0])
