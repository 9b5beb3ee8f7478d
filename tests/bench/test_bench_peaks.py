"""Peak memory of models: what is kept for backward is counted right, and quantized activations keep less."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fractrain.bench import peaks
from fractrain.methods import registry
from fractrain.util.errors import RunError
from fractrain.util.progress import Progress


@pytest.fixture(scope="module")
def kept() -> Iterator[Callable[..., peaks.Peak]]:
    """A model and a batch for seconds; what several tests look at is measured once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(peaks.CASES, "resnet38", ("cifar10", 32))
        yield functools.cache(functools.partial(peaks.run_here, "resnet38"))


def test_quantized_activations_keep_less_than_floating_point(kept: Callable[..., peaks.Peak]) -> None:
    plain, quantized = kept("fp32"), kept("sbm")
    assert plain.missing == quantized.missing == ""
    # By hand, FP32, per image: the inputs of 37 convolutions and of 37 + 2 batch norms, 16384 floats each in the first
    # of three groups, half and a quarter of that in the others; outputs of ReLUs are the next convolution's input.
    floats = 16384 * (12 + 13) + 8192 * (12 + 13 + 1) + 4096 * (12 + 13 + 1)
    assert plain.kept == pytest.approx(32 * 4 * floats, rel=0.1)
    # Passing tensors come on top of what is kept, the gradients (2 MiB, with as much for the optimizer) among them.
    assert plain.tensors > 0.8 * plain.kept
    assert quantized.tensors > quantized.kept > 0
    # SBM keeps a byte where FP32 keeps four, but for the inputs of batch norms: five bytes of eight, and the weights.
    assert 0.6 * plain.kept < quantized.kept < 0.72 * plain.kept


@pytest.mark.parametrize("method", ["dorefa", "wageubn"])
def test_every_quantizer_keeps_less_than_floating_point(method: str, kept: Callable[..., peaks.Peak]) -> None:
    plain, quantized = kept("fp32"), kept(method)
    assert quantized.kept < 0.85 * plain.kept
    assert quantized.tensors < 0.95 * plain.tensors


def test_one_candidate_per_sample_keeps_less_than_floating_point(kept: Callable[..., peaks.Peak]) -> None:
    assert kept("dfq", "forward=selected").kept < kept("fp32").kept < kept("dfq").kept


def test_a_pair_that_cannot_be_trained_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peaks.CASES, "transformer_base", ("cifar10", 2))
    peak = peaks.run_here("transformer_base", "fp32")
    assert "cannot be trained on cifar10" in peak.missing
    assert peak.missing in peaks.markdown([peak])


def test_ratios_are_to_the_same_model_in_fp32() -> None:
    a, b = (
        [("a", "fp32", 100, 200, 1000), ("a", "sbm", 50, 300, 1500)],
        [("b", "fp32", 10, 4, 10), ("b", "sbm", 30, 1, 25)],
    )
    found = [peaks.Peak(m, k, "d", 1, "", *(size * 2**20 for size in sizes)) for m, k, *sizes in a + b]
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


def test_every_model_is_measured_with_every_method() -> None:
    found = peaks.pairs()
    assert {(model, method) for model, method, _ in found} == {(m, k) for m in peaks.CASES for k in registry.names()}
    assert len(peaks.CASES) == 6
    assert found[0] == ("resnet38", "fp32", "")


def test_an_interrupted_measurement_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str, str]] = []

    def measured(model: str, method: str, variant: str, threads: int) -> peaks.Peak:
        if method == "sbm" and not any(pair[1] == "sbm" for pair in asked):
            asked.append((model, method, variant))
            raise RunError("stopped")
        asked.append((model, method, variant))
        return peaks.Peak(model, method, "cifar10", 4, variant, 1, 2, 3 + len(asked))

    monkeypatch.setattr(peaks, "_in_a_process", measured)
    wanted = peaks.pairs(("resnet38",), ("fp32", "dfq", "sbm"))
    with pytest.raises(RunError, match="stopped"):
        peaks.measure(Progress(), wanted, 1, tmp_path)
    assert [p["method"] for p in json.loads((tmp_path / "memory.json").read_text())["peaks"]] == ["fp32", "dfq", "dfq"]
    value = peaks.measure(Progress(), wanted, 1, tmp_path)
    assert len(asked) == len(wanted) + 1
    assert value == json.loads((tmp_path / "memory.json").read_text())
    assert [(p["model"], p["method"], p["variant"]) for p in value["peaks"]] == wanted
    monkeypatch.setattr(peaks, "_code", lambda: "other code")
    peaks.measure(Progress(), wanted, 1, tmp_path)
    assert len(asked) == 2 * len(wanted) + 1


def test_the_page_says_on_what_it_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peaks, "_in_a_process", lambda *pair: peaks.Peak(*pair[:2], "cifar10", 4, pair[2], 1, 2, 3))
    value = peaks.measure(Progress(), peaks.pairs(("resnet38",), ("fp32", "fractrain")), 1, tmp_path)
    page = peaks.page(value)
    machine = value["machine"]
    for text in (
        machine["cpu"],
        "1 thread(s)",
        machine["packages"]["torch"],
        "fractrain (forward=selected)",
        peaks._code()[:12],
    ):
        assert text in page
