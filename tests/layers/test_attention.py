"""Attention of PyTorch's own modules: projections and products as layers, with PyTorch's values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from field_models import CrossAttention, Encoder
from layer_models import batches, seeded
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fractrain
from fractrain.layers.attention import LayeredAttention
from fractrain.layers.convert import convert, quant_layers
from fractrain.layers.state import QuantState
from fractrain.methods import registry
from fractrain.numerics.precision import Precision, fractrain_precision

MODELS = pytest.mark.parametrize(
    "build", [Encoder, lambda: Encoder(False), CrossAttention], ids=["encoder", "sequence first", "decoder"]
)
T, S, N = 5, 7, 3
KINDS: dict[str, dict[str, Any]] = {
    "plain": {}, "batch first": {"batch_first": True}, "other widths": {"kdim": 6, "vdim": 10},
    "no bias": {"bias": False}, "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
}  # fmt: skip
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weights": {"need_weights": False},
    "weights by head": {"average_attn_weights": False},
    "causal": {"attn_mask": torch.ones(T, S).triu(1).bool()},
    "added mask": {"attn_mask": torch.randn(N * 2, T, S, generator=torch.Generator().manual_seed(5))},
    "padding": {"key_padding_mask": torch.arange(S).expand(N, S) >= torch.tensor([[7], [4], [2]])},
}


def attention(kind: str) -> tuple[nn.MultiheadAttention, list[torch.Tensor]]:
    options = KINDS[kind]
    plain = seeded(lambda: nn.MultiheadAttention(8, 2, **options))
    with torch.no_grad():
        for p in plain.parameters():
            if p.dim() == 1:
                p.normal_()
    g = torch.Generator().manual_seed(1)
    shapes = [(T, N, 8), (S, N, options.get("kdim", 8)), (S, N, options.get("vdim", 8))]
    inputs = [torch.randn(*shape, generator=g) for shape in shapes]
    return plain, [x.transpose(0, 1) for x in inputs] if options.get("batch_first") else inputs


def gradients(module: nn.Module, inputs: list[torch.Tensor], **call: Any) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    y, weights = module(*inputs, **call)
    module.zero_grad()
    (y.square().sum() + (0 if weights is None else weights.square().sum())).backward()
    found = [y, *([] if weights is None else [weights]), *(x.grad for x in inputs)]
    return [t.detach() for t in [*found, *(p.grad for p in module.parameters())]]  # type: ignore[union-attr]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_pytorch_s(kind: str, call: str) -> None:
    """Bit for bit in floating point; at 16 bits within their rounding."""
    plain, inputs = attention(kind)
    want = gradients(copy.deepcopy(plain), inputs, **CALLS[call])
    exact = convert(copy.deepcopy(plain), Precision(), strict=False)
    assert isinstance(exact, LayeredAttention)
    for a, b in zip(gradients(exact, inputs, **CALLS[call]), want, strict=True):
        assert torch.equal(a, b)
    fine = convert(copy.deepcopy(plain), fractrain_precision(16, 16, 16), keep_last=False)
    for a, b in zip(gradients(fine, inputs, **CALLS[call]), want, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 5e-3 * b.abs().max() + 1e-6


def test_an_input_without_a_sample_axis_is_one_sample() -> None:
    plain, _ = attention("plain")
    x = torch.randn(T, 8)
    fine = convert(copy.deepcopy(plain), fractrain_precision(16, 16, 16), keep_last=False)
    for a, b in zip(fine(x, x, x), plain(x, x, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)


def test_names_of_parameters_stay_and_none_is_there_twice() -> None:
    plain, inputs = attention("plain")
    names = dict(plain.named_parameters())
    model = convert(plain, fractrain_precision(8, 8, 8), keep_last=False)
    assert {n: id(p) for n, p in model.named_parameters()} == {n: id(p) for n, p in names.items()}
    assert set(names) <= set(model.state_dict())
    assert isinstance(model, nn.MultiheadAttention)
    twin = copy.deepcopy(model)
    assert twin.q_proj.weight.data_ptr() == twin.in_proj_weight.data_ptr() != model.in_proj_weight.data_ptr()
    with torch.no_grad():
        twin.in_proj_weight.add_(1.0)  # the copy's projections see it, the original's do not
    assert not torch.equal(twin.eval()(*inputs)[0], model.eval()(*inputs)[0])


@MODELS
@pytest.mark.parametrize("bits", [32, 8])
def test_all_products_are_counted(build, bits: int) -> None:
    plain = seeded(build)
    x = next(batches(1))[0]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        plain(x)
    state = QuantState()
    precision = Precision() if bits == 32 else fractrain_precision(bits, bits, bits)
    model = convert(plain, precision, state, keep_last=False, strict=False)
    model(x).sum().backward()
    macs = {p: sum(r.macs for r in state.ledger.rows() if r.product == p) for p in ("FW", "EB", "GC")}
    assert macs["FW"] == macs["GC"] == counter.get_total_flops() // 2
    assert macs["EB"] == macs["FW"] - sum(r.macs for r in state.ledger.rows() if r.layer == "patch") // 2
    assert {r.bits1 for r in state.ledger.rows()} == {bits}


@MODELS
def test_fp32_is_the_plain_model_in_training_and_evaluation(build) -> None:
    plain, session = seeded(build), fractrain.attach("fp32", seeded(build))
    x, y = next(batches(1))
    for model in (plain, session.model):
        nn.functional.cross_entropy(model(x), y).backward()
    for a, b in zip(plain.parameters(), session.model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), session.model.eval()(x))
    assert session.report().covered == 100


@MODELS
def test_evaluation_is_the_quantized_model_s_with_gradients_and_without(build) -> None:
    session = fractrain.attach("static", seeded(build), bits=4, layers="all")
    x, _ = next(batches(1))
    session.model(x)
    with_gradients = session.model.eval()(x)
    with torch.no_grad():
        without = session.model(x)
    with torch.inference_mode():
        inference = session.model(x)
    assert torch.equal(with_gradients, without)
    assert torch.equal(with_gradients, inference)
    assert not torch.equal(without, seeded(build).eval()(x))


@pytest.mark.parametrize("build", [Encoder, CrossAttention], ids=["encoder", "decoder"])
@pytest.mark.parametrize("method", [m for m in registry.names() if m not in ("dfq", "fractrain", "slu", "dorefa")])
def test_every_method_trains_attention(build, method: str) -> None:
    session = fractrain.attach(method, seeded(build), **({"total_steps": 4} if method == "cpt" else {}))
    optimizer = session.optimizer(lr=0.05)
    for x, y in batches(2):
        session.loss(nn.functional.cross_entropy(session.model(x), y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    assert session.report().covered == 100
    assert all(layer.weight.isfinite().all() for layer in quant_layers(session.model) if hasattr(layer, "in_features"))
