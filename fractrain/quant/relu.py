"""A ReLU that keeps one byte per element for backward instead of its float32 output.

In plain FP32 training the ReLU's output is the very tensor the next convolution keeps, so it costs nothing. Once that
convolution keeps integer codes, the float32 copy would be kept for the ReLU alone: memory would rise instead of fall.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class CompactReLU(nn.Module):
    """``max(x, 0)``, same values and gradients as :class:`torch.nn.ReLU`; keeps a boolean mask of the input's shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to a tensor of any shape."""
        y: torch.Tensor = _ReLU.apply(x)
        return y


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y > 0)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (positive,) = ctx.saved_tensors
        g = grads[0]
        if g.device.type == "cpu" and g.dtype.is_floating_point:
            # ReLU's own backward, reading the mask's bytes in place of the output: a seventh of the time of ``where``
            da: torch.Tensor = torch.ops.aten.threshold_backward(g, positive.view(torch.int8), 0)
            return da
        return torch.where(positive, g, g.new_zeros(()))  # not a product: 0 * inf would be nan


def compact_relus(model: nn.Module) -> nn.Module:
    """Replace every ``nn.ReLU`` of the model in place by :class:`CompactReLU`; return the model."""
    for name, m in list(model.named_modules()):
        if type(m) is nn.ReLU:
            parent, _, child = name.rpartition(".")
            if not name:
                return CompactReLU()
            setattr(model.get_submodule(parent), child, CompactReLU().train(m.training))
    return model
