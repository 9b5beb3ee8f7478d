"""The loss-change indicator against a slow re-implementation of Algorithm 1 and against sequences worked by hand."""

from __future__ import annotations

import random

import pytest
import torch

from fractrain.methods.pfq import LossClock, LossIndicator


def algorithm_1(losses, epsilon, alpha, turning_points=3, window=5, scale_epochs=10):
    """Per epoch: (turning point?, stage, threshold), recomputed from the whole history each time."""
    told, starts, threshold = [], 0, epsilon
    stage = 0
    for t in range(len(losses)):
        turned = False
        if stage < turning_points and t + 1 - starts >= window:
            first = losses[: min(t + 1, scale_epochs)]
            scale = sum(first) / len(first)
            last = losses[t + 1 - window : t + 1]
            turned = not any(abs(v - last[-1]) / scale > threshold for v in last[:-1])
        if turned:
            stage += 1
            starts = t + 1
            if stage < turning_points:
                threshold = threshold * alpha
        told.append((turned, stage, threshold))
    return told


def curve(rng: random.Random) -> list[float]:
    """A falling, noisy loss with plateaus."""
    level, out = rng.uniform(1.0, 5.0), []
    for _ in range(rng.randint(3, 80)):
        if rng.random() < 0.15:
            level *= rng.uniform(0.5, 1.0)
        out.append(level * (1 + rng.uniform(-1, 1) * rng.choice([0.0, 0.005, 0.03, 0.1])))
    return out


def test_random_sequences_follow_algorithm_1():
    rng = random.Random(0)
    stages = []
    for _ in range(400):
        losses, epsilon, alpha = curve(rng), rng.choice([0.05, 0.15, 0.3]), rng.choice([0.3, 0.4, 1.0])
        ours = LossIndicator(epsilon, alpha)
        seen = [(ours.update(v), ours.stage, ours.threshold) for v in losses]
        expected = algorithm_1(losses, epsilon, alpha)
        assert seen == expected
        stages.append(expected[-1][1])
    assert {0, 1, 2, 3} <= set(stages)


def run(losses, **settings):
    ours = LossIndicator(**{"threshold": 0.25, "decay": 0.5, **settings})
    return [i for i, v in enumerate(losses) if ours.update(v)], ours


def test_equality_passes_and_the_next_float_above_fails():
    # scale = (5 * 8) / 5 = 8 while all losses sum to 40; the largest difference is exactly 2 = 0.25 * 8
    assert run([7.0, 7.0, 9.0, 8.0, 9.0])[0] == [4]
    assert run([7.0, 7.0, 9.0, 8.0, 9.0], threshold=0.24999999999999997)[0] == []


def test_a_constant_loss_turns_at_epochs_5_10_15_and_never_again():
    turned, ours = run([2.0] * 40)
    assert turned == [4, 9, 14]
    assert ours.stage == 3


def test_the_window_is_emptied_and_fresh_epochs_fill_it():
    # Turning point at the fifth epoch. The sixth to ninth are equal too, but the window holds only four.
    turned, _ = run([1.0] * 9)
    assert turned == [4]


def test_all_four_older_losses_are_compared_with_the_newest():
    for place in range(4):
        losses = [1.0] * 5
        losses[place] = 3.0
        assert run(losses)[0] == [], place
    assert run([3.0, 1.0, 1.0, 1.0, 1.0, 1.0])[0] == [5]


def test_threshold_decays_at_the_first_two_turning_points_only():
    ours, seen = LossIndicator(0.16, 0.5), []
    for _ in range(20):
        ours.update(1.0)
        seen.append(ours.threshold)
    assert seen == [0.16] * 4 + [0.08] * 5 + [0.04] * 11


def test_scale_is_frozen_after_ten_epochs():
    ours = LossIndicator(1e-9, 1.0)
    for i in range(10):
        ours.update(float(10 - i))  # mean of ten: 5.5; never a turning point
    for v in (100.0, 100.0, 100.0, 100.0, 155.0):
        ours.update(v)
    assert ours.changes() == [pytest.approx(10.0, rel=1e-15)] * 4


def test_nan_and_zero_losses_are_no_turning_points():
    assert run([float("nan")] * 8)[0] == []
    assert run([1.0, float("nan"), 1.0, 1.0, 1.0])[0] == []
    assert run([0.0] * 8)[0] == []


def feed(clock: LossClock, losses) -> list[int]:
    return [i for i, v in enumerate(losses) if clock.step(v)]


@pytest.mark.parametrize("period", [400, 390])
def test_authors_clock_sums_a_fixed_number_of_iterations_and_divides_by_391(period):
    seen = []
    indicator = LossIndicator(0.25, 0.5)
    update = indicator.update
    indicator.update = lambda loss: seen.append(loss) or update(loss)
    losses = [1.0 + (i % 7) for i in range(2 * period + 5)]
    clock = LossClock(indicator, period, divisor=391)
    feed(clock, losses)
    assert seen == [sum(losses[:period]) / 391, sum(losses[period : 2 * period]) / 391]
    assert not clock.epoch(1.0)  # true epochs mean nothing to this clock
    assert len(seen) == 2


def test_authors_clock_turns_after_five_periods_whatever_the_epochs_are():
    assert feed(LossClock(LossIndicator(0.05, 0.3), 400, 391), [1.0] * 4100) == [1999, 3999]
    assert feed(LossClock(LossIndicator(0.05, 0.3), 390, 391), [1.0] * 4000) == [1949, 3899]


def test_true_clock_ignores_steps():
    clock = LossClock(LossIndicator(0.05, 0.3))
    assert feed(clock, [1.0] * 5000) == []
    assert [clock.epoch(1.0) for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 6, 7, 12, 13, 34, 35, 36, 70, 100])
def test_state_round_trip_at_any_point_continues_bit_for_bit(cut, tensors, tmp_path):
    rng = random.Random(cut)
    losses = [1.0 + 0.01 * rng.random() for _ in range(150)]
    if tensors:
        losses = [torch.tensor(v) for v in losses]
    whole, first, second = (LossClock(LossIndicator(0.05, 0.3), 7, 6) for _ in range(3))
    expected = [(whole.step(v), whole.indicator.stage, whole.indicator.threshold) for v in losses]
    for v in losses[:cut]:
        first.step(v)
    torch.save(first.state_dict(), tmp_path / "state")
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    rest = [(second.step(v), second.indicator.stage, second.indicator.threshold) for v in losses[cut:]]
    assert rest == expected[cut:]
    assert second.state_dict() == whole.state_dict()
    assert any(turned for turned, *_ in expected)
