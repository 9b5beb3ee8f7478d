"""Convolutions that are not 2-D, or transposed: the same products as PyTorch's, on quantized operands."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from field_models import UNet, Upsampler
from layer_models import batches, seeded
from quant_helpers import tensor
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fractrain
from fractrain.layers.convert import convert, quantized_layer
from fractrain.layers.other_convs import QuantOtherConv
from fractrain.layers.state import QuantState
from fractrain.methods import registry
from fractrain.numerics.formats import Affine, PerAxis
from fractrain.numerics.precision import Operand, Precision, fractrain_precision
from fractrain.util.errors import ConfigError

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "1d circular, groups": (lambda: nn.Conv1d(4, 6, 4, padding=2, padding_mode="circular", groups=2), (2, 4, 9)),
    "1d same": (lambda: nn.Conv1d(4, 6, 4, padding="same", bias=False), (2, 4, 9)),
    "3d": (lambda: nn.Conv3d(4, 6, (3, 2, 1), stride=(1, 2, 1), padding=1, dilation=(1, 1, 2)), (2, 4, 5, 4, 3)),
    "3d same": (lambda: nn.Conv3d(4, 4, 3, padding="same", groups=4), (2, 4, 5, 4, 3)),
    "up 1d": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1, output_padding=2), (2, 4, 5)),
    "up 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 3)),
    "up 2d groups": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, dilation=2, bias=False), (2, 4, 5, 3)),
    "up 3d": (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2), (2, 4, 3, 2, 4)),
}
EVERY = pytest.mark.parametrize("case", LAYERS)


def pair(case: str, precision: Precision) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    build, shape = LAYERS[case]
    plain = seeded(build)
    twin = quantized_layer(copy.deepcopy(plain), precision, QuantState(), "x")
    assert isinstance(twin, QuantOtherConv)
    assert isinstance(twin, type(plain))
    return plain, twin, tensor(shape, 3)


def gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.mul(tensor(y.shape, 5)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]  # type: ignore[list-item]


@EVERY
@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
def test_in_floating_point_it_is_the_plain_layer_bit_for_bit(case: str) -> None:
    plain, twin, x = pair(case, Precision())
    for a, b in zip(gradients(plain, x), gradients(twin, x), strict=True):
        assert torch.equal(a, b)


@EVERY
def test_products_of_quantized_operands_are_pytorch_s_in_float64(case: str) -> None:
    """FW, EB and GC from the operands that the observer saw, by autograd through the plain layer."""
    plain, twin, x = pair(case, fractrain_precision(6, 5, 7))
    seen: dict[str, torch.Tensor] = {}
    twin.observer = lambda layer, name, op, before, values: seen.__setitem__(name, values)
    got = gradients(twin, x)
    exact = copy.deepcopy(plain).double()
    with torch.no_grad():
        exact.weight.copy_(twin.as_weight(seen["fw_w"]))
    a = seen["fw_a"].double()
    if twin._padded:  # the padded input was quantized: zeros, or the same values, up to half a step of the grid
        a = x.double()
    a = a.reshape(x.shape).requires_grad_()
    y = exact(a)
    if not twin._padded:
        torch.testing.assert_close(got[0].double(), y.detach(), rtol=1e-5, atol=1e-5)
    y.backward(seen["E"].reshape(y.shape).double())
    if not twin._padded:
        torch.testing.assert_close(got[1].double(), a.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[2].double(), exact.weight.grad, rtol=1e-5, atol=1e-5)
    assert (got[0].double() - y).abs().max() < 0.2 * y.abs().max()
    assert (got[1].double() - a.grad).abs().max() < 1e-5


@EVERY
def test_weights_have_one_range_for_each_filter_and_few_values(case: str) -> None:
    w = Operand(3, Affine(PerAxis(0)))
    plain, twin, x = pair(case, replace(Precision(), fw_w=w, eb_w=w))
    seen: dict[str, torch.Tensor] = {}
    twin.observer = lambda layer, name, op, before, values: seen.__setitem__(name, values)
    twin(x)
    kernel = seen["fw_w"]
    assert kernel.shape[0] == plain.out_channels
    assert all(len(f.unique()) <= 8 for f in kernel)
    assert len(kernel.unique()) > 8
    assert (twin.as_weight(kernel) - plain.weight).abs().max() < plain.weight.abs().max() / 3
    assert torch.equal(twin.as_weight(twin.as_kernel(plain.weight)), plain.weight)


@EVERY
def test_its_macs_are_those_of_pytorch_s_counter(case: str) -> None:
    plain, twin, x = pair(case, fractrain_precision(8, 8, 8))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        plain(x)
    y = twin(x.requires_grad_())
    rows = {r.product: r.macs for r in twin.state.ledger.rows()}
    assert rows == dict.fromkeys(("FW", "EB", "GC"), counter.get_total_flops() // 2)
    assert y.shape == plain(x).shape


@EVERY
@pytest.mark.parametrize("kept", ["running", "float64"])
def test_evaluation_and_wide_types(case: str, kept: str) -> None:
    plain, twin, x = pair(case, fractrain_precision(8, 8, 8, 0.9))
    twin(x)
    twin.eval()
    if kept == "float64":
        twin, x = twin.double(), x.double()
    with torch.inference_mode():
        y = twin(x)
        assert y.dtype == x.dtype
        assert (y - plain.to(x.dtype)(x)).abs().max() < 0.05 * y.abs().max()


def test_an_output_size_is_taken_as_pytorch_takes_it() -> None:
    plain = seeded(lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1))
    x = tensor((2, 3, 5, 5), 1)
    for precision in (Precision(), fractrain_precision(12, 12, 12)):
        twin = quantized_layer(copy.deepcopy(plain), precision, QuantState(), "x")
        got = twin(x, output_size=[10, 9])
        torch.testing.assert_close(got, plain(x, output_size=[10, 9]), rtol=0, atol=0.01)
        got.sum().backward()


@pytest.mark.parametrize("build", [UNet, lambda: Upsampler(groups=4)], ids=["U-Net", "groups"])
@pytest.mark.parametrize("method", [m for m in registry.names() if m not in ("dfq", "fractrain", "slu")])
def test_every_method_trains_networks_with_them(build, method: str) -> None:
    plain = seeded(build)
    session = fractrain.attach(method, plain, **({"total_steps": 4} if method == "cpt" else {}))
    optimizer = session.optimizer(lr=0.05)
    for x, y in batches(3):
        session.loss(nn.functional.cross_entropy(session.model(x), y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    assert session.report().covered == 100
    session.model.eval()
    with torch.no_grad():
        assert session.model(x).isfinite().all()


def test_the_case_that_was_found_is_counted_whole() -> None:
    """Convolution, ReLU, transposed convolution, pool, linear layer: once 16 % of the MACs were counted."""
    session = fractrain.attach("sbm", seeded(Upsampler))
    x, y = next(batches(1))
    session.loss(nn.functional.cross_entropy(session.model(x), y)).backward()
    session.step()
    assert [p.status for p in session.report().products] == ["quantized", "quantized", "float"]
    assert session.costs()["covered_percent"] == 100


def test_widths_per_tile_are_refused_in_words() -> None:
    from fractrain.numerics.tiles import PerTile

    tiles = Operand(torch.full((1, 1), 4), Affine(PerTile(16, 16, True)))
    layer = convert(nn.Sequential(nn.Conv1d(3, 4, 3), nn.Conv1d(4, 4, 3)), Precision(fw_a=tiles), keep_last=False)
    with pytest.raises(ConfigError, match="0: Conv1d takes no widths per tile; leave it") as error:
        layer(torch.randn(2, 3, 8))
    assert "\n" not in str(error.value)


def test_an_input_without_a_sample_axis_is_refused() -> None:
    layer = quantized_layer(nn.Conv1d(3, 4, 3), fractrain_precision(8, 8, 8), QuantState(), "x")
    with pytest.raises(ConfigError, match="no sample axis"):
        layer(torch.randn(3, 8))
