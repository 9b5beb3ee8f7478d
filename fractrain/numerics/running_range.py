"""Running ranges: what evaluation takes for the range of an activation."""

from __future__ import annotations

import math

import torch

from fractrain.numerics.formats import Limits


def update_range(
    running: tuple[torch.Tensor, torch.Tensor, torch.Tensor], limits: Limits | tuple[float, float], keep: float
) -> None:
    """Move a running range (low, high, number of updates) towards measured limits, in place."""
    low, high = limits
    lowest, highest, steps = running
    if isinstance(low, torch.Tensor) and isinstance(high, torch.Tensor):
        low, high = low.amin(), high.amax()
        if low.device.type != "cpu":
            start = steps == 0  # on the device: no synchronisation
            for buffer, limit in ((lowest, low), (highest, high)):
                buffer.copy_(torch.where(start, limit, buffer * keep + limit * (1 - keep)))
            steps.add_(1)
            return
    first = int(steps) == 0  # plain numbers: a tenth of the time of ten one-element operations
    for buffer, value in ((lowest, float(low)), (highest, float(high))):
        buffer.fill_(value if first else float(buffer) * keep + value * (1 - keep))
    steps.add_(1)


def all_finite(x: torch.Tensor) -> bool:
    """Whether a tensor holds neither inf nor nan (reads it)."""
    return math.isfinite(x.item()) if x.numel() == 1 else bool(torch.isfinite(x).all())
