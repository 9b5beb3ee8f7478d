"""The result of a finished run, computed from its metrics, its ledger and its final weights.

Beside it stands what a predictor reaches that has learned nothing but how often each answer occurs.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from fractrain.cost.ledger import Ledger
from fractrain.engine.config import RunConfig
from fractrain.util.digests import weights_sha256


def summarize_run(
    config: RunConfig, metrics: list[dict[str, Any]], model: nn.Module, ledger: Ledger, costs: dict[str, Any],
    metric: str = "accuracy",
) -> dict[str, Any]:  # fmt: skip
    """Return the run's summary: what :func:`summarize_records` says, the weights' digest and the peak memory."""
    return {
        **summarize_records(config, metrics, ledger, costs, metric),
        "weights_sha256": weights_sha256(model),
        **peak_memory(),
    }


def summarize_records(
    config: RunConfig, metrics: list[dict[str, Any]], ledger: Ledger, costs: dict[str, Any], metric: str = "accuracy"
) -> dict[str, Any]:
    """Return what follows from the records of a run alone: accuracies in percent, perplexities per word, costs.

    ``test_accuracy_best`` is the best over all evaluations on the test set, the papers' protocol: it is a selection
    on the test set, and is there to be compared with published numbers only. ``test_accuracy_at_best_val`` is the test
    accuracy at the epoch of best validation accuracy, None without a validation part. A language model has
    ``test_perplexity_*`` in the same three forms, and accuracies that are None.
    """
    last = metrics[-1]
    best = best_line(metrics, "test", metric)
    best_val = best_line(metrics, "val", metric) if last.get("val_loss") is not None else None
    steps = [line["step_seconds"] for line in metrics if line.get("step_seconds") is not None]
    return {
        "run_id": config.run_id,
        "status": "done",
        "method": config.method,
        "model": config.model,
        "dataset": config.public_dataset,
        "profile": config.profile,
        "seed": config.seed,
        "iterations": last["iteration"],
        "epochs": len(metrics),
        "train_loss": last["train_loss"],
        "train_accuracy": last["train_accuracy"],
        "test_accuracy_last": last["test_accuracy"],
        "test_accuracy_best": best["test_accuracy"],
        "test_accuracy_best_protocol": "paper protocol: best over all evaluations on the test set",
        "test_accuracy_at_best_val": best_val["test_accuracy"] if best_val else None,
        "val_accuracy_best": best_val["val_accuracy"] if best_val else None,
        "best_val_epoch": best_val["epoch"] if best_val else None,
        "best_test_epoch": best["epoch"],
        "best_test_iteration": best["iteration"],
        "metric": metric,
        **(_perplexities(last, best, best_val) if metric == "perplexity" else {}),
        "cost": costs,
        "ledger_sha256": ledger.digest(),
        "seconds": last["seconds"],
        "joules": last.get("joules"),
        "step_seconds_median": statistics.median(steps) if steps else None,
    }


def best_line(metrics: list[dict[str, Any]], part: str, metric: str = "accuracy") -> dict[str, Any]:
    """Return the first line with the best result on ``part`` (``val`` or ``test``)."""
    pick = min if metric == "perplexity" else max  # both keep the first of equals
    return pick(metrics, key=lambda line: line[f"{part}_{metric}"])


def _perplexities(last: dict[str, Any], best: dict[str, Any], best_val: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "test_perplexity_last": last["test_perplexity"],
        "test_perplexity_best": best["test_perplexity"],
        "test_perplexity_at_best_val": best_val["test_perplexity"] if best_val else None,
        "val_perplexity_best": best_val["val_perplexity"] if best_val else None,
    }


def peak_memory() -> dict[str, int | None]:
    """Peak memory of this process in bytes: resident on the host, allocated on the GPU (None without one)."""
    try:
        import resource
    except ImportError:  # Windows
        return {"peak_host_bytes": None, "peak_gpu_bytes": None}
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "peak_gpu_bytes": gpu}


def tensor_bytes(value: Any) -> int:
    """Bytes of the tensors in a state: in dicts, lists and tuples, however deep."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(tensor_bytes, inner))


def trivial_result(data: Any, metric: str) -> dict[str, float]:
    """Result of the trivial predictor on the test part.

    Of images it is the accuracy in percent of always answering the most frequent class of the training part (the lowest
    of equals); of a text the perplexity of :func:`fractrain.data.text.unigram_perplexity`.

    Args:
        metric: ``accuracy`` or ``perplexity``.

    Returns:
        ``trivial_accuracy`` or ``trivial_perplexity``; nothing where labels are only known by reading all rows.
    """
    if metric == "perplexity":
        from fractrain.data.text import unigram_perplexity

        return {"trivial_perplexity": unigram_perplexity(data)}
    train, test = (getattr(part, "labels", None) for part in (data.train, data.test))
    if train is None or test is None:
        return {}
    commonest = int(np.bincount(np.asarray(train)).argmax())
    return {"trivial_accuracy": 100.0 * float((np.asarray(test) == commonest).mean())}
