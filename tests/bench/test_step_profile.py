"""Shares by category from a profile made by hand, and from a real one against the clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from fractrain.bench.step_profile import CATEGORIES, IDLE, PYTHON, SCOPES, STEP, labelled, resolve, shares_of


@dataclass
class Event:
    name: str
    self_cpu_time_total: float
    cpu_parent: Any = None
    sequence_nr: int = -1
    self_device_time_total: float = 0.0


def step_by_hand() -> list[Event]:
    step = Event(STEP, 10)
    gate = Event("fractrain::gate", 2, step)
    linear = Event("aten::linear", 3, gate, 7)
    peeking = Event("aten::argmax", 1, gate, 8)  # records nothing: shows the number of the convolution that follows
    conv = Event("aten::conv2d", 4, step, 8)
    inside = Event("aten::mkldnn_convolution", 30, conv)
    quantize = Event("fractrain::quantize", 5, step)
    rounding = Event("aten::round", 6, quantize)
    norm = Event("aten::native_batch_norm", 9, step, 9)
    relu = Event("aten::clamp_min", 2, Event("_ReLU", 1, step))
    back_gate = Event("autograd::engine::evaluate_function: AddmmBackward0", 1, step, 7)
    mm = Event("aten::mm", 4, back_gate)
    back_conv = Event("autograd::engine::evaluate_function: ConvolutionBackward0", 2, step, 8)
    both = Event("aten::convolution_backward", 15, back_conv)
    ledger = Event("fractrain::ledger", 3, step)
    outside = Event("aten::add", 1000)
    return [
        step, gate, linear, peeking, conv, inside, quantize, rounding, norm, relu.cpu_parent, relu, back_gate, mm,
        back_conv, both, ledger, outside,
    ]  # fmt: skip


def test_categories_by_hand() -> None:
    shares, other = shares_of(step_by_hand())
    total = 10 + 2 + 3 + 1 + 4 + 30 + 5 + 6 + 9 + 1 + 2 + 1 + 4 + 2 + 15 + 3
    expected = {
        "conv": 4 + 30 + 2 + 15, "quantize": 5 + 6, "batch norm": 9, "gate": 2 + 3 + 1 + 1 + 4, "ledger": 3,
        "other": 10 + 1 + 2,
    }  # fmt: skip
    assert shares == pytest.approx({name: value / total for name, value in expected.items()})
    assert other == pytest.approx({PYTHON: 10 / total, "ReLU": 3 / total})


def test_on_a_gpu_kernels_count_and_the_rest_is_waiting() -> None:
    step = Event(STEP, 10)
    conv = Event("aten::conv2d", 4, step, self_device_time_total=600_000)
    norm = Event("aten::native_batch_norm", 9, step, self_device_time_total=200_000)
    shares, other = shares_of([step, conv, norm], wall=1.0)
    assert shares["conv"] == pytest.approx(0.6)
    assert shares["batch norm"] == pytest.approx(0.2)
    assert other == pytest.approx({IDLE: 0.2})


@pytest.mark.parametrize(("category", "place"), SCOPES)
def test_every_labelled_function_is_there(category: str, place: str) -> None:
    """Where one was renamed, its time would silently go to ``other``."""
    owner, name = resolve(place)
    assert category in CATEGORIES
    assert callable(getattr(owner, name))


def test_labels_are_taken_off_again() -> None:
    before = [getattr(*resolve(place)) for _, place in SCOPES]
    with labelled():
        assert all(getattr(*resolve(place)) is not b for (_, place), b in zip(SCOPES, before, strict=True))
    assert [getattr(*resolve(place)) for _, place in SCOPES] == before
