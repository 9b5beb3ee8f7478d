"""Peak memory of models: what is kept for backward is counted right, and quantized activations keep less."""

from __future__ import annotations

import pytest
import torch

from fractrain.bench import peaks


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peaks.CASES, "resnet38", ("cifar10", 4))


def test_quantized_activations_keep_less_than_floating_point(small: None) -> None:
    plain, quantized = (peaks.run_here("resnet38", method, 1) for method in ("fp32", "sbm"))
    assert plain.missing == quantized.missing == ""
    # By hand, FP32, per image: the inputs of 37 convolutions and of 37 + 2 batch norms, 16384 floats each in the first
    # of three groups, half and a quarter of that in the others; outputs of ReLUs are the next convolution's input.
    floats = 16384 * (12 + 13) + 8192 * (12 + 13 + 1) + 4096 * (12 + 13 + 1)
    assert plain.kept == pytest.approx(4 * 4 * floats, rel=0.1)
    assert 0 < quantized.kept < plain.kept
    assert plain.step_s > 0
    # Passing tensors come on top of what is kept, the gradients (2 MiB, with as much for the optimizer) among them.
    assert plain.tensors > 0.8 * plain.kept
    assert quantized.tensors > 0


def test_a_pair_that_cannot_be_trained_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peaks.CASES, "transformer_base", ("cifar10", 2))
    peak = peaks.run_here("transformer_base", "fp32", 1)
    assert "cannot be trained on cifar10" in peak.missing
    assert peak.missing in peaks.markdown([peak])


def test_ratios_are_to_the_same_model_in_fp32() -> None:
    a, b = (
        [("a", "fp32", 100, 200, 1000), ("a", "sbm", 50, 300, 1500)],
        [("b", "fp32", 10, 4, 10), ("b", "sbm", 30, 1, 25)],
    )
    found = [peaks.Peak(m, k, "d", 1, *(size * 2**20 for size in sizes)) for m, k, *sizes in a + b]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in peaks.markdown(found).splitlines()[2:]]
    assert [(line[5], line[7], line[9]) for line in lines] == [
        ("1.00", "1.00", "1.00"), ("0.50", "1.50", "1.50"), ("1.00", "1.00", "1.00"), ("3.00", "0.25", "2.50"),
    ]  # fmt: skip


def test_the_peak_of_tensors_is_that_of_what_lives_at_the_same_time() -> None:
    mib = 2**18  # floats

    def step() -> None:
        a = torch.empty(4 * mib)
        b = torch.empty(8 * mib)
        del a
        c = torch.empty(3 * mib)
        del b, c

    assert peaks._peak_of_tensors(step) == 12 * 2**20
