"""Watching the loss for inf and nan without making a GPU wait."""

from __future__ import annotations

from typing import Final

import torch

from fractrain.util.errors import NonFiniteError

READ_EVERY_GPU: Final = 50  # reading the loss waits for the GPU; on the CPU it costs nothing


class Diverged(NonFiniteError):
    """A run whose loss, or a tensor inside a layer, became inf or nan; the message names run, step and layer."""


class BadLoss(Exception):
    """The loss of a step is not finite.

    Attributes:
        step: the first such step.
        value: the loss as last seen.
    """

    def __init__(self, step: int, value: float) -> None:
        super().__init__(step, value)
        self.step, self.value = step, value


class LossWatch:
    """Notes the first step whose loss is not finite: on the device itself, read every so many steps.

    Args:
        device: where the loss is.
        every: steps between two readings; None means every step on the CPU and every 50 elsewhere.

    Attributes:
        last: loss as last read, or None.
    """

    def __init__(self, device: torch.device, every: int | None = None) -> None:
        self._every = every or (1 if device.type == "cpu" else READ_EVERY_GPU)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._loss: torch.Tensor | None = None
        self.last: float | None = None

    def see(self, step: int, total: torch.Tensor) -> None:
        """Note the loss of a step, before its backward pass.

        Args:
            step: the step (0-based).
            total: what is differentiated, 0-dim.

        Raises:
            BadLoss: this is a step at which the device is read, and a loss since the last reading was not finite.
        """
        self._loss = total.detach()
        bad = (self._first_bad < 0) & ~torch.isfinite(self._loss)
        self._first_bad = torch.where(bad, step, self._first_bad)
        if (step + 1) % self._every == 0:
            self.read()

    def read(self) -> None:
        """Read the device.

        Raises:
            BadLoss: a loss since the last reading was not finite.
        """
        if self._loss is None:
            return
        self.last = float(self._loss)
        first = int(self._first_bad)
        if first >= 0:
            raise BadLoss(first, self.last)
