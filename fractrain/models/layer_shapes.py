"""Shapes of a model's layers, for hardware models: from one forward pass of one sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fractrain.cost.hardware.base import LayerShape
from fractrain.layers.matmul import Matmul

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]


def layer_shapes(make: Callable[[], nn.Module], shape: Sequence[int]) -> dict[str, LayerShape]:
    """Return the shape of every convolution, linear layer and product of activations, by module name.

    A linear layer that sees a number of vectors that depends on the data (the ends of a language model), or none in a
    plain forward pass, has the shape of one vector.

    Not on PyTorch's ``meta`` device: what it computes there is written in Python and imports the compiler, for seconds.

    Args:
        make: builds the plain model.
        shape: of a sample, ``(C, H, W)`` or ``(T,)`` for word numbers.
    """
    model = make()
    found: dict[str, LayerShape] = {}
    tokens = getattr(model, "input", "") == "tokens"
    kinds = nn.Conv2d | nn.Linear | Matmul
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    hooks = [layer.register_forward_hook(_recording(found, name, tokens)) for name, layer in layers.items()]
    device = next(model.parameters()).device
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *shape, device=device, dtype=torch.int64 if tokens else None))
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in layers.items():
        if name not in found and isinstance(layer, nn.Linear):
            found[name] = LayerShape("linear", layer.in_features, layer.out_features)
    return found


def _recording(found: dict[str, LayerShape], name: str, tokens: bool) -> Hook:
    def note(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        found[name] = _geometry(layer, args[0].shape, output.shape, first=not found and not tokens)

    return note


def _geometry(layer: nn.Module, x: torch.Size, y: torch.Size, first: bool) -> LayerShape:
    if isinstance(layer, nn.Conv2d):
        kernel, stride = (layer.kernel_size[0], layer.kernel_size[1]), (layer.stride[0], layer.stride[1])
        sizes = (x[2], x[3]), (y[2], y[3])
        return LayerShape("conv", layer.in_channels, layer.out_channels, kernel, stride, *sizes, layer.groups, first)
    if isinstance(layer, nn.Linear):
        size = (y[1:-1].numel(), 1) if x[0] == 1 else (1, 1)  # else its vectors were picked by their values
        return LayerShape("linear", layer.in_features, layer.out_features, in_size=size, out_size=size, first=first)
    heads = x[1:-2].numel()
    size = (x[-2], 1)
    return LayerShape("matmul", heads * x[-1], heads * y[-1], in_size=size, out_size=size, groups=heads)
