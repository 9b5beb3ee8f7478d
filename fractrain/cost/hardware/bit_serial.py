"""An array that takes one operand bit by bit and the other at once."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from pydantic import Field

from fractrain.cost.hardware.base import WorkRow
from fractrain.cost.hardware.bit_product import REFERENCE_BITS, ArraySettings, IdealArray


class SerialSettings(ArraySettings):
    """Settings of ``bit-serial``."""

    serial: Literal["first", "second", "narrower", "wider"] = Field(
        "first", description="operand that comes bit by bit"
    )


class BitSerial(IdealArray):
    """Ideal array serial in one operand: time in proportion to that operand's width, plus a stated fixed part."""

    name = "bit-serial"
    source = (
        "ours, after arrays that are serial in one operand (Stripes, MICRO 2016); the energy of a MAC is that of "
        "BitFusion's core at 45 nm; preset published: the share of fixed time that published rows at cp 3 % imply"
    )
    counted = (
        "every executed MAC, floating point as 32 bits; serial is the first operand (FW, GC: the activation, EB: the "
        "error) unless set otherwise; energy goes with both widths"
    )
    is_not = "a machine: no memory, no idle units, no shapes; the other operand is parallel at any width"
    Settings = SerialSettings
    # ResNet-38: DFQ at cp 3 takes .847 of the time of 8/8 per image. Which widths its gates mixed is not printed: over
    # every mix of its candidates with that cp the share is .36 to .47, and .43 at a mean serial width of 5.85 bits.
    presets = MappingProxyType({"published": {"fixed": 0.43}})

    def time(self, row: WorkRow) -> float:
        """See :class:`IdealArray`."""
        a, b = row.bits1, row.bits2
        width = {"first": a, "second": b, "narrower": min(a, b), "wider": max(a, b)}[self.settings.serial]
        return width / REFERENCE_BITS
