"""What a hardware model is given and what it returns.

A model is one class in one file: a subclass of :class:`HardwareModel` that prices one row of the ledger. Everything
else (finding it, settings, sums over epochs and layers, tables) is done for it: see
``docs/add-a-hardware-model.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from fractrain.util.errors import ConfigError

Product = Literal["FW", "EB", "GC"]
Two = tuple[int, int]
FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerShape:
    """Shape of one layer, for one sample.

    A linear layer is a convolution with a 1x1 kernel whose positions are the vectors of a sample. A product of two
    activations (attention) has as many groups as heads; its second operand takes the place of the weights, but each
    sample has its own.

    Attributes:
        kind: ``conv``, ``linear`` or ``matmul``.
        in_channels, out_channels: in all groups together; what FW reduces over, and what it makes.
        kernel, stride: height and width.
        in_size, out_size: height and width of input and output; of a linear layer vectors per sample and 1.
        groups: channels of one group meet those of no other; as many as channels in a depthwise convolution.
        first: the layer reads the data themselves.
    """

    kind: Literal["conv", "linear", "matmul"]
    in_channels: int
    out_channels: int
    kernel: Two = (1, 1)
    stride: Two = (1, 1)
    in_size: Two = (1, 1)
    out_size: Two = (1, 1)
    groups: int = 1
    first: bool = False

    @property
    def macs(self) -> int:
        """MACs of one sample in one of the three products."""
        return math.prod(self.kernel) * math.prod(self.out_size) * self.out_channels * self.in_channels // self.groups

    @property
    def elements(self) -> tuple[int, int, int]:
        """Elements of input, weights (of all samples together, but of one sample in a ``matmul``) and output."""
        weights = math.prod(self.kernel) * self.out_channels * self.in_channels // self.groups
        return math.prod(self.in_size) * self.in_channels, weights, math.prod(self.out_size) * self.out_channels


@dataclass(frozen=True)
class WorkRow:
    """What is priced: MACs of one layer and product at one pair of widths.

    Attributes:
        product: FW multiplies activations with weights, EB errors with weights, GC activations with errors.
        bits1, bits2: widths of the two operands; 32 is floating point.
        macs: multiply-accumulates.
        geometry: shape of the layer; None where it is not known.
        batch: samples of one training step.
        block: gateable block in whose cp the row counts; None for stem, classifier and gates.
        formats: number formats of the two operands (``e4m3/e8m0``); empty for uniform grids and 32-bit floating point.
        scales: bits of scales that come with each element, beside its width.
    """

    layer: str
    product: Product
    bits1: int
    bits2: int
    macs: float
    geometry: LayerShape | None = None
    batch: int = 1
    block: str | None = None
    formats: tuple[str, str] = ("", "")
    scales: tuple[float, float] = (0.0, 0.0)

    @property
    def samples(self) -> float:
        """How many samples' work it is: where widths differ inside a sample, a fraction of it.

        Raises:
            ConfigError: the layer's shape is not known.
        """
        return self.macs / self.shape.macs

    @property
    def shape(self) -> LayerShape:
        """The geometry, for models that need it.

        Raises:
            ConfigError: it is not known.
        """
        if self.geometry is None:
            raise ConfigError(f"layer {self.layer!r} is not known in the plain model, so its shape is not, either")
        return self.geometry


@dataclass(frozen=True)
class Parts:
    """An amount (seconds, joules) by where it is spent; a model that cannot tell puts all into one.

    Attributes:
        compute: in multipliers and adders.
        on_chip: in memory on the chip.
        dram: in memory off the chip; of time, what the array waits for it.
        fixed: what does not depend on widths.
    """

    compute: float = 0.0
    on_chip: float = 0.0
    dram: float = 0.0
    fixed: float = 0.0

    @property
    def total(self) -> float:
        """All parts together."""
        return self.compute + self.on_chip + self.dram + self.fixed


PARTS = ("compute", "on_chip", "dram", "fixed")
FIGURES = ("cycles", *(f"seconds_{p}" for p in PARTS), *(f"joules_{p}" for p in PARTS))
"""Names of a cost's nine numbers, in the order of :meth:`Cost.figures`."""


