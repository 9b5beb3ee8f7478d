"""Accuracy and loss of a model on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fractrain.cost.ledger import Ledger
from fractrain.distributed.ranks import Ranks
from fractrain.engine.task import Classification, Task


class EvaluationStopped(Exception):
    """A stop was asked for in the middle of an evaluation: its half-way figures are of no use."""


@dataclass(frozen=True)
class Scores:
    """Result on all samples of one part.

    Attributes:
        accuracy: top-1, in percent; None where the task counts no right answers.
        loss: mean loss in nats, per image or per word.
        samples: how many there were.
    """

    accuracy: float | None
    loss: float
    samples: int


def evaluate(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], ledger: Ledger,
    should_stop: Callable[[], bool] = lambda: False, task: Task | None = None, ranks: Ranks | None = None,
) -> Scores:  # fmt: skip
    """Evaluate ``model`` in evaluation mode and put it back into the mode it was in.

    Sums are over samples, so a smaller last batch weighs what it should; they stay on the device until the end.

    Args:
        ledger: counts what is executed.
        should_stop: asked between two batches.
        task: what the model is to do; classification by default.
        ranks: the processes among which the batches are dealt out, each whole; a stop is then not asked for.

    Raises:
        EvaluationStopped: ``should_stop`` said so between two batches.
    """
    task = task or Classification()
    training = model.training
    model.eval()
    loss = correct = None
    samples = 0
    try:
        with torch.no_grad():
            for x, y in batches if ranks is None else ranks.own_batches(batches):
                if should_stop() and (ranks is None or not ranks.is_distributed):
                    raise EvaluationStopped
                ledger.samples(len(y))
                batch_loss, batch_correct, count = task.sums(model, channels_last(x), y)
                loss = batch_loss if loss is None else loss + batch_loss
                if batch_correct is not None:
                    correct = batch_correct if correct is None else correct + batch_correct
                samples += count
    finally:
        model.train(training)
    if ranks is not None:
        loss, correct, samples = ranks.sum_scores(loss, correct, samples)
    if loss is None or not samples:
        raise ValueError("nothing to evaluate: the part is empty")
    accuracy = None if correct is None else 100 * int(correct) / samples
    return Scores(accuracy, float(loss) / samples, samples)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return a batch of images in channels-last memory format; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
