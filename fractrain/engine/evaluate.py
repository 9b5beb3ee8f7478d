"""Accuracy and loss of a model on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fractrain.cost.ledger import Ledger


class EvaluationStopped(Exception):
    """A stop was asked for in the middle of an evaluation: its half-way figures are of no use."""


@dataclass(frozen=True)
class Scores:
    """Result on all samples of one part.

    Attributes:
        accuracy: top-1, in percent.
        loss: mean cross-entropy.
        samples: how many there were.
    """

    accuracy: float
    loss: float
    samples: int


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    ledger: Ledger,
    should_stop: Callable[[], bool] = lambda: False,
) -> Scores:
    """Evaluate ``model`` in evaluation mode and put it back into the mode it was in.

    Sums are over samples, so a smaller last batch weighs what it should; they stay on the device until the end.

    Raises:
        EvaluationStopped: ``should_stop`` said so between two batches.
    """
    training = model.training
    model.eval()
    loss = correct = None
    samples = 0
    try:
        with torch.no_grad():
            for x, y in batches:
                if should_stop():
                    raise EvaluationStopped
                ledger.samples(len(y))
                output = model(channels_last(x))
                batch_loss = F.cross_entropy(output, y, reduction="sum").double()
                batch_correct = (output.argmax(dim=1) == y).sum()
                loss = batch_loss if loss is None else loss + batch_loss
                correct = batch_correct if correct is None else correct + batch_correct
                samples += len(y)
    finally:
        model.train(training)
    if loss is None or correct is None:
        raise ValueError("nothing to evaluate: the part is empty")
    return Scores(100 * int(correct) / samples, float(loss) / samples, samples)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return a batch of images in channels-last memory format; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
