"""Max pooling that keeps a byte per output, against torch's own: the same bits, forward and backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_helpers import tensor
from torch import nn

from fractrain.kernels.cpu import max_pool as fused_pool
from fractrain.kernels.cpu.tensors import nhwc
from fractrain.layers.compact import compact_layers
from fractrain.layers.max_pool import CompactMaxPool2d
from fractrain.layers.state import QuantState

SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def both(pool: nn.MaxPool2d, x: torch.Tensor, g: Any = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    out = []
    for one in (pool, CompactMaxPool2d.of(pool)):
        leaf = x.clone().requires_grad_()
        y = one(leaf)
        y.backward(tensor(y.shape, 7) if g is None else g)
        assert leaf.grad is not None
        out.append((y.detach(), leaf.grad))
    return out


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_torch_s_bits(data) -> None:
    draw = lambda lo, hi: data.draw(st.integers(lo, hi))  # noqa: E731
    kernel = (draw(1, 4), draw(1, 4))
    pool = nn.MaxPool2d(kernel, (draw(1, 3), draw(1, 3)), (draw(0, kernel[0] // 2), draw(0, kernel[1] // 2)))
    shape = (draw(1, 3), draw(2, 20), draw(kernel[0], 9), draw(kernel[1], 9))
    x = tensor(shape, draw(0, 99)).round() if draw(0, 1) else tensor(shape, 3)  # rounded: many ties
    if draw(0, 1):
        x.flatten()[:: draw(1, 7)] = SPECIAL[draw(0, 4)]
    x = x.contiguous(memory_format=torch.channels_last)
    (y, dx), (z, dz) = both(pool, x)
    assert same_bits(y, z)
    assert same_bits(dx, dz)


@pytest.mark.parametrize("threads", [1, 2])
def test_both_builds_on_an_image_of_imagenet_s_size(threads: int) -> None:
    x = torch.relu(tensor((2, 64, 112, 112), 0)).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        (y, dx), (z, dz) = both(nn.MaxPool2d(3, 2, 1), x)
    finally:
        torch.set_num_threads(before)
    assert same_bits(y, z)
    assert same_bits(dx, dz)


def test_it_takes_the_own_way_and_keeps_a_byte_per_output() -> None:
    x = tensor((2, 8, 10, 10), 0).contiguous(memory_format=torch.channels_last).requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = CompactMaxPool2d(3, 2, 1)(x)
    assert [(t.dtype, t.shape) for t in kept] == [(torch.uint8, y.shape)]
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("options", "shape"), [
    ({"dilation": 2}, (2, 3, 9, 9)), ({"ceil_mode": True}, (2, 3, 8, 8)), ({"stride": None}, (3, 9, 9)),
])  # fmt: skip
def test_what_it_is_not_written_for_takes_torch_s_way(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    (y, dx), (z, dz) = both(nn.MaxPool2d(3, **options), tensor(shape, 1))
    assert same_bits(y, z)
    assert same_bits(dx, dz)
    double = tensor((1, 2, 6, 6), 0).double().contiguous(memory_format=torch.channels_last)
    assert torch.equal(CompactMaxPool2d(2)(double), nn.MaxPool2d(2)(double))
    y, places = CompactMaxPool2d(2, return_indices=True)(double)
    assert places.dtype == torch.int64


@pytest.mark.parametrize(("kernel", "padding", "size"), [(3, 2, 9), (5, 0, 4)])
def test_what_torch_refuses_is_refused(kernel: int, padding: int, size: int) -> None:
    x = tensor((1, 2, size, size), 0).contiguous(memory_format=torch.channels_last)
    for pool in (nn.MaxPool2d(kernel, 2, padding), CompactMaxPool2d(kernel, 2, padding)):
        with pytest.raises(RuntimeError):
            pool(x)


def test_a_window_outside_is_no_place_of_the_image() -> None:
    """Where everything is -inf the first place inside the image is taken, as torch does."""
    x = torch.full((1, 2, 4, 4), -torch.inf).contiguous(memory_format=torch.channels_last)
    y, places = torch.empty(1, 2, 2, 2), torch.zeros((1, 2, 2, 2), dtype=torch.uint8)
    y, places = (t.contiguous(memory_format=torch.channels_last) for t in (y, places))
    fused_pool.max_pool[0](nhwc(x), (3, 3), (2, 2), (1, 1), nhwc(y), nhwc(places))
    assert places[0, 0].tolist() == [[4, 3], [1, 0]]


def test_layers_of_a_model_are_replaced_and_others_are_not() -> None:
    class Own(nn.MaxPool2d):
        pass

    model = nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), Own(2), nn.ReLU(inplace=True)).eval()
    plain = copy.deepcopy(model)
    assert compact_layers(model, QuantState()) is model
    assert [type(m).__name__ for m in model] == ["CompactMaxPool2d", "Own", "CompactReLU"]
    assert model[0].ceil_mode
    assert not model[0].training
    x = tensor((2, 3, 9, 9), 0)
    assert torch.equal(model(x.clone()), plain(x.clone()))
    assert type(compact_layers(nn.MaxPool2d(2), QuantState())) is CompactMaxPool2d
