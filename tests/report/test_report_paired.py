"""What a paired gap rests on: methods with one seed begin with the same weights of the network that they share."""

from __future__ import annotations

import pytest
import torch

from fractrain.engine.registries import Registries
from fractrain.methods.base import MethodContext
from fractrain.report.campaign import load_campaign, plan_campaign


@pytest.fixture(scope="module")
def first():
    """The first run of each method of the campaign."""
    runs = {}
    for run in plan_campaign(load_campaign("scaling")):
        runs.setdefault(run.row.key, run)
    return runs


def weights(run):
    """Weights of convolutions and classifier as training begins, in order."""
    config, known = run.config, Registries()
    plain = known.model(config.model, config.dataset, config.seed)
    kind = known.method_class(config.method)
    context = MethodContext(seed=config.seed, steps_per_epoch=50, total_steps=1000)
    model = kind(kind.Settings(**config.settings)).prepare(plain, context)
    tensors = {n: p for n, p in model.named_parameters() if p.ndim in (2, 4) and "gate" not in n}
    return list(tensors.values())


def test_all_methods_of_the_campaign_begin_with_the_same_weights(first):
    with torch.random.fork_rng():
        reference = weights(first["fp32"])
        assert len(reference) == 40  # 37 convolutions on the path, two projections, the classifier
        for key, run in first.items():
            own = weights(run)
            assert len(own) == len(reference), key
            assert all(torch.equal(a, b) for a, b in zip(own, reference, strict=True)), key
