"""What a ledger says of number formats: work by pair of formats, and what scales add to the widths.

cp and BitOPs go by the widths of the operands, as published: eight bits are eight bits. Which of them are floats and
which integers, and how many bits of scales come with each element, is told here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.cost.hardware.base import FLOAT_BITS

if TYPE_CHECKING:  # reading a ledger needs no torch
    from fractrain.cost.ledger import Ledger


@dataclass(frozen=True)
class FormatShare:
    """Work whose operands have the same formats and widths.

    Attributes:
        first, second: formats: ``float32``, ``int8`` (a uniform grid) or a name such as ``e4m3/e8m0``.
        macs: executed MACs.
        bitops: sum of ``macs * bits1 * bits2``.
        cp_percent: BitOPs in percent of what the same MACs cost in float32.
        share_percent: of all BitOPs.
    """

    first: str
    second: str
    macs: int
    bitops: int
    cp_percent: float
    share_percent: float


def by_format(ledger: Ledger) -> list[FormatShare]:
    """Executed work of training by the formats of its operands, most BitOPs first; skipped work is left out."""
    sums: dict[tuple[str, str], list[int]] = {}
    for row in ledger.rows():
        width = row.bits1 * row.bits2
        if row.phase != "train" or not width:
            continue
        pair = _name(row.format1, row.bits1), _name(row.format2, row.bits2)
        total = sums.setdefault(pair, [0, 0])
        total[0] += row.macs
        total[1] += row.macs * width
    whole = sum(bitops for _, bitops in sums.values())
    return [
        FormatShare(*pair, macs, bitops, 100 * bitops / (FLOAT_MAC_BITS * macs), 100 * bitops / whole)
        for pair, (macs, bitops) in sorted(sums.items(), key=lambda item: (-item[1][1], item[0]))
    ]


def bits_with_scales(ledger: Ledger) -> dict[str, float]:
    """Mean bits per element with its share of scales, by format: 4.25 for MXFP4, 4.5 for NVFP4; weighted by MACs."""
    sums: dict[str, list[float]] = {}
    for row in ledger.rows():
        if row.phase != "train":
            continue
        for name, bits, scale in ((row.format1, row.bits1, row.scale1), (row.format2, row.bits2, row.scale2)):
            if name:
                total = sums.setdefault(name, [0, 0.0])
                total[0] += row.macs
                total[1] += row.macs * (bits + scale)
    return {name: bits / macs for name, (macs, bits) in sorted(sums.items())}


def format_costs(ledger: Ledger) -> dict[str, Any]:
    """Both for a run's summary; empty where all operands are uniform grids or float32."""
    bits = bits_with_scales(ledger)
    return {"formats": [asdict(share) for share in by_format(ledger)], "bits_with_scales": bits} if bits else {}


def _name(name: str, bits: int) -> str:
    return name or ("float32" if bits >= FLOAT_BITS else f"int{bits}")
