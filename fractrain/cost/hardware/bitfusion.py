"""BitFusion's array: units that split into more multipliers as widths shrink, three buffers, DRAM."""

from __future__ import annotations

from types import MappingProxyType

from pydantic import Field

from fractrain.cost.hardware.base import Cost, HardwareModel, HardwareSettings, Parts, WorkRow
from fractrain.cost.hardware.tiling import FusedArray, Problem, best_tiling
from fractrain.util.errors import ConfigError

CORE_NJ = 0.235104 / (16 * 32)  # a unit and cycle
READ_NJ = (2.1365656250000003e-05, 5.9474375e-05, 3.31553125e-05)  # a bit of weights, inputs, outputs
WRITE_NJ = (2.891615625e-05, 0.0001137040625, 7.30840625e-05)
DRAM_NJ = 0.015  # a bit
SUM_BITS = 32


class BitFusionSettings(HardwareSettings):
    """Settings of ``bitfusion``; the defaults are those matched to Eyeriss by its authors."""

    rows: int = Field(16, ge=1, le=4096, description="fused units that add up products of different channels")
    columns: int = Field(32, ge=1, le=4096, description="fused units for different output channels")
    bus: int = Field(192, ge=1, le=1_000_000, description="bits a cycle to and from DRAM")
    weight_kb: int = Field(64, ge=1, le=1_000_000, description="buffer of weights, KiB")
    input_kb: int = Field(32, ge=1, le=1_000_000, description="buffer of inputs, KiB")
    output_kb: int = Field(16, ge=1, le=1_000_000, description="buffer of partial sums, KiB")
    frequency_hz: float = Field(500e6, gt=0, description="clock of the array")
    widest: int = Field(16, ge=2, le=32, description="wider operands, floating point too, are counted at this width")


class BitFusion(HardwareModel):
    """BitFusion (16 x 32 units at 500 MHz, 45 nm): cycles, stalls and energy of the best tiling of every product."""

    name = "bitfusion"
    source = (
        "array and energies: Sharma et al., Bit Fusion, ISCA 2018, and its authors' simulator, whose figures are "
        "reproduced on 369 products; the mapping of EB and GC, of groups, attention and widths above 8 bits is ours"
    )
    counted = (
        "compute, DRAM waits, energy of core, buffers and DRAM; FW as BitFusion maps inference, the first layer "
        "unrolled; EB as a convolution of errors without inserted zeros, GC as one matrix product over batch and "
        "positions; groups (depthwise too) one after the other, attention one sample and head after the other, linear "
        "layers with all vectors of a batch at once; above 8 bits in turns of at most 8; no BatchNorm, no optimizer"
    )
    is_not = (
        "the paper's hardware: FracTrain's simulator is not named, and this array does not give its figures; and no "
        "array for training: only the products are counted"
    )
    needs_geometry = True
    Settings = BitFusionSettings
    presets = MappingProxyType({"eyeriss-matched": {}, "16x16": {"columns": 16}})
    expected_failures = MappingProxyType(
        {
            "widths": "as its authors' simulator: weights are padded to whole rows of split units, so narrow ones may "
            "take more bits, and the tiling with the fewest cycles is taken, so a wider product may need less energy"
        }
    )

    def row(self, row: WorkRow) -> Cost:
        """See :class:`HardwareModel`."""
        problem, times = self.problem(row)
        found = best_tiling(problem, self.machine)
        if found is None:
            raise ConfigError("not even the smallest tile fits half of the buffers; set larger ones")
        clock = self.settings.frequency_hz
        batch = Cost(
            seconds=Parts(compute=(found.cycles - found.stalls) / clock, dram=found.stalls / clock),
            joules=Parts(compute=found.core * 1e-9, on_chip=found.sram * 1e-9, dram=found.dram * 1e-9),
            cycles=found.cycles,
        )
        return batch.times(times * row.samples / row.batch)

    @property
    def machine(self) -> FusedArray:
        """The array with its constants; energies of a bit do not change with the size of a buffer."""
        s = self.settings
        weights, inputs, sums = (1024 * 8 * kb for kb in (s.weight_kb, s.input_kb, s.output_kb))
        core = CORE_NJ * s.rows * s.columns
        return FusedArray(s.rows, s.columns, s.bus, weights, inputs, sums, SUM_BITS, core, READ_NJ, WRITE_NJ, DRAM_NJ)

    def problem(self, row: WorkRow) -> tuple[Problem, int]:
        """Return what the array computes for a batch of a row's product, and how often."""
        g, batch = row.shape, row.batch
        bits = min(row.bits1, self.settings.widest), min(row.bits2, self.settings.widest)
        ins, outs = g.in_channels // g.groups, g.out_channels // g.groups
        if g.kind == "conv" and row.product != "GC":
            if row.product == "FW":
                return Problem(g.kernel, g.stride, g.out_size, ins, outs, batch, *bits, g.first), g.groups
            return Problem(g.kernel, (1, 1), g.out_size, outs, ins, batch, *bits), g.groups
        # Matrix products: (what is reduced over, what is made, vectors).
        vectors, times = batch * g.out_size[0] * g.out_size[1], g.groups
        if g.kind == "matmul":  # the second operand is each sample's own
            vectors, times = g.out_size[0], batch * g.groups
        taps = g.kernel[0] * g.kernel[1]
        reduced, made, many = {
            "FW": (ins, outs, vectors),
            "EB": (outs, ins, vectors),
            "GC": (vectors, outs, ins * taps),
        }[row.product]
        return Problem((1, 1), (1, 1), (1, 1), reduced, made, many, *bits), times

    def card(self) -> dict[str, str]:
        """See :class:`HardwareModel`."""
        s = self.settings
        sizes = f"{s.weight_kb} KiB weights, {s.input_kb} KiB inputs, {s.output_kb} KiB sums of {SUM_BITS} bits"
        bits = f"weights, inputs, sums {_picojoules(READ_NJ)} pJ read, {_picojoules(WRITE_NJ)} pJ written"
        return {
            "array": f"{s.rows} x {s.columns} units: in a cycle one 8x8-bit MAC each, four of 4x4, sixteen of 2x2",
            "frequency": f"{s.frequency_hz / 1e6:g} MHz",
            "buffers": f"{sizes}, double-buffered; {s.bus} bits a cycle to DRAM",
            "energies": f"{CORE_NJ * 1e3:.3f} pJ per unit and cycle; a bit of DRAM {DRAM_NJ * 1e3:g} pJ, of {bits}, "
            "whatever the buffers' sizes",
            **super().card(),
        }


def _picojoules(nj: tuple[float, ...]) -> str:
    return ", ".join(f"{1e3 * value:.3f}" for value in nj)
