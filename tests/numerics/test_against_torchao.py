"""Equality with torchao 0.18: MX and NVFP4 tensors, the three float8 recipes and INT8 by rows (y, dx and dW)."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from fractrain.layers.conv_linear import QuantLinear
from fractrain.methods import registry
from fractrain.numerics.blocks import Place
from fractrain.numerics.elements import E2M1, E2M3, E3M2, E4M3, E5M2
from fractrain.numerics.formats import PerBlock
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import E8M0, TwoLevel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("torchao", reason="torchao is not installed (extra: dev)")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    from torchao.prototype.quantized_training import Int8MixedPrecisionTrainingConfig
    from torchao.prototype.quantized_training.int8_mixed_precision import Int8MixedPrecisionTrainingLinear

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

MX = {
    "e4m3": (E4M3, torch.float8_e4m3fn), "e5m2": (E5M2, torch.float8_e5m2), "e2m1": (E2M1, torch.float4_e2m1fn_x2),
    "e2m3": (E2M3, DTYPE_FP6_E2M3), "e3m2": (E3M2, DTYPE_FP6_E3M2),
}  # fmt: skip
MODES = {m.name.lower(): m for m in ScaleCalculationMode}


def tensor(rows: int, columns: int, seed: int = 0, spread: int = 6) -> torch.Tensor:
    """Blocks of very different size."""
    g = torch.Generator().manual_seed(seed)
    size = torch.exp2(torch.randint(-spread, spread, (rows, columns // 16), generator=g).float())
    return torch.randn(rows, columns, generator=g) * size.repeat_interleave(16, 1)


@pytest.mark.parametrize("mode", ["floor", "rceil", "ceil", "even"])
@pytest.mark.parametrize("element", MX)
def test_mx_is_theirs(element, mode):
    ours, theirs = MX[element]
    x = tensor(64, 256, spread=30)
    values = Scaled(PerBlock(1, 32), element=ours, scale=E8M0(mode=mode)).quantize(x, ours.bits).values
    expected = MXTensor.to_mx(x, theirs, 32, scaling_mode=MODES[mode]).dequantize(torch.float32)
    assert torch.equal(values, expected)


def nvfp4(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ours, theirs, and how far each ``x / scale`` is from the nearest tie, relative to itself."""
    ours = Scaled(PerBlock(1, 16), element=E2M1, scale=TwoLevel()).quantize(x, 4).values
    scale = per_tensor_amax_to_scale(x.abs().max())
    theirs = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(torch.float32)
    blocks = x.view(len(x), -1, 16).double()
    step = E4M3.round((blocks.abs().amax(-1, keepdim=True) / 6 / scale).float()).double() * scale
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=torch.float64)
    away = ((blocks / step).abs().unsqueeze(-1) / ties - 1).abs().amin(-1)
    return ours, theirs, away.view(x.shape)


@pytest.mark.parametrize("seed", range(3))
def test_nvfp4_is_theirs(seed):
    ours, theirs, _ = nvfp4(torch.randn(1024, 512, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_nvfp4_differs_from_theirs_only_at_ties(seed):
    """The rule divides by the scale. They multiply by ``(1 / tensor scale) / block scale``, we by the reciprocal of the
    scales' product, as TransformerEngine does: values of bfloat16, which are ties more often, may go the other way."""
    x = torch.randn(1024, 512, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
    ours, theirs, away = nvfp4(x)
    differ = ours != theirs
    assert int(differ.sum()) < 1e-3 * x.numel()
    assert bool((away[differ] < 2.0**-22).all())


def test_nvfp4_small_blocks_keep_a_scale_where_theirs_is_floored():
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16:], x[0, 31] = 2688.0, 0.003, 0.01  # tensor scale 1: the second block's is 0.0017, below 2^-6
    ours = Scaled(PerBlock(1, 16), element=E2M1, scale=TwoLevel()).quantize(x, 4).values
    theirs = NVFP4Tensor.to_nvfp4(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().max())).dequantize(torch.float32)
    assert ours[0, 16].item() == pytest.approx(0.003, rel=0.1)
    assert theirs[0, 16].item() == 0.0


def layers(recipe: str | None) -> tuple[nn.Linear, Any]:
    """A linear layer of ours, quantized as `fp8` does, and theirs, with the same weights."""
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(64, 48, bias=False), nn.Linear(48, 48, bias=False), nn.Linear(48, 8, bias=False))
    twin = nn.Sequential(*(nn.Linear(m.in_features, m.out_features, bias=False) for m in plain))
    twin.load_state_dict(plain.state_dict())
    name = "int8_rowwise" if recipe is None else "fp8"
    ours = registry.create(name, {} if recipe is None else {"recipe": recipe}).prepare(plain)
    assert isinstance(ours[1], QuantLinear)
    if recipe is None:
        theirs = Int8MixedPrecisionTrainingLinear(48, 48, bias=False, config=Int8MixedPrecisionTrainingConfig())
    else:
        config = Float8LinearConfig.from_recipe_name(recipe)
        object.__setattr__(config, "emulate", True)
        theirs = convert_to_float8_training(nn.Sequential(nn.Linear(48, 48, bias=False)), config=config)[0]
    theirs.weight.data.copy_(twin[1].weight)
    return ours[1].train(), theirs


def products(layer: nn.Module, x: torch.Tensor, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(e)
    assert x.grad is not None
    return y.detach(), x.grad, layer.weight.grad  # type: ignore[return-value]


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_fp8_recipes_give_their_output_and_gradients(recipe):
    ours, theirs = layers(recipe)
    x, e = tensor(32, 48, 5, 2), tensor(32, 48, 6, 2) * 1e-3
    for name, mine, other in zip(("y", "dx", "dw"), products(ours, x, e), products(theirs, x, e), strict=True):
        # per tensor, their emulation divides by the scale where ours (and their kernels) multiply by its reciprocal
        near = 0.0 if recipe == "rowwise" or (recipe, name) == ("rowwise_with_gw_hp", "y") else 1e-6
        assert (mine - other).abs().max() <= near * other.abs().max(), (recipe, name)


def test_int8_by_rows_gives_their_output_and_gradients():
    ours, theirs = layers(None)
    x, e = tensor(32, 48, 5, 2), tensor(32, 48, 6, 2) * 1e-3
    for name, mine, other in zip(("y", "dx", "dw"), products(ours, x, e), products(theirs, x, e), strict=True):
        # they sum codes in integers and scale the sums, we sum scaled codes
        assert (mine - other).abs().max() <= 2e-6 * other.abs().max(), name


def test_fp8_codes_and_scales_are_theirs_exactly():
    from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
    from torchao.float8.float8_training_tensor import LinearMMConfig

    x = tensor(64, 64, 9, 3)
    for element, dtype in ((E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)):
        theirs = hp_tensor_to_float8_dynamic(x, dtype, LinearMMConfig())
        kept = Scaled(element=element).quantize(x, 8, place=Place(keep=True)).codes
        assert kept is not None
        assert torch.equal(kept.codes[:4096].view(64, 64), theirs._data.view(torch.uint8))
        assert kept.codes[4096:].clone().view(torch.float32).item() == theirs._scale.reciprocal().item()
