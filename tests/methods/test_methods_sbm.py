"""sbm in its two variants: what is quantized how, and banner's arithmetic against a float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from methods_naive import affine, straight
from torch import nn

from fractrain.cost import metrics
from fractrain.layers.batch_norm import CompactBatchNorm2d
from fractrain.layers.convert import quant_layers
from fractrain.layers.range_norm import RangeBatchNorm2d
from fractrain.layers.state import QuantState
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.numerics.stochastic_rounding import element_numbers, noise_key, uniform

RTOL = 1e-10


def prepared(model, seed=0, blocks=(), **settings):
    method = registry.create("sbm", settings)
    context = MethodContext(seed=seed, blocks=blocks)
    context.ledger.meta["blocks"] = list(blocks)
    return method, method.prepare(model, context), context.ledger


def resnet(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetCifar(1, 4)


def images(n=6, c=3, size=8, seed=1, dtype=torch.float32):
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("bits", "grad_bits", "cp"),
    [(8, 8, 6.25), (8, 12, 8.333), (8, 16, 10.417), (6, 8, 4.297), (6, 12, 5.859), (4, 6, 2.083)],
)
def test_static_cp_of_the_ledger(bits, grad_bits, cp):
    plain = resnet()
    _, model, ledger = prepared(plain, blocks=plain.gateable_blocks(), bits=bits, grad_bits=grad_bits)
    model(images()).sum().backward()
    assert metrics.cp(ledger) == pytest.approx(100 * (bits * bits + 2 * bits * grad_bits) / 3072, rel=1e-12)
    assert round(metrics.cp(ledger), 3) == cp


def test_fractrain_variant_quantizes_every_convolution_and_nothing_else():
    _method, model, _ = prepared(resnet())
    calls = {}

    def observer(layer, name, op, original, quantized):
        calls.setdefault(layer.site, []).append((name, op.bits, op.format.rounding))
        if name == "fw_w":
            for w, q in zip(original, quantized, strict=True):
                torch.testing.assert_close(q, affine(w, 8, w.min(), w.max(), None))
        elif name == "fw_a":
            torch.testing.assert_close(quantized, affine(original, 8, original.min(), original.max(), None))

    for layer in quant_layers(model):
        layer.observer = observer
    model(images()).square().sum().backward()
    convs = {"stem.0", "groups.1.0.shortcut.0", "groups.2.0.shortcut.0"}
    convs |= {f"groups.{g}.0.conv{i}" for g in range(3) for i in (1, 2)}
    assert set(calls) == convs
    # one quantized error per layer: EB and GC share it
    assert all(
        sorted(c) == [("E", 8, "stochastic"), ("fw_a", 8, "nearest"), ("fw_w", 8, "nearest")] for c in calls.values()
    )
    assert type(model.head).__name__ == "QuantLinear"
    assert model.head.precision.is_float
    norms = [m for m in model.modules() if "Norm" in type(m).__name__ and not any(m.children())]
    assert norms
    assert all(type(m) is CompactBatchNorm2d for m in norms)


def test_fractrain_variant_backward_uses_one_error_for_both_products(float64_codes):
    """dA and dW of one layer follow from the same quantized error."""
    torch_seed = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    nn.init.normal_(net[0].weight, generator=torch_seed)
    method, model, _ = prepared(net, seed=9)
    model.double()
    method.state.kernels, method.state.step = "reference", 5
    x = images(4, 3, 6, dtype=torch.float64).requires_grad_()
    y = model(x)
    g = torch.randn(y.shape, generator=torch_seed, dtype=torch.float64)
    y.backward(g)
    key = noise_key(method.state.seed, 5, "0.E")
    e = affine(g, 8, g.min(), g.max(), uniform(key, element_numbers(g.shape, g.device)))
    w, a = net[0].weight.detach(), x.detach()
    qw = torch.stack([affine(f, 8, f.min(), f.max(), None) for f in w])
    qa = affine(a, 8, a.min(), a.max(), None)
    torch.testing.assert_close(y.detach(), F.conv2d(qa, qw, padding=1), rtol=RTOL, atol=1e-12)
    torch.testing.assert_close(x.grad, F.conv_transpose2d(e, qw, padding=1), rtol=RTOL, atol=1e-12)
    dw = F.conv2d(qa.transpose(0, 1), e.transpose(0, 1), padding=1).transpose(0, 1)
    torch.testing.assert_close(net[0].weight.grad, dw, rtol=RTOL, atol=1e-12)


class SavedError(torch.autograd.Function):
    """Identity whose backward quantizes the error with the package's noise of that name."""

    @staticmethod
    def forward(ctx, y, key):
        ctx.key = key
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return affine(g, 8, g.min(), g.max(), uniform(ctx.key, element_numbers(g.shape, g.device))), None


def mean_extremes(x):
    flat = x.detach().reshape(len(x), -1)
    return flat.min(1).values.mean(), flat.max(1).values.mean()


def banner_product(op, x, w, b, key):
    """Banner's gradient bifurcation: one product carries the weight's gradient, its twin the (quantized) error."""
    lo, hi = mean_extremes(x)
    qx = straight(x, affine(x.detach(), 8, lo, hi, None))
    qw = straight(w, affine(w.detach(), 8, w.min(), w.max(), None))
    one = op(qx.detach(), qw, b)
    two = SavedError.apply(op(qx, qw.detach(), None if b is None else b.detach()), key)
    return one + two - two.detach()


