"""Depthwise convolutions keep a width of their own in PFQ, DFQ and FracTrain, whatever stage or gate say.

They are few MACs and sensitive; the authors count them in cp as a constant (8-bit operands, 16-bit errors).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from fractrain.methods.base import Width
from fractrain.numerics.precision import Precision, fractrain_precision
from fractrain.util.settings import ADDED

DepthwiseBits = Annotated[
    tuple[Width, Width],
    Field(
        description="depthwise convolutions: activation and weight bits, error bits; neither staged nor gated",
        json_schema_extra=ADDED,
    ),
]
DEPTHWISE_BITS = (8, 16)
DEPTHWISE_INERT = {"depthwise_bits": "the ResNets have no depthwise convolution"}


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a (quantized or plain) convolution has more than one group, each with one input channel."""
    groups = getattr(layer, "groups", 1)
    return isinstance(groups, int) and groups > 1 and groups == getattr(layer, "in_channels", None)


def depthwise_precision(bits: tuple[int, int], running: float, weight_bits: int | None = None) -> Precision:
    """Precision of depthwise convolutions: the authors' formats at ``(A, E)`` bits, W at those of A unless given."""
    return fractrain_precision(bits[0], bits[0] if weight_bits is None else weight_bits, bits[1], running)
