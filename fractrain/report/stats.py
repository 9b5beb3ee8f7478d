"""Statistics over seeds: mean, standard deviation, Student t interval, paired difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean of ``n`` values with its two-sided Student t interval.

    Attributes:
        sd: sample standard deviation (divisor n - 1); None for n = 1.
        half_width: half the width of the interval of the mean; None for n = 1, where there is no interval.
    """

    mean: float
    sd: float | None
    half_width: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width

    def text(self, sign: str = "", digits: int = 2) -> str:
        """Mean (``sign`` ``+``: with that of a positive one) and half the interval's width: ``+0.31 ± 0.12``."""
        half = "" if self.half_width is None else f" ± {self.half_width:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}{half}"


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean, standard deviation and t interval of independent values.

    Raises:
        ValueError: no value, or one that is not finite (a failed run must never get here).
    """
    if not values:
        raise ValueError("no values to average")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"values to average must be finite, got {list(values)}")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, 1)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Estimate(mean, sd, t_quantile(n - 1, confidence) * sd / math.sqrt(n), n)


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Two-sided critical value of Student's t with ``freedom`` degrees of freedom."""
    from scipy.special import stdtrit  # slow import, and not needed for a table without repeated seeds

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate | None:
    """Mean of ``a - b`` over the seeds both have, with its t interval; None without a common seed."""
    common = sorted(set(a) & set(b))
    return estimate([a[s] - b[s] for s in common]) if common else None


def paired_saving(own: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """Mean of ``100 * (1 - own / other)`` over the seeds both have, with its t interval, in percent; None as below."""
    share = paired_ratio(own, other)
    if share is None:
        return None
    scaled = [None if v is None else 100 * v for v in (share.sd, share.half_width)]
    return Estimate(100 * (1 - share.mean), scaled[0], scaled[1], share.n)


def paired_ratio(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate | None:
    """Mean of ``a / b`` over the seeds both have, with its t interval; None without a common seed or with a zero."""
    common = sorted(set(a) & set(b))
    if not common or any(b[s] == 0 for s in common):
        return None
    return estimate([a[s] / b[s] for s in common])