def banner_norm(x, gamma, beta, key, eps=1e-5):
    """Range BN by loops over channels and chunks."""

    def q(v):
        return straight(v, affine(v.detach(), 8, v.detach().min(), v.detach().max(), None))

    x = q(x)
    channels = x.shape[1]
    means, scales = [], []
    for c in range(channels):
        values = x[:, c].reshape(-1)
        parts = values.split(len(values) // math.gcd(16, len(values)))
        highs = torch.stack([p.amax() for p in parts]).mean()
        lows = torch.stack([p.amin() for p in parts]).mean()
        const = 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(len(parts[0])))
        means.append(values.mean())
        scales.append(1 / ((highs - lows) * const + eps))
    mean, scale = torch.stack(means), torch.stack(scales)
    mean, factor, shift = (v.view(1, -1, 1, 1) for v in (mean, q(scale) * q(gamma), q(beta)))
    y = (x - mean) * factor + shift
    return SavedError.apply(y, key)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.head = nn.Conv2d(5, 4, 3, stride=2), nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv2(torch.relu(self.bn(self.conv1(x))))
        return self.head(y.mean(dim=(2, 3)))


def test_banner_variant_equals_an_independent_float64_reference(float64_codes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        plain = Tiny()
        nn.init.uniform_(plain.bn.weight, 0.5, 2)
        nn.init.normal_(plain.bn.bias)
    method, model, _ = prepared(plain, seed=2, variant="banner")
    model.double()
    method.state.kernels, method.state.step = "reference", 7
    assert isinstance(model.bn, RangeBatchNorm2d)
    x = images(8, 3, 8, dtype=torch.float64).requires_grad_()
    out = model(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (out * weights).sum().backward()

    p = {n: v.detach().clone().requires_grad_() for n, v in model.named_parameters()}
    z = x.detach().clone().requires_grad_()

    def key(name):
        return noise_key(method.state.seed, 7, name)

    y = banner_product(lambda a, w, b: F.conv2d(a, w, b, padding=1), z, p["conv1.weight"], None, key("conv1.E.eb"))
    y = banner_norm(y, p["bn.weight"], p["bn.bias"], key("bn.E"))
    y = banner_product(
        lambda a, w, b: F.conv2d(a, w, b, stride=2), y.relu(), p["conv2.weight"], p["conv2.bias"], key("conv2.E.eb")
    )
    ref = banner_product(F.linear, y.mean(dim=(2, 3)), p["head.weight"], p["head.bias"], key("head.E.eb"))
    (ref * weights).sum().backward()
    torch.testing.assert_close(out, ref, rtol=RTOL, atol=1e-12)
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-8, atol=1e-10 * float(z.grad.abs().max()))
    for name, v in model.named_parameters():
        scale = float(p[name].grad.abs().max())
        torch.testing.assert_close(v.grad, p[name].grad, rtol=1e-8, atol=1e-10 * scale)


def test_banner_quantizes_first_and_last_layer_and_bifurcates():
    _, model, _ = prepared(resnet(), variant="banner")
    calls = {}
    for layer in quant_layers(model):
        layer.observer = lambda layer, name, op, o, q: calls.setdefault(layer.site, []).append((name, op.bits))
    model(images()).square().sum().backward()
    assert {"stem.0", "head"} <= set(calls)
    inside = {tuple(sorted(c)) for site, c in calls.items() if site != "stem.0"}
    assert inside == {(("E.eb", 8), ("fw_a", 8), ("fw_w", 8))}  # no quantized error for GC
    assert sorted(calls["stem.0"]) == [("fw_a", 8), ("fw_w", 8)]  # images need no EB
    assert not [m for m in model.modules() if type(m) is nn.BatchNorm2d]


def test_banner_activation_range_keeps_a_tenth_of_the_old_one():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    _, model, _ = prepared(net, variant="banner")
    first, second = images(seed=1), 3 * images(seed=2)
    model(first)
    model(second)
    layer = next(iter(quant_layers(model)))
    ranges = zip((layer.running_low, layer.running_high), mean_extremes(first), mean_extremes(second), strict=True)
    for got, old, new in ranges:
        assert float(got) == pytest.approx(0.1 * float(old) + 0.9 * float(new), rel=1e-6)


def test_fractrain_activation_range_keeps_nine_tenths():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    _, model, _ = prepared(net)
    first, second = images(seed=1), 3 * images(seed=2)
    model(first)
    model(second)
    layer = next(iter(quant_layers(model)))
    assert float(layer.running_low) == pytest.approx(0.9 * float(first.min()) + 0.1 * float(second.min()), rel=1e-6)
    assert float(layer.running_high) == pytest.approx(0.9 * float(first.max()) + 0.1 * float(second.max()), rel=1e-6)
    model.eval()
    inputs = []
    layer.observer = lambda layer, name, op, o, q: inputs.append(q) if name == "fw_a" else None
    model(100 * first)
    assert float(inputs[0].max()) == pytest.approx(float(layer.running_high), rel=1e-5)  # clipped to the running range


def test_range_norm_of_a_worked_example():
    """16 chunks of 2 values 0 and 2^k: range 4, n = 2."""
    ours = RangeBatchNorm2d(nn.BatchNorm2d(1), QuantState(), "bn", 8, 8)
    x = torch.tensor([0.0, 4.0]).repeat(16).view(2, 1, 4, 4)
    c = 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(2))
    scale = 1 / (4 * c + 1e-5)
    y = ours(x)
    torch.testing.assert_close(y, (x - 2.0) * scale, rtol=1e-6, atol=1e-6)
