"""Closed forms of training cost: computing percentage, MACs as published, BitOPs. Pure functions of plain numbers.

Training a layer is three products of equal size, each with two operands: FW (activation x weight), EB (error x weight)
and GC (activation x error). A MAC of a ``b1``-bit and a ``b2``-bit operand counts as ``b1/32 * b2/32`` MACs in
floating point. The ledger gives the same figures for what really ran (:mod:`fractrain.cost.metrics`); these forms say
what they must be when every MAC runs at one precision.
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
    return 100.0 * _operand_products(fw_bits, bw_bits, weight_bits) / (3 * FLOAT_MAC_BITS)


def published_macs(cp_percent: float, iterations: int, batch_size: int, forward_macs: float) -> float:
    """MACs as the FracTrain paper counts them: ``cp/100 * iterations * batch_size * 3 * forward_macs``.

    The paper's rows count up to the iteration with the best test accuracy, not to the end of training: pass that
    iteration to compare with them.

    Args:
        cp_percent: computing percentage, mean over the iterations counted.
        iterations: optimizer steps counted.
        batch_size: nominal batch size (the authors count every batch as full).
        forward_macs: MACs of one forward pass of one image; the factor 3 stands for FW, EB and GC.

    Returns:
        32-bit-equivalent MACs.

    Raises:
        ConfigError: an argument is negative.

    Source: the authors' ``dfq_acc_mac.py``; with :data:`AUTHORS_FORWARD_MACS` it gives the DFQ rows of their CIFAR
    table.
    """
    _check_non_negative(cp_percent=cp_percent, iterations=iterations, batch_size=batch_size, forward_macs=forward_macs)
    return cp_percent / 100.0 * iterations * batch_size * 3 * forward_macs


def bitops(forward_macs: int, images: int, fw_bits: int, bw_bits: int, weight_bits: int | None = None) -> int:
    """Bit operations of training at one fixed precision: ``MAC * (a*w + g*w + a*g) * images``.

    A MAC of a ``Ba``-bit and a ``Bb``-bit operand counts as ``Ba * Bb`` bit operations; with equal widths this is
    ``3 * MAC * Ba * Bb * images``.

    Args:
        forward_macs: MACs of one forward pass of one image.
        images: training images counted (with repetition).
        fw_bits: width of activations, and of weights unless given apart.
        bw_bits: width of errors.
        weight_bits: width of weights; ``None`` means ``fw_bits``.

    Returns:
        Bit operations (exact integer).

    Raises:
        ConfigError: a width is outside 1..32, or a count is negative.

    Source: CPT (ICLR 2021). CPT's tables take ``images = 64000 * 128`` on CIFAR and on ImageNet alike and count the
    whole training, unlike the MACs of FracTrain's tables.
    """
    _check_non_negative(forward_macs=forward_macs, images=images)
    return forward_macs * images * _operand_products(fw_bits, bw_bits, weight_bits)


def gbitops(forward_macs: int, images: int, fw_bits: int, bw_bits: int, weight_bits: int | None = None) -> float:
    """:func:`bitops` in units of 1e9, the "GBitOPs" column of CPT's tables."""
    return bitops(forward_macs, images, fw_bits, bw_bits, weight_bits) / 1e9


def _operand_products(fw_bits: int, bw_bits: int, weight_bits: int | None) -> int:
    """Return ``a*w + g*w + a*g``, the width products of FW, EB and GC."""
    a, g, w = fw_bits, bw_bits, fw_bits if weight_bits is None else weight_bits
    for name, bits in (("fw_bits", a), ("bw_bits", g), ("weight_bits", w)):
        if not 1 <= bits <= 32:
            raise ConfigError(f"{name}={bits}: a width is 1 to 32 bits, 32 standing for floating point")
    return a * w + g * w + a * g


def _check_non_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:  # also refuses nan
            raise ConfigError(f"{name}={value}: must not be negative")
