"""What a model is trained to do, and how well it does it: classify images, or predict the next word of a text.

The engine knows a model's task from its data set (``kind``). A task turns a batch into a loss to go backward from and
into sums that can be added up over batches, in whatever order and on however many devices.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from fractrain.distributed.ranks import BatchResult

IGNORED = -100  # a target that is not scored, as in torch.nn.functional.cross_entropy


class Task:
    """Base of the tasks.

    Attributes:
        metric: what results are compared by; ``accuracy`` (percent, more is better) or ``perplexity`` (less is better).
    """

    metric: ClassVar[str] = "accuracy"

    def step(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int | None = None) -> BatchResult:
        """Return the result of one training batch.

        Args:
            x, y: inputs and targets.
            size: samples of the global batch of which these are a part, on several processes: the loss is then this
                part's share of the global mean. It is the sum divided once: gradients of the part's own mean, scaled
                by its share, would be rounded twice, and rounded to a grid they may land on the other side.
        """
        raise NotImplementedError

    def sums(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        """Return (sum of losses as float64, right answers or None, answers) of one evaluation batch."""
        raise NotImplementedError

    @staticmethod
    def perplexity(loss: float | None) -> float | None:
        """Perplexity of a mean loss in nats; None for tasks that have none, infinite where it overflows."""
        return None


class Classification(Task):
    """Which of the classes is it? Cross-entropy and top-1 accuracy."""

    metric = "accuracy"

    def step(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int | None = None) -> BatchResult:
        """Mean cross-entropy over the images of the batch."""
        output = model(x)
        loss = F.cross_entropy(output, y) if size is None else F.cross_entropy(output, y, reduction="sum") / size
        return BatchResult(loss, (output.detach().argmax(dim=1) == y).sum(), len(y))

    def sums(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        """Sums over images."""
        output = model(x)
        loss = F.cross_entropy(output, y, reduction="sum").double()
        return loss, (output.argmax(dim=1) == y).sum(), len(y)


class LanguageModel(Task):
    """What is the next word? Negative log-likelihood per word and its exponential, the perplexity.

    ``x`` and ``y`` are word numbers, int64 ``[N, T]``; a target of -100 is not scored (evaluation windows overlap). The
    model answers ``model(x, y)`` with the negative log-likelihood of each target, float ``[N, T]``.
    """

    metric = "perplexity"

    def step(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int | None = None) -> BatchResult:
        """Mean over the words of the batch."""
        nll: torch.Tensor = model(x, y)
        return BatchResult(nll.mean() if size is None else nll.sum() / (size * y.shape[1]), None, y.numel())

    def sums(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        """Sums over the scored words."""
        scored = y != IGNORED
        nll: torch.Tensor = model(x, y.clamp(min=0))
        return (nll * scored).sum(dtype=torch.float64), None, int(scored.sum())

    @staticmethod
    def perplexity(loss: float | None) -> float | None:
        """Exponential of the mean loss."""
        if loss is None:
            return None
        try:
            return math.exp(loss)
        except OverflowError:
            return math.inf


def task_of(info: Any) -> Task:
    """Return the task of a data set: by its ``kind``, ``image`` unless it says ``text``."""
    return LanguageModel() if getattr(info, "kind", "image") == "text" else Classification()
