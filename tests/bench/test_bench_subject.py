"""The steps that are timed do what the catalog says: choices, ledger, layout, memory, overhead."""

from __future__ import annotations

import resource
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from fractrain.bench import measure
from fractrain.bench.catalog import EXTRA_NAMES, NAMES, TYPICAL
from fractrain.bench.memory import resident
from fractrain.bench.overhead import Stopwatch, harness_overhead
from fractrain.bench.subject import MethodStep, PlainStep, Setup, force_choices, wanted_choices
from fractrain.util.errors import RunError

CPU = torch.device("cpu")


def test_every_name_has_a_measure() -> None:
    assert set(measure.MEASURES) == {*NAMES, *EXTRA_NAMES}


def test_choices_by_hand() -> None:
    assert wanted_choices((1, 3), 5).tolist() == [1, 3, 1, 3, 1]
    assert wanted_choices((0, 1, 2, 3, 4), 7).tolist() == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize(("candidates", "batch"), [(TYPICAL, 4), ((0, 1, 2, 3, 4), 5)])
def test_the_ledger_counts_the_choices_that_were_wanted(setup: Setup, candidates: tuple[int, ...], batch: int) -> None:
    step = MethodStep(replace(setup, batch=batch), "dfq", candidates=candidates)
    step()
    step.check()
    chosen: Counter[int] = Counter()
    for _, _, work, units in step.ledger.state_dict()["units"]:
        if "#" in work:
            chosen[int(work.partition("#")[2].partition("|")[0])] += units
    each = 18 * batch // len(candidates)  # 18 gated blocks in ResNet-38
    assert dict(chosen) == dict.fromkeys(candidates, each)


def test_the_gate_still_learns(setup: Setup) -> None:
    step = MethodStep(setup, "dfq", candidates=TYPICAL)
    before = step.model.get_submodule("precision_gate").head.weight.detach().clone()
    step()
    assert not torch.equal(before, step.model.get_submodule("precision_gate").head.weight)


def test_a_gate_that_disobeys_is_reported(setup: Setup) -> None:
    step = MethodStep(setup, "dfq", candidates=TYPICAL)
    step()
    block = next(m for m in step.model.modules() if hasattr(m, "choice"))
    block.choice = torch.zeros_like(block.choice)
    with pytest.raises(RunError, match="could not be made to choose"):
        step.check()
    with pytest.raises(RunError, match="has no gates"):
        force_choices(PlainStep(setup).model, TYPICAL)


def test_the_baseline_is_the_plain_model_in_the_layout_asked_for(setup: Setup) -> None:
    for layout in (torch.channels_last, torch.contiguous_format):
        step = PlainStep(setup, layout)
        step()
        convolutions = [m for m in step.model.modules() if isinstance(m, torch.nn.Conv2d)]
        assert type(convolutions[3]) is torch.nn.Conv2d
        assert convolutions[3].weight.is_contiguous(memory_format=layout)
        assert step.x.is_contiguous(memory_format=layout)
        assert step.x.shape == (4, 3, 8, 8)


def test_the_kernels_asked_for_reach_every_layer(setup: Setup) -> None:
    step = MethodStep(replace(setup, kernels="reference"), "sbm")
    states = {id(m.state): m.state for m in step.model.modules() if hasattr(m, "state")}
    assert [state.kernels for state in states.values()] == ["reference"]


def test_calls_inside_calls_are_timed_once() -> None:
    clock = Stopwatch(CPU)
    inner = clock.around(lambda: time.sleep(0.02))
    outer = clock.around(lambda: (inner(), time.sleep(0.01)))
    start = time.perf_counter()
    outer()
    assert 0.03 <= clock.seconds <= time.perf_counter() - start
    clock.seconds = 0.0
    inner()
    assert clock.seconds >= 0.02


def test_overhead_is_what_a_slow_hook_costs(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that sleeps 50 ms must show as 50 ms more, and backward must be given back."""
    from fractrain.methods.fractrain import FracTrain

    backward = torch.Tensor.backward
    usual = harness_overhead(setup, lambda: None)
    monkeypatch.setattr(FracTrain, "on_step_end", lambda *_: time.sleep(0.05))
    slow = harness_overhead(setup, lambda: None)
    assert torch.Tensor.backward is backward
    assert len(usual.ratios) == len(usual.path) == 1
    assert 0 < usual.ratios[0] < 1
    assert slow.path[0] >= 0.05


def test_the_peak_is_the_kernels_own_figure() -> None:
    """Against getrusage, which reads the same peak another way."""
    peak = resident("VmHWM")
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.02)
    assert resident("VmRSS") <= 1.02 * peak  # the kernel keeps both by and by
    with pytest.raises(RunError, match="NoSuch"):
        resident("NoSuch")
