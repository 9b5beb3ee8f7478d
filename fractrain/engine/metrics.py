"""The metrics line of one evaluation period: what is written down about it, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fractrain.engine.evaluate import Scores
from fractrain.engine.schedule import learning_rate

if TYPE_CHECKING:
    from fractrain.engine.loop import TrainingLoop


def metrics_line(loop: TrainingLoop, mean_loss: float, scores: dict[str, Scores]) -> dict[str, Any]:
    """Return the line of the epoch just trained.

    Accuracies and cp are in percent; perplexities are per word. What the task does not have is left out (perplexity)
    or None (accuracy).

    Args:
        loop: the run.
        mean_loss: mean task loss of the epoch's steps.
        scores: result of each part that was evaluated; ``val`` may be absent.
    """
    val, test = scores.get("val"), scores["test"]
    trained = loop.samples > 0  # else all steps were skipped
    counted = trained and loop.task.metric == "accuracy"
    line: dict[str, Any] = {
        "epoch": loop.epoch,
        "iteration": loop.step,
        "lr": learning_rate(loop.config.recipe, loop.step - 1),
        "train_loss": mean_loss if trained else None,
        "train_accuracy": 100 * int(loop.correct) / loop.samples if counted else None,
        "val_accuracy": val.accuracy if val else None,
        "val_loss": val.loss if val else None,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "cp_percent": loop.known.cp(loop.ledger),
        "method": {name: float(value) for name, value in loop.method.metrics().items()},
        "seconds": loop.seconds,
        **loop.pace.line("images" if loop.task.metric == "accuracy" else "words"),
    }
    if loop.task.metric == "perplexity":
        perplexity = loop.task.perplexity
        line["train_perplexity"] = perplexity(line["train_loss"])
        line["val_perplexity"] = perplexity(line["val_loss"])
        line["test_perplexity"] = perplexity(line["test_loss"])
    return line
