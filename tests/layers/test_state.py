"""What layers remember: weight cache, running range, copies, saved state, and weights that change under way."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from quant_helpers import tensor, watch
from torch import nn

from fractrain.layers.conv_linear import QuantConv2d, QuantLinear
from fractrain.layers.convert import convert, quant_layers
from fractrain.layers.state import QuantState
from fractrain.numerics.formats import Affine, PerAxis, PerTile, Symmetric
from fractrain.numerics.precision import FLOAT, Operand, Precision, fractrain_precision

P = fractrain_precision(4, 4, 6)


def linear(p: Precision = P, seed: int = 0) -> QuantLinear:
    torch.manual_seed(seed)
    return QuantLinear(nn.Linear(6, 5), p, QuantState(3), "fc")


def fresh(layer: QuantLinear, x: torch.Tensor) -> torch.Tensor:
    """Output of a layer built now with the same weights: what no cache can have touched."""
    other = QuantLinear(nn.Linear(6, 5), layer.precision, QuantState(3), "fc").train(layer.training)
    other.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()})
    return other(x).detach()


X = tensor((3, 6), 0)

CHANGES: dict[str, Any] = {
    "in place": lambda w: w.add_(1.0),
    "data": lambda w: w.data.add_(1.0),
    "data replaced": lambda w: setattr(w, "data", torch.ones_like(w)),
    "copy": lambda w: w.copy_(torch.ones_like(w)),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("training", [True, False])
def test_changed_weights_are_quantized_again(how: str, training: bool) -> None:
    layer = linear().train(training)
    for _ in range(2):
        before = layer(X)
        if training:
            before.sum().backward()
        with torch.no_grad():
            CHANGES[how](layer.weight)
        after = layer(X)
        assert torch.equal(after, fresh(layer, X))
        with torch.no_grad():
            layer.weight.copy_(tensor((5, 6), 1))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("foreach", [True, False])
def test_optimizers_steps_are_seen(optimizer: Any, foreach: bool) -> None:
    layer = linear()
    opt = optimizer(layer.parameters(), lr=0.1, foreach=foreach)
    for _ in range(3):
        opt.zero_grad()
        layer(X).square().sum().backward()
        opt.step()
        assert torch.equal(layer(X), fresh(layer, X))


def test_load_state_dict_is_seen() -> None:
    layer, other = linear(seed=0), linear(seed=1)
    layer(X)
    other(X)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(X), other(X))


def test_the_weight_is_quantized_once_per_step_and_operand() -> None:
    layer = linear()
    names: list[str] = []
    layer.observer = lambda _l, name, *_: names.append(name)
    layer(X)
    layer(X)
    assert names.count("fw_w") == 1  # FW and EB share it, and so do two passes of one step
    assert names.count("eb_w") == 0
    layer.precision = P.with_bits(w=3)
    layer(X)
    assert names.count("fw_w") == 2


def test_width_maps_are_told_apart_even_at_the_same_address() -> None:
    layer = linear()
    layer.train()
    for seed in range(30):  # a freed map's address is soon taken by the next
        bits = torch.randint(2, 9, (5,), generator=torch.Generator().manual_seed(seed))
        layer.precision = Precision(fw_w=Operand(bits))
        assert torch.equal(layer(X), fresh(layer, X))
    bits.fill_(3)  # changed in place
    assert torch.equal(layer(X), fresh(layer, X))


def test_stochastic_weights_are_drawn_anew_each_step() -> None:
    layer = linear(Precision(fw_w=Operand(3, Affine(rounding="stochastic"))))
    first = layer(X).detach()
    assert torch.equal(layer(X), first)
    layer.state.step = 1
    second = layer(X).detach()
    assert not torch.equal(second, first)
    layer.state.step = 0
    assert torch.equal(layer(X), first)


@pytest.mark.parametrize("p", [P, Precision(gc_a=Operand(8)), Precision()], ids=["quantized", "float W", "float"])
def test_a_weight_changed_between_forward_and_backward_is_refused_not_misused(p: Precision) -> None:
    # as plain torch does: the gradient would belong to neither weight
    layer = linear(p)
    y = layer(X.clone().requires_grad_())
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_uses_the_precision_and_weight_of_its_forward() -> None:
    def grads(change: bool) -> tuple[torch.Tensor, torch.Tensor]:
        layer = linear()
        x = X.clone().requires_grad_()
        y = layer(x)
        if change:
            layer.precision = P.with_bits(2, 2, 2)
            with torch.no_grad():
                layer(X + 5)  # another forward in between
        y.backward(tensor((3, 5), 2))
        return x.grad, layer.weight.grad

    for a, b in zip(grads(False), grads(True), strict=True):
        assert torch.equal(a, b)


# -- running range ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("keep", [0.9, 0.1, 0.0])
def test_evaluation_uses_the_running_range(keep: float, kernels: Any) -> None:
    layer = QuantLinear(nn.Linear(6, 5), fractrain_precision(4, 4, 6, keep), QuantState(kernels=kernels))
    seen = watch(layer)
    low = high = None
    for i in range(4):
        x = tensor((3, 6), i)
        layer(x)
        lo, hi = float(x.min()), float(x.max())
        low = lo if low is None else keep * low + (1 - keep) * lo
        high = hi if high is None else keep * high + (1 - keep) * hi
    assert (float(layer.running_low), float(layer.running_high)) == pytest.approx((low, high), rel=1e-6)
    assert int(layer.running_steps) == 4
    layer.eval()
    x = tensor((3, 6), 9) * 5  # beyond the range
    layer(x)
    assert low is not None
    assert high is not None
    step = (high - low) / 15
    want = (((x.double() - low) / step).round().clamp(0, 15) * step + low).float()
    torch.testing.assert_close(seen["fw_a"], want, rtol=1e-5, atol=1e-5)
    assert int(layer.running_steps) == 4  # evaluation leaves it alone


def test_without_a_range_evaluation_measures() -> None:
    for p in (P, Precision(fw_a=Operand(4))):  # never trained; no running range asked for
        layer = linear(p).eval()
        seen = watch(layer)
        layer(X)
        assert float(seen["fw_a"].min()) == float(X.min())
        assert int(layer.running_steps) == 0


@pytest.mark.parametrize("fmt", [Affine(PerTile(2, 2)), Affine(PerAxis(0)), Affine(PerAxis(1)), Symmetric()], ids=str)
def test_evaluation_by_running_range_works_for_every_granularity(fmt) -> None:
    layer = linear(Precision(fw_a=Operand(8, fmt, running=0.9)))
    layer(X)
    layer.eval()
    for n in (1, 3, 5):
        assert layer(tensor((n, 6), n)).isfinite().all()


def test_nan_in_evaluation_is_not_hidden() -> None:
    for kernels in ("fused", "reference"):
        layer = QuantLinear(nn.Linear(6, 5), P, QuantState(kernels=kernels))  # type: ignore[arg-type]
        layer(X)
        layer.eval()
        x = X.clone()
        x[1, 2] = float("nan")
        y = layer(x)
        assert y[1].isnan().all()
        assert y[0].isfinite().all()


# -- copies and saved state ------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return convert(net, P, keep_last=False)


def step(net: nn.Module, seed: int) -> None:
    net.zero_grad()
    net(tensor((4, 3, 4, 4), seed)).square().sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            p.sub_(p.grad, alpha=0.01)


def test_a_deep_copy_has_its_own_weights_and_caches() -> None:
    net = network()
    step(net, 0)
    net(tensor((4, 3, 4, 4), 1))  # fills the caches
    twin = copy.deepcopy(net)
    assert {p.data_ptr() for p in net.parameters()}.isdisjoint(p.data_ptr() for p in twin.parameters())
    before = twin(tensor((4, 3, 4, 4), 2)).detach()
    step(net, 3)
    twin.eval()
    twin.train()
    twin2 = copy.deepcopy(twin)
    states = [{id(layer.state) for layer in quant_layers(model)} for model in (net, twin, twin2)]
    assert len(set.union(*states)) == 3  # each model has one, and one only
    assert not torch.equal(net(tensor((4, 3, 4, 4), 2)), before)
    assert torch.equal(twin2(tensor((4, 3, 4, 4), 2)), twin(tensor((4, 3, 4, 4), 2)))


def test_state_dict_round_trip_goes_on_bit_for_bit() -> None:
    def run(split: bool) -> list[torch.Tensor]:
        net = network()
        for i in range(4):
            if split and i == 2:
                blob = io.BytesIO()
                torch.save(net.state_dict(), blob)
                blob.seek(0)
                net = network()
                net.load_state_dict(torch.load(blob, weights_only=True))
            for layer in quant_layers(net):
                layer.state.step = i
            step(net, i)
        net.eval()
        return [*net.state_dict().values(), net(tensor((4, 3, 4, 4), 9)).detach()]

    for a, b in zip(run(False), run(True), strict=True):
        assert torch.equal(a, b)


def test_the_state_names_the_layer_that_saw_inf_on_a_device() -> None:
    state = QuantState()
    assert state.bad_site() is None
    ok, bad = torch.tensor(1.0), torch.tensor([1.0, float("nan")])
    state.watch("a", "input", ok, ok)
    state.watch("b", "weight", ok, bad)
    state.watch("b", "weight", ok, ok)  # a later good step does not wash it away
    state.watch("c", "input", bad, ok)
    assert state.bad_site() == ("b", "weight")


def test_gradient_accumulation_equals_the_sum() -> None:
    p = Precision.of(Operand(4, Affine(PerAxis(0))), Operand(4), Operand(4, Affine(PerAxis(0))))
    a, b = linear(p), linear(p)
    for part in (X[:1], X[1:]):
        a(part).square().sum().backward()
    b(X).square().sum().backward()
    torch.testing.assert_close(a.weight.grad, b.weight.grad, rtol=1e-5, atol=1e-5)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    def grads(on: bool) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        layer = QuantConv2d(nn.Conv2d(3, 4, 3), P)
        x = tensor((2, 3, 5, 5), 0).requires_grad_()
        y = checkpoint(layer, x, use_reentrant=False) if on else layer(x)
        y.square().sum().backward()
        return x.grad, layer.weight.grad

    for a, b in zip(grads(True), grads(False), strict=True):
        assert torch.equal(a, b)


def test_float_operands_are_not_touched() -> None:
    layer = linear(Precision(fw_a=FLOAT, fw_w=FLOAT, gc_e=Operand(4)))
    assert torch.equal(layer(X).detach(), nn.functional.linear(X, layer.weight, layer.bias).detach())
