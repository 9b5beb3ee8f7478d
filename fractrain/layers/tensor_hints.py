"""What the maker of a tensor knows and who is next would have to read it for: extremes, and samples that are all zero.

A note is on the tensor object itself and holds for the version of its data that it was made for. In inference mode
nothing is noted, as versions are not counted.
"""

from __future__ import annotations

import math

import numpy as np
import torch


def version_of(x: torch.Tensor) -> int | None:
    """How often a tensor was written to; None in inference mode, which does not count that."""
    return None if x.is_inference() else x._version


def note(x: torch.Tensor, low: float, high: float) -> None:
    """Note the extremes of a tensor; nothing where they are not finite, so that who measures finds out."""
    if math.isfinite(low) and math.isfinite(high) and not x.is_inference():
        x._known_range = (low, high, x._version)  # type: ignore[attr-defined]


def of(x: torch.Tensor) -> tuple[float, float] | None:
    """Extremes of a tensor, if known and nothing was written to it since."""
    known = getattr(x, "_known_range", None)
    return None if known is None or known[2] != x._version else known[:2]


def note_samples(x: torch.Tensor, live: np.ndarray) -> None:
    """Note which samples of a tensor are not all zero: uint8 ``[N]``."""
    if not x.is_inference():
        x._live_samples = (live, x._version)  # type: ignore[attr-defined]


def samples_of(x: torch.Tensor) -> np.ndarray | None:
    """Which samples may differ from zero, uint8 ``[N]``, if known and nothing was written to the tensor since."""
    known = getattr(x, "_live_samples", None)
    live: np.ndarray | None = None if known is None or known[1] != x._version else known[0]
    return live


def all_samples(x: torch.Tensor) -> np.ndarray:
    """All samples, as :func:`samples_of` has them."""
    return np.ones(x.shape[0], np.uint8)
