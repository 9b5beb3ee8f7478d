"""What a predictor reaches that has learned nothing but how often each answer occurs: what any run must beat."""

from __future__ import annotations

from typing import Any

import numpy as np


def trivial_result(data: Any, metric: str) -> dict[str, float]:
    """Result of the trivial predictor on the test part.

    Of images it is the accuracy in percent of always answering the most frequent class of the training part (the lowest
    of equals); of a text the perplexity of :func:`fractrain.data.text.unigram_perplexity`.

    Args:
        data: a loaded data set.
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
