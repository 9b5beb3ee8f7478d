"""BatchNorm and the ReLU behind it, for models that say so: in one pass where nobody looks between the two."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from fractrain.layers.batch_norm import CompactBatchNorm2d

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def norm_relu(norm: nn.Module, relu: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return ``relu(norm(x))``.

    Args:
        norm: any normalisation layer.
        relu: a ReLU.
        x: input of the norm.
    """
    if isinstance(norm, CompactBatchNorm2d) and not _looked_at(norm, relu):
        return norm.rectified(x)
    return cast(torch.Tensor, relu(norm(x)))


def _looked_at(*layers: nn.Module) -> bool:
    """Whether hooks want to see what goes in or comes out of one of the layers."""
    anywhere: bool = _has_any_global_hook()  # type: ignore[no-untyped-call]
    return anywhere or any(layer.__dict__[name] for layer in layers for name in HOOKS)


class ConvNormReLU(nn.Sequential):
    """A convolution, a norm and a ReLU in a row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply them."""
        conv, norm, relu = self
        return norm_relu(norm, relu, conv(x))
