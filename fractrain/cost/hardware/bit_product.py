"""An array whose time is in proportion to the product of the two widths."""

from __future__ import annotations

from types import MappingProxyType

from pydantic import Field

from fractrain.cost.hardware.base import Cost, HardwareModel, HardwareSettings, Parts, WorkRow

REFERENCE_BITS = 8


class ArraySettings(HardwareSettings):
    """Settings that ``bit-product`` and ``bit-serial`` share."""

    macs_per_cycle: float = Field(512.0, gt=0, description="8x8-bit MACs in a cycle")
    frequency_hz: float = Field(500e6, gt=0, description="clock of the array")
    pj_per_mac: float = Field(0.459, ge=0, description="energy of an 8x8-bit MAC, pJ")
    fixed: float = Field(0.0, ge=0, lt=1, description="share of the 8x8-bit time and energy that widths do not change")
    moved: float = Field(
        0.0, ge=0, le=1, description="share of the rest of the energy that moves operands at their widths"
    )


class IdealArray(HardwareModel):
    """An array without memory, idle units or shapes."""

    def time(self, row: WorkRow) -> float:
        """Time of a row without the fixed part, in units of the 8x8-bit time."""
        raise NotImplementedError

    def row(self, row: WorkRow) -> Cost:
        """See :class:`HardwareModel`."""
        s, time = self.settings, self.time(row)
        cycles = row.macs / s.macs_per_cycle
        joules = row.macs * s.pj_per_mac * 1e-12
        own = s.fixed / (1 - s.fixed)  # what widths change is 1 at 8x8 bits, so this makes `fixed` the share of all
        width = (row.bits1 + row.bits2) / (2 * REFERENCE_BITS)
        product = row.bits1 * row.bits2 / REFERENCE_BITS**2
        return Cost(
            seconds=Parts(compute=cycles * time / s.frequency_hz, fixed=cycles * own / s.frequency_hz),
            joules=Parts(
                compute=joules * (1 - s.moved) * product, on_chip=joules * s.moved * width, fixed=joules * own
            ),
            cycles=cycles * (time + own),
        )

    def card(self) -> dict[str, str]:
        """See :class:`HardwareModel`."""
        s = self.settings
        return {
            "array": f"{s.macs_per_cycle:g} MACs of 8x8 bits per cycle, always full",
            "frequency": f"{s.frequency_hz / 1e6:g} MHz",
            "buffers": "none: operands are always there",
            "energies": f"{s.pj_per_mac:g} pJ per 8x8-bit MAC, {100 * s.moved:g} % of it for moving operands; "
            f"{100 * s.fixed:g} % of time and energy at 8x8 bits fixed",
            **super().card(),
        }


class BitProduct(IdealArray):
    """Ideal array: time in proportion to the product of the two widths, plus a stated fixed part (0 by default)."""

    name = "bit-product"
    source = (
        "ours, after arrays that are serial in both operands (Loom, DAC 2018); the energy of a MAC is that of "
        "BitFusion's core at 45 nm; preset published: the share of fixed time that published rows at cp 3 % imply"
    )
    counted = (
        "every executed MAC, floating point as 32 bits; the fixed part belongs to every MAC alike, so what is skipped "
        "costs nothing"
    )
    is_not = "a machine: no memory, no idle units, no shapes; a bound on what widths alone can gain"
    Settings = ArraySettings
    # ResNet-38: DFQ at cp 3 takes .8471 of the time of 8/8 per image, its products of widths .48: f + (1 - f) .48.
    presets = MappingProxyType({"published": {"fixed": 0.706}})

    def time(self, row: WorkRow) -> float:
        """See :class:`IdealArray`."""
        return row.bits1 * row.bits2 / REFERENCE_BITS**2
