"""The learning rate as a pure function of the step, and the two clocks of training."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from fractrain.engine.recipes import Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step (0-based): linear warm-up, then as the schedule says.

    ``steps``: one factor ``lr_decay`` per milestone reached. ``cosine``: half a wave from ``lr`` down to zero, which
    would be reached one step after the last. ``inverse_sqrt``: ``lr * sqrt(w / (step + 1))``, with ``w`` the steps of
    warm-up, at least 1 (Vaswani et al. 2017, section 5.3, scaled so that ``lr`` is the peak).
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "cosine":
        share = (step - recipe.warmup) / max(1, recipe.iterations - recipe.warmup)
        return recipe.lr * (1 + math.cos(math.pi * min(1.0, share))) / 2
    if recipe.schedule == "inverse_sqrt":
        return recipe.lr * math.sqrt(max(1, recipe.warmup) / (step + 1))
    return recipe.lr * recipe.lr_decay ** bisect_right(recipe.milestones, step)


@dataclass(frozen=True)
class Clock:
    """Evaluation periods (the engine's epochs) and passes over the data are two clocks of one step counter.

    Attributes:
        total: steps of the run.
        period: steps of one evaluation period; the last one may be shorter.
        batches: batches of one pass over the training set.
    """

    total: int
    period: int
    batches: int

    @classmethod
    def from_recipe(cls, recipe: Recipe, batches: int) -> Clock:
        """Return the clock of a recipe on a training set of ``batches`` batches."""
        return cls(recipe.iterations, recipe.eval_every or batches, batches)

    @property
    def periods(self) -> int:
        """Number of evaluation periods."""
        return -(-self.total // self.period)

    def start(self, epoch: int) -> int:
        """First step of an evaluation period."""
        return epoch * self.period

    def end(self, epoch: int) -> int:
        """First step after an evaluation period."""
        return min(self.total, (epoch + 1) * self.period)

    def data(self, step: int) -> tuple[int, int]:
        """Return (pass over the data, batch in it) of a step."""
        return divmod(step, self.batches)
