"""Which runs are tried, and what the others get from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fractrain.engine.config import RunConfig
from fractrain.plan.calibrate import RunEstimate, Trial, parameters
from fractrain.plan.trials import Trials, try_all
from fractrain.util.errors import ConfigError


def static(bits: int, dataset: str = "cifar10", seed: int = 0) -> RunConfig:
    return RunConfig.create(
        method="static", model="resnet38", dataset=dataset, seed=seed, settings={"bits": bits, "grad_bits": 8}
    )


def run(configs: list[RunConfig], seconds: Mapping[int, float]) -> tuple[Trials, list[int], list[str]]:
    """Try the runs; a step takes as long as its bits say, and none is possible where they are missing."""
    tried: list[int] = []
    complaints: list[str] = []

    def attempt(config: RunConfig) -> Trial:
        bits = int(config.settings["bits"])
        tried.append(bits)
        if bits not in seconds:
            raise ConfigError(f"no {bits} bits")
        return Trial(seconds[bits], 0.5, 1000, parameters(config), 32)

    return try_all(configs, attempt, {}, lambda behind, total: None, complaints.append), tried, complaints


def steps(trials: Trials, configs: list[RunConfig]) -> list[Any]:
    found = [trials.estimates[config.run_id] for config in configs]
    return [value.step_s if isinstance(value, RunEstimate) else value for value in found]


def test_settings_between_two_that_agree_are_not_tried() -> None:
    configs = [static(4), static(8), static(2), static(6), static(6, seed=1), static(3)]
    trials, tried, _ = run(configs, {2: 1.0, 8: 1.2})
    assert tried == [2, 8]  # the extremes, in whichever order the table has them
    assert (trials.tried, trials.kinds) == (2, 5)
    assert steps(trials, configs) == pytest.approx([1.1, 1.2, 1.0, 1.1, 1.1, 1.1])
    between = trials.estimates[configs[0].run_id]
    assert isinstance(between, RunEstimate)
    assert between.tried == (configs[2].run_id, configs[1].run_id)


def test_each_is_tried_where_the_extremes_differ() -> None:
    configs = [static(4), static(8), static(2)]
    trials, tried, _ = run(configs, {2: 1.0, 4: 5.0, 8: 1.3})
    assert sorted(tried) == [2, 4, 8]
    assert steps(trials, configs) == [5.0, 1.3, 1.0]


def test_classes_share_a_trial_and_have_a_disk_of_their_own() -> None:
    configs = [static(4), static(4, "cifar100")]
    trials, tried, _ = run(configs, {4: 1.0})
    assert tried == [4]
    first, second = (trials.estimates[config.run_id] for config in configs)
    assert isinstance(first, RunEstimate)
    assert isinstance(second, RunEstimate)
    assert (first.disk_bytes, second.disk_bytes) == (1000, round(1000 * (564_122 + 90 * 65) / 564_122))


def test_other_batches_networks_and_methods_are_tried_apart() -> None:
    small = RunConfig.create(method="sbm", model="resnet38", dataset="cifar10", recipe={"batch_size": 64})
    others = [RunConfig.create(method="sbm", model=model, dataset="cifar10") for model in ("resnet38", "resnet74")]
    _, tried, _ = run([small, *others, static(8)], {8: 1.0})
    assert len(tried) == 4


def test_large_networks_come_first() -> None:
    """ResNet-18 has 11.7 million parameters, ResNet-74 1.1 and ResNet-38 0.6."""
    data = {"resnet38": "cifar10", "resnet18": "imagenet", "resnet74": "cifar10"}
    configs = [RunConfig.create(method="fp32", model=model, dataset=name) for model, name in data.items()]
    tried: list[str] = []
    behind: list[tuple[int, int]] = []

    def attempt(config: RunConfig) -> Trial:
        tried.append(config.model)
        return Trial(1.0, 1.0, 1, 1, 1)

    try_all(configs, attempt, {}, lambda *numbers: behind.append(numbers), print)
    assert tried == ["resnet18", "resnet74", "resnet38"]
    assert (behind[0], behind[-1]) == ((0, 3), (3, 3))


def test_one_that_fails_is_told_once_and_the_rest_tried() -> None:
    configs = [static(2), static(4), static(8), static(8, seed=1)]
    trials, tried, complaints = run(configs, {4: 2.0, 2: 1.0})
    assert sorted(tried) == [2, 4, 8]
    assert steps(trials, configs) == [1.0, 2.0, "no 8 bits", "no 8 bits"]
    assert complaints == [f"{configs[2].run_id}: no time can be told: no 8 bits"]
