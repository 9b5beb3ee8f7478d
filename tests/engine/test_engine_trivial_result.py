from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fractrain.data import registry
from fractrain.data.text import unigram_perplexity
from fractrain.engine.summary import trivial_result


def test_always_the_most_frequent_class_of_the_training_part():
    parts = [SimpleNamespace(labels=torch.tensor(labels)) for labels in ([2, 0, 2, 1, 2, 0], [0, 2, 1, 2])]
    assert trivial_result(SimpleNamespace(train=parts[0], test=parts[1]), "accuracy") == {"trivial_accuracy": 50.0}
    arrays = [SimpleNamespace(labels=np.array(labels)) for labels in ([1, 1, 0, 0], [0, 0, 0, 1, 1])]  # 0 and 1 tie
    assert trivial_result(SimpleNamespace(train=arrays[0], test=arrays[1]), "accuracy") == {"trivial_accuracy": 60.0}


def test_labels_that_are_not_known_give_no_number():
    assert trivial_result(SimpleNamespace(train=SimpleNamespace(), test=SimpleNamespace()), "accuracy") == {}


@pytest.mark.parametrize("name", ["digits", "digits100"])
def test_real_parts_against_a_loop(name):
    data = registry.load(name)
    counts: dict[int, int] = {}
    for label in data.train.labels.tolist():
        counts[label] = counts.get(label, 0) + 1
    first = min(counts, key=lambda label: (-counts[label], label))
    hits = sum(label == first for label in data.test.labels.tolist())
    got = trivial_result(data, "accuracy")["trivial_accuracy"]
    assert got == pytest.approx(100 * hits / len(data.test.labels))
    assert got < 15


def test_of_a_text_it_is_the_perplexity_of_frequencies():
    data = registry.load("docs_text")
    assert trivial_result(data, "perplexity") == {"trivial_perplexity": unigram_perplexity(data)}
