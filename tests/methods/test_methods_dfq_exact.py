"""DFQ against a slow float64 network that runs every candidate in full and mixes outputs, as the authors' code does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from methods_naive import Naive
from torch import nn

from fractrain.methods.base import MethodContext
from fractrain.methods.dfq import DFQ
from fractrain.methods.gated_block import GatedBlock
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.numerics.formats import Affine
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.stochastic_rounding import element_numbers, noise_key, uniform

SAMPLES, SIZE, CLASSES = 8, 8, 4
STRIDES = (1, 2, 2)
REL = 1e-11

pytestmark = pytest.mark.usefixtures("float64_codes")


def build(seed: int, rounding: str = "nearest", **settings) -> tuple[DFQ, nn.Module, list[GatedBlock]]:
    """A prepared 8-layer ResNet in float64, its gates pushed apart so that one batch chooses several candidates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = DFQ(**settings)
        model = method.prepare(ResNetCifar(1, CLASSES), MethodContext(seed=seed, batch_size=SAMPLES)).double()
        method.state.kernels = "reference"
        method.state.step = 3
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0.0, 0.3)
        gate = model.precision_gate
        for p in gate.parameters():
            nn.init.normal_(p, 0.0, 1.0)
    blocks = [m for m in model.modules() if isinstance(m, GatedBlock)]
    for b in blocks:
        b.precisions = [
            Precision.of(a=q.fw_a, w=q.fw_w, e=Operand(q.gc_e.bits, Affine(rounding=rounding))) for q in b.precisions
        ]
    return method, model, blocks


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed + 1000)
    x = torch.randn(SAMPLES, 3, SIZE, SIZE, generator=g, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (SAMPLES,), generator=g)


def naive_of(method: DFQ, model: nn.Module, blocks: list[GatedBlock], noise=None) -> Naive:
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    triples = [(c.a, c.w, c.e) for c in blocks[0].candidates]
    return Naive(leaves, [b.name for b in blocks], STRIDES, triples, noise)


def keyed_noise(method: DFQ):
    """The package's noise by its documented name: (seed, step, layer.E#candidate, element)."""

    def noise(layer: str, k: int, g: torch.Tensor) -> torch.Tensor:
        key = noise_key(method.state.seed, method.state.step, f"{layer}.E#{k}")
        return uniform(key, element_numbers(g.shape, g.device))

    return noise


def close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    scale = float(theirs.abs().max()) or 1.0
    assert float((ours - theirs).abs().max()) <= REL * scale, what