@dataclass(frozen=True)
class Cost:
    """Time and energy.

    Attributes:
        seconds, joules: by part.
        cycles: of the array's clock; 0 where the model has none.
    """

    seconds: Parts = Parts()
    joules: Parts = Parts()
    cycles: float = 0.0

    def figures(self) -> tuple[float, ...]:
        """Cycles, seconds by part, joules by part; see :data:`FIGURES`."""
        s, j = self.seconds, self.joules
        return (self.cycles, s.compute, s.on_chip, s.dram, s.fixed, j.compute, j.on_chip, j.dram, j.fixed)

    @classmethod
    def from_figures(cls, numbers: Sequence[float]) -> Cost:
        """The cost with these :meth:`figures`."""
        values = [float(n) for n in numbers]
        return cls(Parts(*values[1:5]), Parts(*values[5:9]), values[0])

    def times(self, factor: float) -> Cost:
        """The cost of ``factor`` times as much work."""
        return Cost.from_figures([factor * n for n in self.figures()])


@dataclass(frozen=True)
class Workload:
    """What is priced at once: the training of one evaluation period.

    Attributes:
        rows: executed work, one row for each layer, product and pair of widths.
        samples: training samples fed.
        cp_percent: computing percentage of the gateable blocks (:func:`fractrain.cost.metrics.cp`).
        forward_macs: forward MACs of the plain model per sample; None where they are not known.
        seconds, joules: what the run itself took, by clock and meter; None where that was not measured.
    """

    rows: tuple[WorkRow, ...]
    samples: int
    cp_percent: float
    forward_macs: float | None
    seconds: float | None = None
    joules: float | None = None


@dataclass(frozen=True)
class Priced:
    """What a workload costs.

    Attributes:
        rows: cost of each row, in order; or their :meth:`Cost.figures` as an array ``[rows, 9]``, which is faster.
        overhead: cost that belongs to no row.
        note: why the figures are an extrapolation, in one line; empty if they are not.
    """

    rows: Sequence[Cost] | npt.NDArray[np.float64]
    overhead: Cost = Cost()
    note: str = ""


class HardwareSettings(pydantic.BaseModel):
    """Settings of a hardware model; subclass it and add fields with defaults, limits and descriptions."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HardwareModel:
    """A hardware model: cost of training from what the ledger counted.

    Subclasses write :meth:`row` (or, where rows cannot be priced one by one, :meth:`work`); the first line of their
    docstring is their description.

    Attributes:
        name: registry name; of a plugin the name of its file.
        source: where its formulas and numbers come from.
        counted: what is counted and how, for the card.
        is_not: what must not be read into it, for the card and for every table that shows it.
        additive: the cost of a run is the sum of the costs of its rows, and a row's cost is in proportion to its MACs.
        needs_geometry: rows whose layer has no known shape cannot be priced.
        measures: it tells what was measured, and nan of what was not; nothing is modelled.
        fitted_to_published: its numbers follow from published rows, so they are no evidence for them.
        presets: named settings, ``--hardware NAME:PRESET``.
        expected_failures: checks of the contract that the model is known to fail, with the reason.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    counted: ClassVar[str] = ""
    is_not: ClassVar[str] = ""
    additive: ClassVar[bool] = True
    needs_geometry: ClassVar[bool] = False
    measures: ClassVar[bool] = False
    fitted_to_published: ClassVar[bool] = False
    Settings: ClassVar[type[HardwareSettings]] = HardwareSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    expected_failures: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, settings: HardwareSettings | None = None) -> None:
        self.settings: Any = settings or self.Settings()

    @classmethod
    def summary(cls) -> str:
        """One line: what it models."""
        return (cls.__doc__ or "").strip().split("\n", 1)[0]

    @property
    def title(self) -> str:
        """The name with the preset or the settings that are not the default, as ``--hardware`` takes it."""
        for preset, values in self.presets.items():
            if values and self.settings == self.Settings(**values) != self.Settings():
                return f"{self.name}:{preset}"
        changed = [
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in self.settings.model_dump().items()
            if value != type(self.settings).model_fields[key].get_default(call_default_factory=True)
        ]
        return ":".join([self.name, *changed])

    def row(self, row: WorkRow) -> Cost:
        """Return the cost of one row.

        Args:
            row: both widths are at least 1; a product that was skipped is not asked about.

        Raises:
            ConfigError: the model cannot price it (its shape is not known, a width it does not take).
        """
        raise NotImplementedError

    def work(self, work: Workload) -> Priced:
        """Return the cost of an evaluation period; additive models need not override this."""
        return Priced([self.row(row) for row in work.rows])

    def card(self) -> dict[str, str]:
        """What there is to know: ``array``, ``frequency``, ``buffers`` and ``energies`` are for subclasses to add."""
        return {"counted": self.counted, "source": self.source, "is not": self.is_not}
