"""What the contract of methods leaves out for some: two builds train alike, with the cost known in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fractrain.cost import metrics
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models import registry as models

# Not those that tests/testing/test_contract_methods.py trains twice and whose cost has a test of its own.
ELSEWHERE = {"static", "dorefa", "wageubn", "cpt", "slu", "dynasty"}
OTHERS = [("sbm", {"variant": "banner"}), ("dfq", {"forward": "authors"})]
VARIANTS = [*((n, {}) for n in registry.names() if n not in ELSEWHERE), *OTHERS]
CP = {
    ("fp32",): 100.0,
    ("static8",): 6.25,
    ("sbm",): 6.25,
    ("sbm", "banner"): 100 * (8 * 8 + 8 * 8 + 8 * 32) / 3072,  # gradient bifurcation: GC reads the error in float
    ("pfq",): 100 * (3 * 3 + 2 * 3 * 6) / 3072,
}
IDS = ["-".join([n, *s.values()]) for n, s in VARIANTS]


def digits(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch shaped like the embedded digits: class-dependent blobs and noise."""
    g = torch.Generator().manual_seed(step)
    y = torch.randint(0, 10, (8,), generator=g)
    x = torch.randn(8, 3, 8, 8, generator=g) * 0.3
    for i, c in enumerate(y.tolist()):
        x[i, :, c // 2 : c // 2 + 3, c % 2 * 4 : c % 2 * 4 + 3] += 2.0
    return x, y


def train(name, settings, steps=3, seed=0, rate=0.05, same=False):
    method = registry.create(name, settings)
    plain = models.build("resnet20", 10, (3, 8, 8), seed)
    context = MethodContext(seed=seed, steps_per_epoch=2, total_steps=max(steps, 8), batch_size=8)
    context.ledger.meta["blocks"] = plain.gateable_blocks()
    model = method.prepare(plain, context).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    losses = []
    method.on_epoch_start(0)
    for step in range(steps):
        method.on_step_start(step)
        x, y = digits(0 if same else step)
        context.ledger.samples(len(y))
        loss = F.cross_entropy(model(x), y)
        extra = method.extra_loss()
        optimizer.zero_grad()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        method.on_step_end(step, loss.detach(), None if extra is None else extra.detach())
        losses.append(float(loss.detach()))
    method.on_epoch_end(0, sum(losses) / len(losses))
    return method, model, losses, context.ledger


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=IDS)
def test_two_fresh_builds_train_to_the_same_bits(name, settings):
    before = torch.get_rng_state()
    method, model, losses, ledger = train(name, settings)
    assert torch.equal(torch.get_rng_state(), before), "global generator touched"
    _, twin, again, other = train(name, settings)
    assert losses == again
    assert all(torch.isfinite(torch.tensor(losses)))
    ours, theirs = model.state_dict(), twin.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert ledger.digest() == other.digest()
    cp = metrics.cp(ledger)
    if CP.get((name, *settings.values())) is not None:
        assert cp == pytest.approx(CP[(name, *settings.values())], rel=1e-12)
    else:
        assert 0 < cp <= 100
    if "gate_cp" in method.metrics():
        assert 1.7578 < cp < 4.6876  # between the cheapest and the dearest candidate
    model.eval()
    with torch.no_grad():
        assert torch.isfinite(model(digits(9)[0])).all()
    assert method.state.bad_site() is None


@pytest.mark.parametrize("name", ["dfq", "pfq"])
def test_another_seed_gives_another_run(name):
    runs = [train(name, {}, steps=1, seed=s)[1].state_dict() for s in (0, 1)]
    assert not torch.equal(runs[0]["head.weight"], runs[1]["head.weight"])


@pytest.mark.parametrize(("name", "settings"), OTHERS, ids=["banner", "authors"])
def test_a_few_steps_on_one_batch_lower_its_loss(name, settings):
    *_, losses, _ = train(name, settings, steps=6, rate=0.01, same=True)
    assert min(losses[-2:]) < 0.9 * losses[0]
