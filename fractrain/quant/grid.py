"""Parameters of a uniform grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """The grid ``code * scale + offset`` with integer codes in ``[qmin, qmax]``.

    Attributes:
        scale, offset, qmin, qmax: float32 tensors, each broadcastable to the quantized tensor.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    qmin: torch.Tensor
    qmax: torch.Tensor
