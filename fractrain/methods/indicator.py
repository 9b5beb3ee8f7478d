"""The loss-change indicator: when to move to the next precision stage (FracTrain, Algorithm 1 and its code)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class LossIndicator:
    """Watches the loss of the last epochs and reports turning points.

    An epoch is a turning point when the window is full and every normalised difference to its newest loss is at most
    the threshold: ``|L_i - L_newest| / scale <= threshold``. ``scale`` is the mean of the first epochs' losses (up to
    ``scale_epochs``), frozen afterwards. At a turning point the stage rises and the window is emptied; the threshold
    shrinks by ``decay`` at every turning point but the last.

    Args:
        threshold: epsilon of the paper.
        decay: alpha of the paper.
        stages: number of stages (turning points + 1).
        window: losses compared (authors: 5).
        scale_epochs: epochs that set the scale (authors: 10).
    """

    def __init__(
        self, threshold: float, decay: float, stages: int = 4, window: int = 5, scale_epochs: int = 10
    ) -> None:
        self.threshold = threshold
        self.decay = decay
        self.turning_points = stages - 1
        self.window = window
        self.scale_epochs = scale_epochs
        self.stage = 0
        self._recent: list[float] = []
        self._first: list[float] = []

    def update(self, loss: float) -> bool:
        """Take the loss of a finished epoch; return whether it is a turning point (the stage has then risen)."""
        if len(self._first) < self.scale_epochs:
            self._first.append(loss)
        if self.stage >= self.turning_points:
            return False
        self._recent = [*self._recent, loss][-self.window :]
        if len(self._recent) < self.window or not all(change <= self.threshold for change in self.changes()):
            return False
        self.stage += 1
        self._recent = []
        if self.stage < self.turning_points:
            self.threshold *= self.decay
        return True

    def changes(self) -> Sequence[float]:
        """Normalised differences of the window's older losses to its newest; nan (no turning point) at scale 0."""
        scale = sum(self._first) / len(self._first) or math.nan
        return [abs(v - self._recent[-1]) / scale for v in self._recent[:-1]]

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "threshold": self.threshold, "stage": self.stage, "recent": list(self._recent), "first": list(self._first),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self.threshold, self.stage = state["threshold"], state["stage"]
        self._recent, self._first = list(state["recent"]), list(state["first"])


class LossClock:
    """Turns step losses into the indicator's epoch losses.

    By default an epoch is an evaluation period: the engine's mean loss is taken as it is. The authors' code sums the
    losses of a fixed number of iterations (its evaluation period: 400 in their PFQ script, 390 in their FracTrain
    script) and divides by the batches of one data pass (391), so that its epoch is not an epoch; ``period`` gives that
    behaviour.

    Args:
        indicator: what to update.
        period: iterations per epoch of the authors' clock, 0 for evaluation periods.
        divisor: what the sum is divided by on the authors' clock.
        own_mean: on evaluation periods take the mean of the steps' losses as they came in, not the engine's.
    """

    def __init__(self, indicator: LossIndicator, period: int = 0, divisor: float = 1, own_mean: bool = False) -> None:
        self.indicator = indicator
        self.period = period
        self.divisor = divisor
        self.own_mean = own_mean
        self._sum: Any = 0.0  # a tensor on the training device once steps come in: no read per step
        self._steps = 0

    def step(self, loss: Any) -> bool:
        """Take a step's loss (number or detached 0-dim tensor); True at a turning point of the authors' clock."""
        if not (self.period or self.own_mean):
            return False
        self._sum = self._sum + loss
        self._steps += 1
        return bool(self.period) and self._steps >= self.period and self.indicator.update(self._taken() / self.divisor)

    def epoch(self, mean_loss: float) -> bool:
        """Take the mean loss of a finished evaluation period; True at a turning point of that clock."""
        if self.period:
            return False
        if steps := self._steps:  # none where the engine's mean is taken, or all steps were skipped
            mean_loss = self._taken() / steps
        return self.indicator.update(mean_loss)

    def _taken(self) -> float:
        """The sum so far; a new one begins."""
        total, self._sum, self._steps = float(self._sum), 0.0, 0
        return total

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the sum keeps its type, so that a resumed clock adds up exactly as an uninterrupted one."""
        total = self._sum if isinstance(self._sum, float) else self._sum.detach().cpu()
        return {"sum": total, "steps": self._steps, "indicator": self.indicator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self._sum = state["sum"] if state["steps"] else 0.0
        self._steps = state["steps"]
        self.indicator.load_state_dict(state["indicator"])
