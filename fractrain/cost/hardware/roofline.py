"""What real processors could gain: the roofline of a data sheet, by the formats that it has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from fractrain.cost.hardware.base import FLOAT_BITS, Cost, HardwareModel, HardwareSettings, Parts, WorkRow

WIDTHS: Final = (("fp4", 4), ("int4", 4), ("fp8", 8), ("int8", 8), ("bf16", 16), ("tf32", 32), ("fp32", 32))
"""Formats with the widest operand that each takes."""
NARROW: Final = {"fp4": "float", "fp8": "float", "int4": "grid", "int8": "grid"}
"""What the operands must be; the wider formats take both."""

# Dense figures, all read in G. Lockwood's notes on NVIDIA's sheets (glennklockwood.com/garden/processors).
SHEETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "a100": {  # SXM4, 80 GB; the notes cite data sheet 1758950-r4
            "fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "int8": 624.0, "int4": 1248.0, "fp8": 0.0, "fp4": 0.0,
            "bandwidth": 2039.0, "watts": 400.0,
        },
        "h100": {  # SXM5, 80 GB
            "fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp8": 1978.9, "int8": 1978.9, "int4": 0.0, "fp4": 0.0,
            "bandwidth": 3350.0, "watts": 700.0,
        },
        "b200": {  # HGX, at 1000 W
            "fp32": 80.0, "tf32": 1100.0, "bf16": 2250.0, "fp8": 4500.0, "int8": 4500.0, "int4": 0.0, "fp4": 9000.0,
            "bandwidth": 8000.0, "watts": 1000.0,
        },
    }
)  # fmt: skip


class RooflineSettings(HardwareSettings):
    """Settings of ``roofline``: peaks in 1e12 operations a second as data sheets count (a MAC is two), 0: none."""

    fp32: float = Field(66.9, gt=0, description="peak of FP32")
    tf32: float = Field(494.7, ge=0, description="peak of TF32")
    bf16: float = Field(989.4, ge=0, description="peak of BF16")
    fp8: float = Field(1978.9, ge=0, description="peak of FP8")
    int8: float = Field(1978.9, ge=0, description="peak of INT8")
    int4: float = Field(0.0, ge=0, description="peak of INT4")
    fp4: float = Field(0.0, ge=0, description="peak of FP4")
    bandwidth: float = Field(3350.0, gt=0, description="bandwidth of the memory, GB/s")
    watts: float = Field(700.0, gt=0, description="power that is drawn all the time")
    result_bits: int = Field(16, ge=8, le=32, description="width in which results are written")
    full: Literal["tf32", "fp32"] = Field("tf32", description="what products of 32-bit floating point run at")
    efficiency: float = Field(1.0, gt=0, le=1, description="share of both peaks that is reached")

    @model_validator(mode="after")
    def _full_exists(self) -> RooflineSettings:
        if self.full == "tf32" and not self.tf32:
            raise ValueError("full=tf32 needs a peak of TF32; set full=fp32")
        return self


class Roofline(HardwareModel):
    """Peak products and bandwidth of a GPU's data sheet: what a real machine could gain at most from these widths."""

    name = "roofline"
    source = (
        "dense peaks that NVIDIA states for A100 SXM4 80 GB (data sheet 1758950-r4), H100 SXM5 80 GB (default) and "
        "HGX B200 at 1000 W, second hand: glennklockwood.com/garden/processors/A100, /h100, /B200"
    )
    counted = (
        "the longer of computing at the peak of the fastest format that holds both operands (grids as integers, "
        "floats as floats, one of each from BF16 up) and moving operands and results of each product once; a width "
        "without hardware runs at the next that has it; energy is time at full power; no quantizing, no BatchNorm, no "
        "optimizer, no launches"
    )
    is_not = "a prediction: kernels reach a fraction of both peaks, and small layers a small one"
    needs_geometry = True
    Settings = RooflineSettings
    presets = SHEETS

    def format_of(self, row: WorkRow) -> tuple[str, int, float]:
        """Return name, width and peak of the fastest format that holds both operands of a row."""
        s, bits = self.settings, max(row.bits1, row.bits2)
        pairs = zip((row.bits1, row.bits2), row.formats, strict=True)
        kinds = {"float" if width == FLOAT_BITS or name.startswith("e") else "grid" for width, name in pairs}
        fits = [
            (name, width, getattr(s, name))
            for name, width in WIDTHS
            if getattr(s, name) and width >= bits and kinds <= {NARROW.get(name, kind) for kind in kinds}
        ]
        return max((f for f in fits if s.full == "tf32" or f[0] != "tf32"), key=lambda f: (f[2], -f[1]))

    def row(self, row: WorkRow) -> Cost:
        """See :class:`HardwareModel`."""
        s, g, batch = self.settings, row.shape, row.batch
        _, width, peak = self.format_of(row)
        inputs, weights, outputs = g.elements
        weights *= batch if g.kind == "matmul" else 1
        inputs, outputs = inputs * batch, outputs * batch
        first, second, made = {
            "FW": (inputs, weights, outputs),
            "EB": (outputs, weights, inputs),
            "GC": (inputs, outputs, weights),
        }[row.product]
        moved = first * (width + row.scales[0]) + second * (width + row.scales[1])
        compute = 2 * g.macs * batch / (peak * 1e12 * s.efficiency)
        memory = (moved + made * s.result_bits) / 8 / (s.bandwidth * 1e9 * s.efficiency)
        waits = max(0.0, memory - compute)
        full = Cost(Parts(compute=compute, dram=waits), Parts(compute=compute * s.watts, dram=waits * s.watts))
        return full.times(row.samples / batch)

    def card(self) -> dict[str, str]:
        """See :class:`HardwareModel`."""
        s = self.settings
        peaks = ", ".join(f"{name.upper()} {getattr(s, name):g}" for name, _ in WIDTHS if getattr(s, name))
        return {
            "array": f"10^12 operations a second: {peaks}; 32-bit floating point runs at {s.full.upper()}",
            "frequency": "inside the peaks",
            "buffers": f"none but the memory, {s.bandwidth:g} GB/s; results are written with {s.result_bits} bits",
            "energies": f"{s.watts:g} W all the time",
            **super().card(),
        }
