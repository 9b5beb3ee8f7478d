"""What the maker of a tensor knows and the next quantizer would have to read it for: its smallest and largest value.

The note is on the tensor object itself and holds for the version of its data that it was made for.
"""

from __future__ import annotations

import math

import torch


def note(x: torch.Tensor, low: float, high: float) -> None:
    """Note the extremes of a tensor; nothing where they are not finite, so that who measures finds out."""
    if math.isfinite(low) and math.isfinite(high):
        x._known_range = (low, high, x._version)  # type: ignore[attr-defined]


def of(x: torch.Tensor) -> tuple[float, float] | None:
    """Extremes of a tensor, if known and nothing was written to it since."""
    known = getattr(x, "_known_range", None)
    return known[:2] if known is not None and known[2] == x._version else None


def mark_rectified(x: torch.Tensor) -> None:
    """Note that the ReLU which the tensor goes to has been applied."""
    x._rectified = x._version  # type: ignore[attr-defined]


def rectified(x: torch.Tensor) -> bool:
    """Whether a ReLU has nothing left to do."""
    return bool(getattr(x, "_rectified", None) == x._version)
