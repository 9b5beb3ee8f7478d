"""Where the time of a training step goes: shares by category, from a profile.

An operation counts for the innermost category it runs in: a labelled function of the package (quantize, gate, ledger),
or by name (conv, batch norm). The gate's backward pass is found by the numbers autograd gives to operations. What is
left is ``other``, and its parts are told.
"""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile, record_function

from fractrain.bench.catalog import TYPICAL
from fractrain.bench.subject import MethodStep, PlainStep, Setup
from fractrain.bench.timing import Tick, median, seconds_of

PREFIX = "fractrain::"
# A category, and where its work is done: module, then attributes. A new fast path belongs here as well.
SCOPES = (
    ("quantize", "fractrain.layers.base:QuantLayer._activation"),
    ("quantize", "fractrain.layers.base:QuantLayer.weight_operand"),
    ("quantize", "fractrain.layers.base:QuantLayer.error_operand"),
    ("quantize", "fractrain.numerics.quantize:Quantized.values"), ("conv", "fractrain.layers.conv_linear:convolve"),
    ("conv", "fractrain.layers.conv_linear:products"), ("conv", "fractrain.experimental.int8_conv:forward"),
    ("conv", "fractrain.experimental.int8_conv:input_gradient"),
    ("conv", "fractrain.experimental.int8_conv:weight_gradient"), ("conv", "fractrain.experimental.int8_gemm:forward"),
    ("conv", "fractrain.experimental.int8_gemm:input_gradient"),
    ("conv", "fractrain.experimental.int8_gemm:weight_gradient"),
    ("gate", "fractrain.methods.gate:GateNetwork.forward"), ("gate", "fractrain.methods.gated_block:pooled"),
    ("gate", "fractrain.methods.gated_block:straight_through"), ("gate", "fractrain.methods.dfq:DFQ.extra_loss"),
    ("ledger", "fractrain.layers.base:QuantLayer.report"),
    ("ledger", "fractrain.methods.gated_block:GatedBlock._count"), ("ledger", "fractrain.cost.ledger:Ledger.samples"),
)  # fmt: skip


def resolve(place: str) -> tuple[Any, str]:
    """Return (owner, name of the attribute) of a place ``module:Class.function``.

    Raises:
        AttributeError: the package has no such function.
    """
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    getattr(owner, name)
    return owner, name


@contextmanager
def labelled() -> Iterator[None]:
    """Make the functions of ``SCOPES`` show in a profile, inside the block."""
    with ExitStack() as stack:
        for category, place in SCOPES:
            owner, name = resolve(place)
            stack.enter_context(patch.object(owner, name, _label(PREFIX + category, getattr(owner, name))))
        yield


def _label(label: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return call(*args, **kwargs)

    return inside


CATEGORIES = ("conv", "quantize", "batch norm", "gate", "ledger", "other")
STEP = PREFIX + "step"
IDLE = "device waiting for the host"
WARMUP, MOST_STEPS = 2, 5
BY_NAME = (("conv", "conv"), ("batch norm", "batch_norm"), ("batch norm", "batchnorm"), ("batch norm", "_normalise"))
PARTS = (
    ("ReLU", "relu"), ("optimizer", "optimizer."), ("choosing among candidates", "_mix"),
    ("Python inside quantized layers", "_products"), ("sums of residuals and gradients", "aten::add"),
    ("gradients stored", "accumulategrad"),
)  # fmt: skip
PYTHON, REST = "Python between operations", "everything else"


@dataclass(frozen=True)
class StepProfile:
    """Shares of one method's step.

    Attributes:
        method: registry name.
        candidates: candidates the gates were made to choose, None without gates.
        seconds: median of a step without the profiler.
        profiled_seconds: mean of a step with it.
        shares: of the categories, adding up to 1.
        other: of the parts of ``other``, adding up to its share.
    """

    method: str
    candidates: Sequence[int] | None
    seconds: float
    profiled_seconds: float
    shares: dict[str, float] = field(default_factory=dict)
    other: dict[str, float] = field(default_factory=dict)


def profile_step(setup: Setup, method: str, tick: Tick) -> StepProfile:
    """Profile some steps of a method (``fp32``: the plain model); gates choose as in the path ``dfq_typical``."""
    step, candidates = _step(setup, method)
    for _ in range(WARMUP):
        step()
    count = min(setup.repeats, MOST_STEPS)
    seconds = median([seconds_of(step, setup.device) for _ in range(count)]) or 0.0
    tick()
    cuda = setup.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    wall = 0.0
    with labelled(), profile(activities=kinds) as prof:
        for _ in range(count):
            with record_function(STEP):
                wall += seconds_of(step, setup.device)
    tick()
    shares, other = shares_of(list(prof.events() or ()), wall if cuda else None)
    return StepProfile(method, candidates, seconds, wall / count, shares, other)


def _step(setup: Setup, method: str) -> tuple[PlainStep | MethodStep, Sequence[int] | None]:
    if method == "fp32":
        return PlainStep(setup), None
    step = MethodStep(setup, method)
    if hasattr(step.model, "precision_gate"):
        return MethodStep(setup, method, candidates=TYPICAL), TYPICAL
    return step, None


def shares_of(events: Sequence[Any], wall: float | None = None) -> tuple[dict[str, float], dict[str, float]]:
    """Shares by category, and of the parts of ``other``.

    Args:
        events: of the profiler; those outside the steps are left out.
        wall: seconds that all steps took on a GPU (its kernels are counted, and what is missing is waiting); None on
            the CPU, where the times of the operations themselves add up to the whole.
    """
    gate = _numbers_of_the_gate(events)
    times: defaultdict[str, float] = defaultdict(float)
    parts: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if wall is None and _line(event)[-1].name != STEP:
            continue
        spent = float(event.self_cpu_time_total if wall is None else event.self_device_time_total)
        category = _category(event, gate)
        times[category] += spent
        if category == "other":
            parts[_part(event)] += spent
    if wall is not None:
        idle = max(0.0, wall * 1e6 - sum(times.values()))
        times["other"] += idle
        parts[IDLE] += idle
    total = sum(times.values())
    shares = {name: times[name] / total for name in CATEGORIES}
    largest = sorted(parts.items(), key=lambda part: -part[1])
    return shares, {name: spent / total for name, spent in largest if spent}


def _line(event: Any) -> list[Any]:
    """The event and what it runs in, innermost first."""
    line = []
    while event is not None:
        line.append(event)
        event = event.cpu_parent
    return line


def _numbers_of_the_gate(events: Sequence[Any]) -> set[int]:
    """Autograd's numbers of the operations that the gate's forward pass recorded.

    An operation that records nothing shows the number of the next one that does; a number seen outside as well is not
    the gate's.
    """
    inside: set[int] = set()
    outside: set[int] = set()
    for event in events:
        line = _line(event)
        if event.sequence_nr >= 0 and not any(e.name.startswith("autograd::engine") for e in line):
            (inside if any(e.name == PREFIX + "gate" for e in line) else outside).add(event.sequence_nr)
    return inside - outside


def _category(event: Any, gate: set[int]) -> str:
    for e in _line(event):
        if e.name.startswith(PREFIX) and e.name != STEP:
            return str(e.name.removeprefix(PREFIX))
        if e.name.startswith("autograd::engine") and e.sequence_nr in gate:
            return "gate"
        lower = e.name.lower()
        for category, word in BY_NAME:
            if word in lower:
                return category
    return "other"


def _part(event: Any) -> str:
    if event.name == STEP:
        return PYTHON
    for e in _line(event):
        lower = e.name.lower()
        for part, word in PARTS:
            if word in lower:
                return part
    return REST
