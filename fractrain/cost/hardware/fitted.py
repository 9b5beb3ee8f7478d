"""Straight lines through the energy and latency columns of FracTrain's CIFAR table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fractrain.cost.hardware.base import FIGURES, Cost, HardwareModel, Parts, Priced, Workload
from fractrain.util.errors import ConfigError


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


REFERENCES = (
    ReferenceLine("ResNet-38", 83_280_512, 1.774, 0.1185, 2.922, 0.2570),
    ReferenceLine("ResNet-74", 168_215_168, 3.607, 0.2322, 5.967, 0.5069),
)
CP_RANGE = (3.0, 6.25)
"""Least and greatest cp, in percent, that the lines were fitted to."""


class FittedModel(HardwareModel):
    """Lines a + b*cp per image, fitted to published energy and latency of ResNet-38/74 (3 <= cp <= 6.25 %).

    The constants are fitted to published rows: two levels of cp (3 % in the DFQ rows, 6.25 % in the static 8-bit rows)
    for each of two models. They are not measured by this project; the table itself comes from a simulator whose array,
    process and unit energies the authors do not name. The fixed part ``a`` is about 70 % of the 8-bit cost: work that
    does not depend on precision dominates there.

    For another model, the reference nearest in forward MACs (by ratio) is taken and ``a`` and ``b`` are scaled by the
    ratio of forward MACs; per MAC, the two references differ by about 3 % at most. ``forward_macs`` means exact counts:
    the authors' rounded constants (:data:`fractrain.cost.formulas.AUTHORS_FORWARD_MACS`) are needed only to turn
    published MACs into a number of images.
    """

    name = "fractrain-fitted"
    source = (
        "fitted by this project to the CIFAR table of FracTrain (NeurIPS 2020), whose figures come from the authors' "
        "unnamed cycle-accurate simulator"
    )
    counted = (
        "images and cp; blind to shapes, and to widths beyond cp; layers outside the gateable blocks and gates are in "
        "the fixed part, whatever their widths"
    )
    is_not = "measured, and no array: lines through four points, for two networks"
    additive = False
    fitted_to_published = True

    def energy_j(self, images: float, cp_percent: float, forward_macs: float) -> float:
        """Energy in joules of training on ``images`` images at a computing percentage ``cp_percent``.

        Args:
            images: training images, counted with repetition.
            cp_percent: computing percentage; 100 is 32-bit floating point.
            forward_macs: exact MACs of one forward pass of one image.

        Raises:
            ConfigError: an argument is negative or not finite.
        """
        line, scale = self._line(images, cp_percent, forward_macs)
        return images * scale * (line.energy_a + line.energy_b * cp_percent) * 1e-3

    def latency_s(self, images: float, cp_percent: float, forward_macs: float) -> float:
        """Time in seconds; arguments as of :meth:`energy_j`."""
        line, scale = self._line(images, cp_percent, forward_macs)
        return images * scale * (line.time_a + line.time_b * cp_percent) * 1e-3

    def note(self, cp_percent: float, forward_macs: float) -> str:
        """Say in one line what is outside the fitted range of cp or of model size; empty if nothing is."""
        line, scale = self._line(0, cp_percent, forward_macs)
        notes = []
        low, high = CP_RANGE
        slack = 1e-9  # a cp of exactly 6.25 % may arrive with a rounding error
        if not low - slack <= cp_percent <= high + slack:
            notes.append(f"cp {cp_percent:.3g} % is outside the fitted {low:g} to {high:g} %")
        sizes = [r.forward_macs for r in REFERENCES]
        # 1 %: another classifier or input stem of the same network is still that network
        if not 0.99 * min(sizes) <= forward_macs <= 1.01 * max(sizes):
            notes.append(f"scaled from {line.model} by a factor {scale:.3g} in forward MACs")
        return "; ".join(notes)

    def work(self, work: Workload) -> Priced:
        """The fixed part belongs to no row; what grows with cp is dealt out to the rows of the gateable blocks."""
        if not work.forward_macs:
            raise ConfigError(
                "the ledger does not know the model's MACs: set meta['forward_macs'] (forward pass, one sample)"
            )
        line, scale = self._line(work.samples, work.cp_percent, work.forward_macs)
        images = work.samples * scale * 1e-3
        seconds, joules = images * line.time_b * work.cp_percent, images * line.energy_b * work.cp_percent
        weights = np.array([row.macs * row.bits1 * row.bits2 if row.block is not None else 0.0 for row in work.rows])
        shares = weights / (weights.sum() or 1.0)
        numbers = np.zeros((len(shares), len(FIGURES)))
        numbers[:, FIGURES.index("seconds_compute")] = seconds * shares
        numbers[:, FIGURES.index("joules_compute")] = joules * shares
        return Priced(
            numbers,
            Cost(Parts(fixed=images * line.time_a), Parts(fixed=images * line.energy_a)),
            self.note(work.cp_percent, work.forward_macs),
        )

    def card(self) -> dict[str, str]:
        """See :class:`HardwareModel`."""
        lines = "; ".join(
            f"{r.model}: {r.time_a:g} + {r.time_b:g} cp ms and {r.energy_a:g} + {r.energy_b:g} cp mJ per image, cp in %"
            for r in REFERENCES
        )
        return {"array": "not named by the authors", "energies": lines, **super().card()}

    def _line(self, images: float, cp_percent: float, forward_macs: float) -> tuple[ReferenceLine, float]:
        """Return the nearest reference and the ratio of forward MACs to it."""
        for what, value in (("images", images), ("cp_percent", cp_percent)):
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"hardware model {self.name}: {what}={value} must be finite and not negative")
        if not (forward_macs > 0 and math.isfinite(forward_macs)):
            raise ConfigError(f"hardware model {self.name}: forward_macs={forward_macs} must be positive and finite")
        line = min(REFERENCES, key=lambda r: abs(math.log(forward_macs / r.forward_macs)))
        return line, forward_macs / line.forward_macs