def total_loss(method: DFQ, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    extra = method.extra_loss()
    assert extra is not None
    return F.cross_entropy(logits, y) + extra


def naive_loss(naive: Naive, x: torch.Tensor, y: torch.Tensor, target: float, beta: float) -> torch.Tensor:
    """Cross-entropy and the authors' cost term, by loops over blocks, samples and candidates."""
    ce = F.cross_entropy(naive(x), y)
    cost = torch.zeros((), dtype=torch.float64)
    for mask in naive.masks:
        for row in mask:
            for m, (a, w, e) in zip(row, naive.candidates, strict=True):
                cost = cost + m * (a * w / 1024 + e * w / 1024 + a * e / 1024)
    cp = 100 * float(cost.detach()) / (3 * SAMPLES * len(naive.masks))
    return ce + (-1 if cp < target else 1) * beta * cost


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("forward", ["all", "authors"])
@pytest.mark.parametrize("seed", [4, 9])
def test_outputs_gradients_and_masks_equal_the_naive_network(seed, forward, rounding):
    method, model, blocks = build(seed, rounding, forward=forward, beta=0.01)
    x, y = data(seed)
    ours_x = x.clone().requires_grad_()
    logits = model(ours_x)
    total_loss(method, logits, y).backward()

    naive = naive_of(method, model, blocks, keyed_noise(method) if rounding == "stochastic" else None)
    theirs_x = x.clone().requires_grad_()
    loss = naive_loss(naive, theirs_x, y, target=3.0, beta=0.01)
    loss.backward()

    chosen = [b.choice.tolist() for b in blocks]
    assert len({k for c in chosen for k in c}) >= 3, "the batch should choose several candidates"
    for b, mask in zip(blocks, naive.masks, strict=True):
        assert torch.equal(b.mask, mask.detach().round())
    naive.masks.clear()
    naive.probabilities.clear()
    close(logits.detach(), naive(x).detach(), "outputs")
    close(ours_x.grad, theirs_x.grad, "input")
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        close(p.grad, naive.parameters[name].grad, name)
    gate = [p.grad.abs().max() for n, p in model.named_parameters() if n.startswith("precision_gate")]
    assert min(gate) > 0


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_every_pass_gives_the_same_bits_as_the_short_way(rounding):
    results = []
    for forward in ("all", "authors"):
        method, model, _ = build(8, rounding, forward=forward)
        x, y = data(8)
        x.requires_grad_()
        logits = model(x)
        total_loss(method, logits, y).backward()
        results.append((logits.detach(), x.grad, [p.grad for p in model.parameters()]))
    (a, ax, ag), (b, bx, bg) = results
    assert torch.equal(a, b)
    assert torch.equal(ax, bx)
    assert all(torch.equal(g, h) for g, h in zip(ag, bg, strict=True))


@pytest.mark.parametrize(("forward", "passes"), [("all", [0, 1, 3]), ("authors", [0, 1, 2, 3, 4])])
def test_batch_norm_statistics_move_once_per_distinct_forward_precision_or_once_per_candidate(forward, passes):
    method, model, blocks = build(4, forward=forward)
    before = {n: b.clone() for n, b in model.named_buffers()}
    x, _ = data(4)
    model(x)
    naive = naive_of(method, model, blocks)
    naive(x)
    after = dict(model.named_buffers())
    for name, seen in naive.statistics.items():
        mean, var = before[f"{name}.running_mean"], before[f"{name}.running_var"]
        for k in passes if ".block." in name else [0]:
            mean, var = 0.9 * mean + 0.1 * seen[k][0], 0.9 * var + 0.1 * seen[k][1]
        close(after[f"{name}.running_mean"], mean, name)
        close(after[f"{name}.running_var"], var, name)
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("forward", ["all", "authors"])
def test_candidates_nobody_chose_add_exactly_nothing_to_the_weight_gradients(forward):
    _method, model, blocks = build(2, forward=forward)
    with torch.no_grad():
        model.precision_gate.head.weight.zero_()
        model.precision_gate.head.bias.copy_(torch.tensor([0.0, 0, 5, 0, 0]))  # everybody takes (4, 8)
    errors = []
    for b in blocks:
        for layer in (b.block.conv1, b.block.conv2):
            layer.observer = lambda layer, name, op, g, q: errors.append((op.bits, q)) if name.startswith("E") else None
    x, y = data(2)
    F.cross_entropy(model(x), y).backward()
    grads = [b.block.conv2.weight.grad.clone() for b in blocks]
    assert {bits for bits, q in errors if q.count_nonzero()} == {8}
    assert {bits for bits, _ in errors} == ({8} if forward == "all" else {6, 8, 12})

    _alone, static, static_blocks = build(2, forward=forward)
    with torch.no_grad():
        for b in static_blocks:  # a network that has only this candidate
            b.candidates, b.precisions = [b.candidates[2]], [b.precisions[2]]
        head = static.precision_gate.head
        head.weight, head.bias = nn.Parameter(head.weight[:1].clone()), nn.Parameter(head.bias[:1].clone())
    F.cross_entropy(static(x), y).backward()
    for g, b in zip(grads, static_blocks, strict=True):
        close(g, b.block.conv2.weight.grad, "conv2")


def test_evaluation_gives_each_sample_what_the_whole_batch_gets_at_its_precision():
    _method, model, blocks = build(4)
    x, _ = data(4)
    model(x)  # sets the ranges used in evaluation
    model.eval()
    inputs = {}
    for b in blocks:
        b.register_forward_hook(lambda b, args, out: inputs.__setitem__(b.name, (args[0], out.detach())))
    model(x)
    used = {k for b in blocks for k in b.choice.tolist()}
    assert len(used) >= 3
    for b in blocks:
        z, mixed = inputs[b.name]
        for n, k in enumerate(b.choice.tolist()):
            for layer in (b.block.conv1, b.block.conv2, *([b.block.shortcut[0]] if len(b.block.shortcut) else [])):
                layer.precision = b.precisions[k]
            close(mixed[n], b.block(z)[n].detach(), f"{b.name} sample {n}")


def test_evaluation_does_not_depend_on_who_else_is_in_the_batch():
    _method, model, _ = build(4)
    x, _ = data(4)
    model(x)
    model.eval()
    together = model(x)
    alone = torch.cat([model(x[i : i + 1]) for i in range(SAMPLES)])
    close(together.detach(), alone.detach(), "batch of one")
