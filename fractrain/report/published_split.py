"""What a published saving consists of: when the best accuracy came, and what an image cost until then.

Published savings count to the iteration of best test accuracy. That iteration is not printed, but follows from a row's
MACs and latency and the lines that the published table obeys (:mod:`fractrain.cost.hardware.fitted`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fractrain.cost.formulas import AUTHORS_FORWARD_MACS
from fractrain.cost.hardware.fitted import REFERENCES

BATCH = 128


@dataclass(frozen=True)
class Solved:
    """A published row, solved: iterations to the best accuracy, mean cp in percent, milliseconds per image."""

    iterations: float
    cp_percent: float
    ms_per_image: float


def solve(model: str, model_label: str, macs: float, latency_min: float) -> Solved | None:
    """Iterations and mean cp of a row of the CIFAR table; None for a model that the lines do not know.

    Args:
        model: registry name.
        model_label: as the paper writes it.
        macs: published effective MACs.
        latency_min: published latency, minutes.
    """
    line = next((line for line in REFERENCES if line.model == model_label), None)
    if line is None or model not in AUTHORS_FORWARD_MACS:
        return None
    cp_images = 100 * macs / (3 * AUTHORS_FORWARD_MACS[model])  # percent x images
    images = (latency_min * 60e3 - line.time_b * cp_images) / line.time_a
    return Solved(images / BATCH, cp_images / images, line.time_a + line.time_b * cp_images / images)


def split_text(own: Solved, other: Solved) -> str:
    """How much of a saving is stopping earlier, and what remains at equal iterations."""
    earlier, macs, time = (
        own.iterations / other.iterations, own.cp_percent / other.cp_percent, own.ms_per_image / other.ms_per_image,
    )  # fmt: skip
    return (
        f"by the published rows the best accuracy came after {own.iterations / 1e3:.1f}k against "
        f"{other.iterations / 1e3:.1f}k iterations (x {earlier:.3f}); at equal iterations they save "
        f"{100 * (1 - macs):.1f} % of the MACs and {100 * (1 - time):.1f} % of the latency"
    )
