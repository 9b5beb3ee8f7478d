"""The arithmetic of medians and quartiles against hand numbers, and the order in which things are timed."""

from __future__ import annotations

import time

import pytest
import torch

from fractrain.bench.timing import median, paired, quartiles, ratios, seconds_of

CPU = torch.device("cpu")


def test_median_and_quartiles_by_hand() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert median(values) == 3.0
    assert quartiles(values) == [2.0, 4.0]
    assert median([1.0, 2.0, 4.0, 8.0]) == 3.0
    assert quartiles([1.0, 2.0, 4.0, 8.0]) == [1.75, 5.0]  # 1 + 0.75 * 1 and 4 + 0.25 * 4
    assert quartiles([0.7]) == [0.7, 0.7]
    assert median([]) is None
    assert quartiles([]) is None


def test_the_ratio_is_taken_round_by_round() -> None:
    """A machine that is twice as slow in one round must not change the ratio: medians of times would give 2 / 2.5."""
    assert ratios([1.0, 4.0, 2.0], [2.0, 8.0, 4.0]) == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


def test_rounds_are_interleaved_with_alternating_order_and_warm_up() -> None:
    order: list[str] = []
    ticks: list[int] = []
    path, base = paired(
        lambda: order.append("p"), lambda: order.append("b"), CPU, repeats=4, tick=lambda: ticks.append(len(order)),
        warmup=2, inner=2,
    )  # fmt: skip
    turns = ["".join(order[i : i + 4]) for i in range(0, len(order), 4)]
    assert turns == ["bbpp", "ppbb"] * 3
    assert ticks == [4, 8, 12, 16, 20, 24]
    assert len(path) == len(base) == 4


def test_times_go_to_the_right_side() -> None:
    path, base = paired(lambda: time.sleep(0.02), lambda: None, CPU, repeats=2, tick=lambda: None, warmup=0)
    assert min(path) >= 0.02
    assert max(base) < min(path)


def test_seconds_of_is_a_wall_clock() -> None:
    start = time.perf_counter()
    inner = seconds_of(lambda: time.sleep(0.01), CPU)
    assert 0.01 <= inner <= time.perf_counter() - start


def test_inner_calls_are_divided_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fractrain.bench.timing.seconds_of", lambda call, device: float(len(call())))
    assert paired(lambda: None, lambda: None, CPU, 2, lambda: None, inner=5) == ([1.0, 1.0], [1.0, 1.0])
