"""Training each sample at its chosen precision only (DFQ's ``forward=selected``), and how its parts pass gradients."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from methods_naive import Naive, per_filter, straight
from torch import nn

from fractrain.bench.subject import force_choices
from fractrain.methods.base import MethodContext
from fractrain.methods.dfq import DFQ
from fractrain.methods.gated_block import GatedBlock
from fractrain.methods.select import chosen_only, mix
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.numerics.formats import Affine
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.stochastic_rounding import element_numbers, noise_key, uniform

REL = 1e-11


def per_row(x: torch.Tensor, bits: torch.Tensor, u: torch.Tensor | None = None) -> torch.Tensor:
    """One range for all, ``2^b`` points for the sample's own b."""
    lo, hi = x.min(), x.max()
    top = (2.0 ** bits.double() - 1).view(-1, *([1] * (x.dim() - 1)))
    step = ((hi - lo) / top).clamp(min=1e-8)
    v = (x - lo) / step
    q = v.round() if u is None else v.floor() + (u.to(x.dtype) < v - v.floor())
    return torch.minimum(q.clamp(min=0), top) * step + lo


class RowError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, bits, noise):
        ctx.bits, ctx.noise = bits, noise
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return per_row(g, ctx.bits, None if ctx.noise is None else ctx.noise(g)), None, None


@dataclass
class NaiveSelected(Naive):
    """One pass; the mask multiplies with its chosen column, so that autograd gives that column its gradient."""

    def __call__(self, x):
        p = self.parameters
        h = F.relu(self.norm("stem.1", F.conv2d(x, p["stem.0.weight"], padding=1)))
        size = p["precision_gate.head.weight"].shape[1]
        state = (h.new_zeros(len(x), size), h.new_zeros(len(x), size))
        for i, name in enumerate(self.blocks):
            mask, state = self.gate(i, h, state)
            choice = mask.detach().argmax(1)
            h = mask.gather(1, choice[:, None]).view(-1, 1, 1, 1) * self.block(name, self.strides[i], h, choice)
        return h.mean(dim=(2, 3)) @ p["head.weight"].t() + p["head.bias"]

    def conv(self, block, layer, x, stride, padding, k):
        a, w, e = (torch.tensor(column)[k] for column in zip(*self.candidates, strict=True))
        weight = self.parameters[f"{block}.block.{layer}.weight"]
        qw = straight(weight, per_filter(weight.detach(), int(w[0])))
        y = F.conv2d(straight(x, per_row(x.detach(), a)), qw, None, stride, padding)
        noise = None if self.noise is None else lambda g: self.noise(f"{block}.{layer}", 0, g)
        return RowError.apply(y, e, noise)


def build(seed, rounding="nearest", **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = DFQ(**settings)
        model = method.prepare(ResNetCifar(1, 4), MethodContext(seed=seed, batch_size=8))
        for p in model.precision_gate.parameters():
            nn.init.normal_(p, 0.0, 1.0)
        x, y = torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))
    blocks = [m for m in model.modules() if isinstance(m, GatedBlock)]
    for b in blocks:
        b.precisions = [
            Precision.of(a=q.fw_a, w=q.fw_w, e=Operand(q.gc_e.bits, Affine(rounding=rounding))) for q in b.precisions
        ]
    return method, model, blocks, x, y


def close(ours, theirs, what):
    assert float((ours - theirs).abs().max()) <= REL * (float(theirs.abs().max()) or 1.0), what


