"""What a verdict by equivalence can find out: the chance of each word, and how many seeds would decide.

The means of ``n`` seeds are taken as normal around the truth, their standard deviation as scaled chi: then the chances
are one integral, over the standard deviation that happens to be measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fractrain.report.stats import t_quantile

POWER: Final = 0.8  # a number of seeds "would decide" if it does so in four cases of five
MOST: Final = 100  # seeds; what needs more than that is not worth naming
SEEDS: Final = (3, 5, 10)
_STEPS: Final = 2_000  # equally likely values of the measured standard deviation


@dataclass(frozen=True)
class Chances:
    """Probabilities (0..1) of the two words that decide; the rest is ``inconclusive``."""

    reproduced: float
    differs: float


def chances(miss: float, sd: float, n: int, tolerance: float) -> Chances:
    """Chance of each word, where seeds scatter with ``sd`` around the published value plus ``miss``.

    Args:
        miss: true difference to the published value.
        sd: true standard deviation over seeds, positive.
        n: number of seeds, at least 2.
        tolerance: half the width of the zone of equivalence.
    """
    import numpy as np
    from scipy.special import chdtri, ndtr

    if sd <= 0:
        return Chances(float(abs(miss) <= tolerance), float(abs(miss) > tolerance))
    error = sd / math.sqrt(n)
    share = (np.arange(_STEPS) + 0.5) / _STEPS
    half = t_quantile(n - 1) * error * np.sqrt(chdtri(n - 1, share) / (n - 1))
    room = np.maximum(tolerance - half, 0)  # the mean must lie within +- room
    inside = ndtr((room - miss) / error) - ndtr((-room - miss) / error)
    above = ndtr((miss - tolerance - half) / error)
    below = ndtr((-miss - tolerance - half) / error)
    return Chances(float(inside.mean()), float((above + below).mean()))


def seeds_to_decide(miss: float, sd: float, tolerance: float, at_least: int) -> int | None:
    """Fewest seeds that decide with probability :data:`POWER`, were the measured ``miss`` and ``sd`` the truth.

    Returns:
        The number, or None where it is more than :data:`MOST`.
    """
    for n in range(max(2, at_least), MOST + 1):
        found = chances(miss, sd, n, tolerance)
        if max(found.reproduced, found.differs) >= POWER:
            return n
    return None


def power_text(tolerance: float) -> str:
    """One sentence on what the rule can do with so many seeds."""
    sd, miss = 0.25, 0.7  # percent: the first is typical of accuracies on CIFAR-10
    exact = ", ".join(f"{chances(0, sd, n, tolerance).reproduced:.0%} with {n}" for n in SEEDS)
    false = max(chances(miss, sd, n, tolerance).reproduced for n in SEEDS)
    bound = max(chances(tolerance, sd, n, tolerance).reproduced for n in SEEDS)
    return (
        f"Power, where seeds scatter with a standard deviation of {sd:g}: an exact copy is called reproduced in "
        f"{exact} seeds; one that is {miss:g} off in {false:.1%}, one exactly on the edge in {bound:.1%} at most."
    )
