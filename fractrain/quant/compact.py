"""Layers between the quantized ones that keep less for backward: same values and gradients, bit by bit.

In floating point a ReLU's output or a max pool's input is kept anyway, as the input of the next layer. A quantized
layer keeps codes, so that a whole float32 tensor would stay for the sake of its signs, or of where its maxima are.
"""

from __future__ import annotations

from torch import nn

from fractrain.quant.pooling import CompactMaxPool2d
from fractrain.quant.relu import CompactReLU


def smaller(model: nn.Module) -> nn.Module:
    """Replace ``nn.ReLU`` and ``nn.MaxPool2d`` (not classes derived from them) in place; return the model."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.ReLU:
            new: nn.Module = CompactReLU(module.inplace)
        elif type(module) is nn.MaxPool2d:
            new = CompactMaxPool2d.of(module)
        else:
            continue
        new.train(module.training)
        parent, _, child = name.rpartition(".")
        if not name:
            return new
        setattr(model.get_submodule(parent), child, new)
    return model
