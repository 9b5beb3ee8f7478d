"""Layers between the quantized ones that keep less for backward and take fewer passes over memory.

In floating point a ReLU's output or a max pool's input is kept anyway, as the input of the next layer. A quantized
layer keeps codes, so that a whole float32 tensor would stay for the sake of its signs, or of where its maxima are.
ReLU, sum and max pool have the same values and gradients, bit by bit; BatchNorm up to the rounding of float32.
"""

from __future__ import annotations

from torch import nn

from fractrain.layers.batch_norm import CompactBatchNorm2d
from fractrain.layers.max_pool import CompactMaxPool2d
from fractrain.layers.relu import CompactReLU
from fractrain.layers.residual import CompactSumReLU, SumReLU
from fractrain.layers.state import QuantState


def compact_layers(model: nn.Module, state: QuantState) -> nn.Module:
    """Replace ``nn.BatchNorm2d``, ``nn.ReLU``, ``SumReLU`` and ``nn.MaxPool2d`` in place.

    Derived classes, and modules whose forward has been replaced, stay as they are.

    Args:
        model: any module.
        state: says which kernels to use.

    Returns:
        The model (a new layer if ``model`` itself is one).
    """
    made: dict[int, nn.Module] = {}  # a layer may be reachable by several names
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if "forward" in vars(module):
            continue
        if type(module) is nn.ReLU:
            new: nn.Module = CompactReLU.of(module)
        elif type(module) is SumReLU:
            new = CompactSumReLU(state, module)
        elif type(module) is nn.MaxPool2d:
            new = CompactMaxPool2d.of(module)
        elif type(module) is nn.BatchNorm2d:
            new = CompactBatchNorm2d.of(module, state)
        else:
            continue
        new = made.setdefault(id(module), new.train(module.training))
        if not name:
            return new
        model.set_submodule(name, new)
    return model