@pytest.mark.usefixtures("float64_codes")
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("seed", [4, 5])
def test_selected_equals_a_naive_network_with_widths_per_sample(seed, rounding):
    method, model, blocks, x, y = build(seed, rounding, forward="selected")
    model.double()
    method.state.kernels = "reference"
    x = x.double()
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    logits = model(ours_x)
    F.cross_entropy(logits, y).backward()

    def noise(layer, k, g):
        key = noise_key(method.state.seed, method.state.step, f"{layer}.E#{k}")
        return uniform(key, element_numbers(g.shape, g.device))

    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    triples = [(c.a, c.w, c.e) for c in blocks[0].candidates]
    naive = NaiveSelected(
        leaves, [b.name for b in blocks], (1, 2, 2), triples, noise if rounding != "nearest" else None
    )
    out = naive(theirs_x)
    F.cross_entropy(out, y).backward()
    assert len({k for b in blocks for k in b.choice.tolist()}) >= 3
    close(logits.detach(), out.detach(), "outputs")
    close(ours_x.grad, theirs_x.grad, "input")
    for name, p in model.named_parameters():
        close(p.grad, leaves[name].grad, name)
    for name, seen in naive.statistics.items():  # once per step, over the mixed batch
        assert len(seen) == 1
        close(model.get_submodule(name).running_mean, 0.1 * seen[0][0], name)


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_selected_counts_what_all_counts_and_equals_it_where_one_candidate_is_chosen(kernels):
    results, rows = [], []
    for forward in ("all", "selected"):
        method, model, _, x, y = build(3, forward=forward)
        method.state.kernels = kernels
        force_choices(model, (0, 3, 4))
        F.cross_entropy(model(x), y).backward()
        rows.append(list(method.state.ledger.rows()))
        method, model, _, x, y = build(3, forward=forward)
        method.state.kernels = kernels
        force_choices(model, (2,))
        logits = model(x)
        F.cross_entropy(logits, y).backward()
        # of what comes after the last gate: the gates' own gradients differ, and reach all before them
        after = [p.grad for n, p in model.named_parameters() if n.startswith(("groups.2.0.block", "head"))]
        results.append((logits.detach(), after))
    assert rows[0] == rows[1]
    (a, ag), (b, bg) = results
    assert torch.equal(a, b)
    assert all(torch.equal(g, h) for g, h in zip(ag, bg, strict=True))


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 5, 7)])
def test_mixing_gives_mask_and_candidates_the_gradients_of_a_sum(shape):
    gen = torch.Generator().manual_seed(0)
    outs = [torch.randn(shape, generator=gen, dtype=torch.float64) for _ in range(2)]
    outs = [outs[0], outs[1], outs[1]]
    choice = torch.tensor([0, 1, 2, 2, 0, 1])
    g = torch.randn(shape, generator=gen, dtype=torch.float64)
    mask = F.one_hot(choice, 3).double()
    leaves = [t.clone().requires_grad_() for t in (mask, *outs)]
    rows = [leaves[0][:, k].view(-1, *([1] * (len(shape) - 1))) for k in range(3)]
    want = sum(m * o for m, o in zip(rows, leaves[1:], strict=True))
    want.backward(g)
    ours = [t.clone().requires_grad_() for t in (mask, *outs)]
    got = mix(ours[0], choice, ours[1:])
    got.backward(g)
    assert torch.equal(got, want)
    for a, b in zip(ours, leaves, strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-12, atol=1e-14)

    ours = [mask.clone().requires_grad_(), want.detach().clone().requires_grad_()]
    chosen_only(ours[0], choice, ours[1]).backward(g)
    assert torch.equal(ours[1].grad, g)
    assert torch.allclose(ours[0].grad, leaves[0].grad * mask, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("frozen", "images"), [(False, True), (True, True), (False, False), (True, False)])
def test_only_what_learns_has_a_gradient(frozen, images):
    _, model, blocks, x, y = build(4, "stochastic")
    for b in blocks:
        b.block.conv2.weight.requires_grad_(not frozen)
    for p in model.stem.parameters():
        p.requires_grad_(images)
    x.requires_grad_(images)
    F.cross_entropy(model(x), y).backward()
    assert (x.grad is not None) == images
    for b in blocks:
        assert bool(b.block.conv1.weight.grad.any())
        assert (b.block.conv2.weight.grad is None) == frozen


def test_a_step_leaves_no_graph_behind():
    _, model, _, x, y = build(4)
    force_choices(model, (0, 1, 2, 3, 4))
    kept = []
    model.groups[0][0].register_forward_hook(lambda m, args, out: kept.append(weakref.ref(out)))
    gc.disable()  # by reference counts alone: no cycle may hold it
    try:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        del loss
        for b in (m for m in model.modules() if isinstance(m, GatedBlock)):
            b.mask = b.choice = None
        assert [r() for r in kept] == [None]
    finally:
        gc.enable()
