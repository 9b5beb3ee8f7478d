"""Exact forward multiply-accumulates of a model, from the shapes its convolutions and linear layers really see.

A sample is what the first axis counts: an image, or for a language model one sequence of the given length. Divided by
the length that is the MACs per token, exactly. Attention's products count in full, causal or not. The two ends of a
language model are not in it: the lookup of words multiplies nothing, and what an adaptive end multiplies depends on the
words (the ledger counts what really ran).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fractrain.layers.matmul import Matmul


def conv_macs(layer: _ConvNd, shape: Sequence[int] | torch.Size) -> int:
    """MACs of one sample: output elements (of a transposed convolution: input elements) times the size of a filter.

    Args:
        layer: the convolution, of any number of axes.
        shape: ``[N, C, ...]`` of its output; of a transposed one, of its input.
    """
    filters = layer.in_channels if layer.transposed else layer.out_channels
    return math.prod(shape[1:]) * (layer.weight.numel() // filters)


def linear_macs(layer: nn.Linear, rows: int = 1) -> int:
    """MACs of a linear layer applied to ``rows`` vectors per sample."""
    return rows * layer.in_features * layer.out_features


def layer_macs(model: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Forward MACs per sample of every convolution, linear layer and product of activations, by module name.

    Args:
        model: any model that takes one tensor: images, or word numbers if its attribute ``input`` is ``tokens``.
        shape: input shape ``(C, H, W)``, or ``(T,)`` for word numbers.
    """
    macs: dict[str, int] = {}
    hooks = []

    def hook(name: str):  # type: ignore[no-untyped-def]
        def count(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if isinstance(layer, Matmul):
                macs[name] = macs.get(name, 0) + output[0].numel() * args[0].shape[-1]
            elif isinstance(layer, _ConvNd):
                macs[name] = macs.get(name, 0) + conv_macs(layer, (args[0] if layer.transposed else output).shape)
            elif isinstance(layer, nn.Linear):
                rows = output.numel() // (output.shape[0] * layer.out_features)
                macs[name] = macs.get(name, 0) + linear_macs(layer, rows)

        return count

    for name, m in model.named_modules():
        if isinstance(m, _ConvNd | nn.Linear | Matmul):
            hooks.append(m.register_forward_hook(hook(name)))
    training = model.training
    device = next(model.parameters()).device
    dtype = torch.int64 if getattr(model, "input", "") == "tokens" else None
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *shape, device=device, dtype=dtype))
    finally:
        model.train(training)
        for h in hooks:
            h.remove()
    return macs


def block_macs(model: nn.Module, shape: Sequence[int], blocks: Sequence[str]) -> list[int]:
    """Forward MACs per sample of each of the named blocks, shortcut included."""
    macs = layer_macs(model, shape)
    return [sum(n for layer, n in macs.items() if layer.startswith(f"{block}.")) for block in blocks]


def forward_macs(model: nn.Module, shape: Sequence[int]) -> int:
    """Forward MACs per sample of the whole model, as :func:`layer_macs` counts them."""
    return sum(layer_macs(model, shape).values())
