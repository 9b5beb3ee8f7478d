"""The computing percentage in closed form, a pure function of plain numbers.

Training a layer is three products of equal size, each with two operands: FW (activation x weight), EB (error x weight)
and GC (activation x error). A MAC of a ``b1``-bit and a ``b2``-bit operand counts as ``b1/32 * b2/32`` MACs in
floating point. The ledger gives the same figure for what really ran (:mod:`fractrain.cost.metrics`); this form says
what it must be when every MAC runs at one precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fractrain.util.errors import ConfigError

FLOAT_MAC_BITS = 32 * 32
"""Product of the operand widths of one floating-point MAC: what "100 %" refers to."""

AUTHORS_FORWARD_MACS: Mapping[str, float] = MappingProxyType({"resnet38": 84.9e6, "resnet74": 170.0e6})
"""Forward MACs per CIFAR image with which the FracTrain authors' published MACs come out.

84.9e6 stands in the authors' plotting script (``dfq_acc_mac.py``); the ResNet-74 rows of the paper's CIFAR table follow
170.0e6 (the script has 170.36e6). The exact counts are 83,280,512 and 168,215,168 (CIFAR-10), so use these constants
only to compare with, or invert, published numbers.
"""


def static_cp(fw_bits: int, bw_bits: int, weight_bits: int | None = None) -> float:
    """Computing percentage (cp) of training at one fixed precision: ``(a*w + g*w + a*g) / (3 * 1024) * 100``.

    Args:
        fw_bits: width ``a`` of activations, and of weights unless given apart.
        bw_bits: width ``g`` of errors (output gradients).
        weight_bits: width ``w`` of weights; ``None`` means ``fw_bits``.

    Returns:
        Percent of the cost of the same training in 32-bit floating point: 6.25 for 8/8, 100 for 32/32.

    Raises:
        ConfigError: a width is outside 1..32.

    Source: FracTrain (NeurIPS 2020), section 3.2, and the cost lines of the authors' ``train_pfq.py``.
    """
    a, g, w = fw_bits, bw_bits, fw_bits if weight_bits is None else weight_bits
    for name, bits in (("fw_bits", a), ("bw_bits", g), ("weight_bits", w)):
        if not 1 <= bits <= 32:
            raise ConfigError(f"{name}={bits}: a width is 1 to 32 bits, 32 standing for floating point")
    return 100.0 * (a * w + g * w + a * g) / (3 * FLOAT_MAC_BITS)
