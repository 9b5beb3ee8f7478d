"""Hardware models: energy and latency of training, from images, computing percentage (cp) and forward MACs.

A hardware model is applied to a ledger after training, so a new one never needs a new run. Give
:func:`fractrain.cost.metrics.summarize` any object with the members of :class:`HardwareModel`, or the name of one in
:data:`HARDWARE`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fractrain.util.errors import ConfigError, did_you_mean


@runtime_checkable
class HardwareModel(Protocol):
    """What a hardware model offers.

    Attributes:
        name: registry name.
        description: one line: what it models and what it is not.
        source: where its numbers come from.
    """

    @property
    def name(self) -> str:
        """Registry name."""

    @property
    def description(self) -> str:
        """One line: what it models and what it is not."""

    @property
    def source(self) -> str:
        """Where its numbers come from."""

    def energy_j(self, images: float, cp_percent: float, forward_macs: float) -> float:
        """Energy in joules of training on ``images`` images at a computing percentage ``cp_percent``."""

    def latency_s(self, images: float, cp_percent: float, forward_macs: float) -> float:
        """Time in seconds of training on ``images`` images at a computing percentage ``cp_percent``."""

    def note(self, cp_percent: float, forward_macs: float) -> str:
        """Why the figures for these arguments are an extrapolation, in one line; empty if they are not."""


@dataclass(frozen=True)
class HardwareEstimate:
    """Energy and latency with the caveat that belongs to them.

    Attributes:
        hardware: name of the hardware model.
        energy_j: joules.
        latency_s: seconds.
        extrapolated: the model was asked outside the range it was made for.
        note: why, in one line; empty if not extrapolated.
    """

    hardware: str
    energy_j: float
    latency_s: float
    extrapolated: bool
    note: str


def estimate(model: HardwareModel, images: float, cp_percent: float, forward_macs: float) -> HardwareEstimate:
    """Return energy and latency of training on ``images`` images, marked if they are an extrapolation.

    Args:
        model: the hardware model.
        images: training images, counted with repetition.
        cp_percent: computing percentage; 100 is 32-bit floating point.
        forward_macs: exact MACs of one forward pass of one image.
    """
    note = model.note(cp_percent, forward_macs)
    return HardwareEstimate(
        model.name,
        model.energy_j(images, cp_percent, forward_macs),
        model.latency_s(images, cp_percent, forward_macs),
        bool(note),
        note,
    )


@dataclass(frozen=True)
class ReferenceLine:
    """Cost per training image ``a + b * cp`` of one published model.

    Attributes:
        model: name of the model.
        forward_macs: its exact forward MACs per image.
        time_a, time_b: milliseconds, and milliseconds per percent of cp.
        energy_a, energy_b: millijoules, and millijoules per percent of cp.
    """

    model: str
    forward_macs: int
    time_a: float
    time_b: float
    energy_a: float
    energy_b: float


@dataclass(frozen=True)
class FittedModel:
    """Straight lines through the energy and latency columns of FracTrain's CIFAR table.

    Per training image, time and energy are ``a + b * cp``. The constants are fitted to published rows: two levels of cp
    (3 % in the DFQ rows, 6.25 % in the static 8-bit rows) for each of two models. They are not measured by this
    project; the table itself comes from a simulator whose array, process and unit energies the authors do not name.
    The fixed part ``a`` is about 70 % of the 8-bit cost: work that does not depend on precision dominates there.

    For another model, the reference nearest in forward MACs (by ratio) is taken and ``a`` and ``b`` are scaled by the
    ratio of forward MACs; per MAC, the two references differ by about 3 % at most. ``forward_macs`` means exact counts:
    the authors' rounded constants (:data:`fractrain.cost.formulas.AUTHORS_FORWARD_MACS`) are needed only to turn
    published MACs into a number of images.

    Attributes:
        references: the fitted lines.
        cp_range: least and greatest cp, in percent, that the lines were fitted to.
        fitted_to_published: its energies and times follow from published rows, so they cannot be evidence for them.
    """

    references: tuple[ReferenceLine, ...] = (
        ReferenceLine("ResNet-38", 83_280_512, 1.774, 0.1185, 2.922, 0.2570),
        ReferenceLine("ResNet-74", 168_215_168, 3.607, 0.2322, 5.967, 0.5069),
    )
    cp_range: tuple[float, float] = (3.0, 6.25)
    fitted_to_published: bool = True

    name: str = "fractrain-fitted"
    description: str = (
        "lines a + b*cp per image, fitted to the published energy and latency of ResNet-38/74 on CIFAR "
        "(3 <= cp <= 6.25 %); not measured"
    )
    source: str = (
        "fitted by this project to the CIFAR table of FracTrain (NeurIPS 2020), whose figures come from the authors' "
        "unnamed cycle-accurate simulator"
    )

    def energy_j(self, images: float, cp_percent: float, forward_macs: float) -> float:
        """Energy in joules; see :class:`HardwareModel`."""
        line, scale = self._line(images, cp_percent, forward_macs)
        return images * scale * (line.energy_a + line.energy_b * cp_percent) * 1e-3

    def latency_s(self, images: float, cp_percent: float, forward_macs: float) -> float:
        """Time in seconds; see :class:`HardwareModel`."""
        line, scale = self._line(images, cp_percent, forward_macs)
        return images * scale * (line.time_a + line.time_b * cp_percent) * 1e-3

    def note(self, cp_percent: float, forward_macs: float) -> str:
        """Say in one line what is outside the fitted range of cp or of model size; empty if nothing is."""
        line, scale = self._line(0, cp_percent, forward_macs)
        notes = []
        low, high = self.cp_range
        slack = 1e-9  # a cp of exactly 6.25 % may arrive with a rounding error
        if not low - slack <= cp_percent <= high + slack:
            notes.append(f"cp {cp_percent:.3g} % is outside the fitted {low:g} to {high:g} %")
        sizes = [r.forward_macs for r in self.references]
        # 1 %: another classifier or input stem of the same network is still that network
        if not 0.99 * min(sizes) <= forward_macs <= 1.01 * max(sizes):
            notes.append(f"scaled from {line.model} by a factor {scale:.3g} in forward MACs")
        return "; ".join(notes)

    def _line(self, images: float, cp_percent: float, forward_macs: float) -> tuple[ReferenceLine, float]:
        """Return the nearest reference and the ratio of forward MACs to it."""
        for what, value in (("images", images), ("cp_percent", cp_percent)):
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"hardware model {self.name}: {what}={value} must be finite and not negative")
        if not (forward_macs > 0 and math.isfinite(forward_macs)):
            raise ConfigError(f"hardware model {self.name}: forward_macs={forward_macs} must be positive and finite")
        line = min(self.references, key=lambda r: abs(math.log(forward_macs / r.forward_macs)))
        return line, forward_macs / line.forward_macs


class HardwareRegistry:
    """Read-only collection of hardware models by name.

    Not a ``Mapping``: there ``get`` answers None for an unknown name, here it is an error that tells the nearest name.
    """

    def __init__(self, models: Iterable[HardwareModel]) -> None:
        self._models = {model.name: model for model in models}

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def __iter__(self) -> Iterator[HardwareModel]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    def names(self) -> list[str]:
        """Names of all models, sorted."""
        return sorted(self._models)

    def get(self, name: str) -> HardwareModel:
        """Return the model called ``name``.

        Raises:
            ConfigError: no model has this name.
        """
        if name not in self._models:
            hint = did_you_mean(name, self._models)
            raise ConfigError(f"unknown hardware model {name!r}{hint}; known: {', '.join(self.names())}")
        return self._models[name]


HARDWARE = HardwareRegistry([FittedModel()])
"""The hardware models that come with the package."""
