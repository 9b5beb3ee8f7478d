"""Calls of PyTorch's functions as layers compute them: the function's own values and gradients, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fractrain.layers.product_calls import PairCall, WeightCall, read


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(tensor(*shape))


MASK = torch.arange(5) < torch.tensor([[5], [3], [2], [0]])
CALLS: dict[str, Any] = {
    "linear": lambda: (F.linear, (tensor(2, 3, 4), weight(5, 4), weight(5)), {}),
    "linear, computed weight": lambda: (F.linear, (tensor(2, 4), weight(5, 4) * 2), {}),
    "conv1d": lambda: (F.conv1d, (tensor(2, 4, 9), weight(6, 2, 3), weight(6), 2, 1), {"groups": 2}),
    "conv2d": lambda: (F.conv2d, (tensor(2, 3, 7, 8), weight(4, 3, 3, 2)), {"padding": (1, 0), "dilation": 2}),
    "conv2d, same": lambda: (F.conv2d, (tensor(2, 3, 7, 8), weight(4, 3, 5, 3)), {"padding": "same"}),
    "conv3d": lambda: (F.conv3d, (tensor(2, 3, 4, 5, 6), weight(4, 3, 2, 3, 2)), {"stride": [1, 2, 1]}),
    "conv_transpose1d": lambda: (F.conv_transpose1d, (tensor(2, 4, 5), weight(4, 3, 3)), {"stride": 2}),
    "conv_transpose2d": lambda: (
        F.conv_transpose2d, (tensor(2, 4, 5, 6), weight(4, 3, 3, 3), weight(6), 2, 1, 1, 2), {}
    ),
    "matmul": lambda: (torch.matmul, (tensor(2, 3, 4, 5), tensor(2, 3, 5, 6)), {}),
    "matmul, heads shared": lambda: (torch.Tensor.matmul, (tensor(2, 3, 4, 5), tensor(2, 1, 5, 6)), {}),
    "parameter second": lambda: (torch.Tensor.__matmul__, (tensor(2, 3, 4), weight(4, 5)), {}),
    "parameter transposed": lambda: (torch.mm, (tensor(2, 4), weight(5, 4).t()), {}),
    "parameter first": lambda: (torch.matmul, (weight(5, 4), tensor(2, 4, 3)), {}),
    "bmm": lambda: (torch.bmm, (tensor(6, 3, 4), tensor(6, 4, 5)), {}),
    "addmm": lambda: (torch.addmm, (weight(5), tensor(6, 4), weight(4, 5)), {}),
    "addmm, scaled": lambda: (torch.addmm, (weight(5), tensor(6, 4), weight(4, 5)), {"beta": 0.5, "alpha": 2}),
    "baddbmm": lambda: (torch.baddbmm, (tensor(6, 3, 5), tensor(6, 3, 4), tensor(6, 4, 5)), {"alpha": 0.5}),
    "attention": lambda: (
        F.scaled_dot_product_attention, (tensor(2, 3, 4, 8), tensor(2, 3, 5, 8), tensor(2, 3, 5, 6)), {}
    ),
    "attention, masked": lambda: (
        F.scaled_dot_product_attention, (tensor(2, 3, 4, 8), tensor(2, 3, 5, 8), tensor(2, 3, 5, 8), MASK),
        {"scale": 0.7},
    ),
    "attention, biased": lambda: (
        F.scaled_dot_product_attention, (tensor(2, 4, 8), tensor(2, 5, 8), tensor(2, 5, 8), tensor(4, 5)), {}
    ),
    "attention, causal and grouped": lambda: (
        F.scaled_dot_product_attention, (tensor(2, 4, 5, 8), tensor(2, 2, 5, 8), tensor(2, 2, 5, 8)),
        {"is_causal": True, "enable_gqa": True},
    ),
    "einsum": lambda: (torch.einsum, ("bqhd,bkhd->bhqk", tensor(2, 3, 4, 5), tensor(2, 6, 4, 5)), {}),
    "einsum, outputs turned": lambda: (torch.einsum, ("bij, bjk -> kbi", tensor(2, 3, 4), tensor(2, 4, 5)), {}),
    "einsum, ellipsis": lambda: (torch.einsum, ("...ij,...kj->...ik", tensor(2, 3, 4, 5), tensor(2, 3, 6, 5)), {}),
    "einsum, implicit": lambda: (torch.einsum, ("bij,jk", tensor(2, 3, 4), weight(4, 5)), {}),
    "einsum, weight": lambda: (torch.einsum, ("btc,chd->bhtd", tensor(2, 3, 4), weight(4, 5, 6)), {}),
    "einsum, weight first": lambda: (torch.einsum, ("oc,...c->...o", weight(5, 4), tensor(2, 3, 4)), {}),
}  # fmt: skip


def gradients(y: torch.Tensor, args: tuple[Any, ...]) -> list[torch.Tensor]:
    tensors = [t for t in args if isinstance(t, torch.Tensor) and t.requires_grad]
    return list(torch.autograd.grad(y, tensors, torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)))


@pytest.mark.parametrize("kind", CALLS)
def test_layers_give_the_function_s_values_and_gradients(kind: str) -> None:
    torch.manual_seed(0)
    function, args, kwargs = CALLS[kind]()
    for t in args:
        if isinstance(t, torch.Tensor) and t.is_leaf and t.is_floating_point():
            t.requires_grad_()
    call = read(function, args, kwargs)
    assert call is not None
    layers = call.layers().values()
    assert not [p for layer in layers for p in layer.parameters()]
    ours = call.compute(*(Lent(layer) for layer in layers))
    want = function(*args, **kwargs)
    torch.testing.assert_close(ours, want, rtol=1e-11, atol=1e-11)
    for a, b in zip(gradients(ours, args), gradients(want, args), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class Lent(nn.Module):
    """A plain layer with what a quantized one has beside it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer

    def forget_weights(self) -> None:
        """Nothing is kept."""

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        self.layer.__dict__.update({n: self.__dict__[n] for n in ("weight", "bias") if n in self.__dict__})
        out: torch.Tensor = self.layer(*args)
        return out


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (torch.matmul, (tensor(2, 3, 4), tensor(4)), {}),
        (torch.matmul, (tensor(3, 4), tensor(4, 5)), {}),  # which axis are samples?
        (torch.matmul, (weight(3, 4), weight(4, 5)), {}),
        (torch.bmm, (tensor(3, 2, 4), weight(3, 4, 5)), {}),  # a matrix for each of three experts
        (torch.mm, (tensor(2, 4), weight(4, 5)), {"out": tensor(2, 5)}),
        (torch.einsum, ("bij,bkj", tensor(2, 3, 4), tensor(2, 5, 4)), {}),
        (torch.einsum, ("bi,bj->bij", tensor(2, 3), tensor(2, 4)), {}),
        (torch.einsum, ("bii,bij->bj", tensor(2, 3, 3), tensor(2, 3, 4)), {}),
        (torch.einsum, ("bij,bjk,bkl->bil", tensor(2, 3, 4), tensor(2, 4, 5), tensor(2, 5, 3)), {}),
        (torch.einsum, ("bnc,bmc->nm", tensor(2, 3, 4), tensor(2, 5, 4)), {}),
        (torch.einsum, ("bhi,hij->bhj", tensor(2, 3, 4), weight(3, 4, 5)), {}),
        (F.linear, (tensor(4), weight(5, 4)), {}),
        (F.linear, (tensor(0, 4), weight(5, 4)), {}),
        (F.conv2d, (tensor(3, 8, 8), weight(4, 3, 3, 3)), {}),
        (torch.mm, (tensor(2, 4).to_sparse(), weight(4, 5)), {}),
        (torch.matmul, (tensor(2, 3, 4).cfloat(), tensor(2, 4, 5).cfloat()), {}),
        (torch.matmul, (tensor(2, 3, 4).long(), tensor(2, 4, 5).long()), {}),
        (torch.add, (tensor(2), tensor(2)), {}),
    ],
)
def test_other_forms_are_left_alone(function: Any, args: Any, kwargs: Any) -> None:
    assert read(function, args, kwargs) is None


def test_what_is_a_weight_and_what_an_activation() -> None:
    x, kept = tensor(2, 3, 4), weight(4, 5)
    assert isinstance(read(torch.matmul, (x, x.mT), {}), PairCall)
    with torch.inference_mode():
        own = read(torch.matmul, (x[0], kept[:, :3]), {})
    assert isinstance(own, WeightCall)
    assert own.kind is nn.Linear
    assert own.weight.shape == (3, 4)
