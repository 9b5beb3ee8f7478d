"""How each path of the catalog is measured, one function per name, and all of them in one order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from fractrain.bench import other_libraries
from fractrain.bench.catalog import FORMATS, PATHS, PEERS, PathInfo, info
from fractrain.bench.memory import memory_fractrain
from fractrain.bench.overhead import harness_overhead
from fractrain.bench.step_profile import StepProfile, profile_step
from fractrain.bench.subject import MethodStep, PlainStep, Setup
from fractrain.bench.timing import Measurement, Tick, interleaved, median, paired, ratios, seconds_of, threads
from fractrain.layers.conv_linear import QuantConv2d
from fractrain.layers.kept import kept_bytes, kept_per_element
from fractrain.layers.state import QuantState
from fractrain.numerics.precision import fractrain_precision
from fractrain.util.progress import Progress

WARMUP = 2
ERROR_CHANNELS = 16
QUANTIZE_INNER = 10  # calls per timing: one takes less than a millisecond


def rounds(name: str, repeats: int) -> int:
    """How often a path calls its ``tick``, for the time left."""
    return repeats + (0 if name == "memory_fractrain" else WARMUP)


def _against_fp32(setup: Setup, step: MethodStep, tick: Tick) -> Measurement:
    plain = (PlainStep(setup), PlainStep(setup, torch.contiguous_format))
    path, base, contiguous = interleaved((step, *plain), setup.device, setup.repeats, tick, WARMUP)
    step.check()
    kept = (kept_bytes(step, step.model), kept_bytes(plain[0], plain[0].model))
    return Measurement(
        ratios(path, base), path, base, contiguous, kept=kept, kept_per_element=kept_per_element(step, step.model)
    )


def _fp32_contiguous(setup: Setup, tick: Tick) -> Measurement:
    step = PlainStep(setup, torch.contiguous_format)
    path, base = paired(step, PlainStep(setup), setup.device, setup.repeats, tick, WARMUP)
    return Measurement(ratios(path, base), path, base)


def _quantize_stochastic(setup: Setup, tick: Tick) -> Measurement:
    """The layers' own call on an error tensor, against a read and a copy at memory speed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(setup.batch, ERROR_CHANNELS, setup.size, setup.size, generator=generator)
    x = x.to(setup.device, memory_format=torch.channels_last)
    target = torch.empty_like(x)
    conv = nn.Conv2d(ERROR_CHANNELS, ERROR_CHANNELS, 3, padding=1)
    layer = QuantConv2d(conv, fractrain_precision(8, 8, 8), QuantState(kernels=setup.kernels)).to(setup.device)
    operand = layer.precision.eb_e
    # Which reduction torch has fastest differs by version and machine (aminmax is far from memory speed on CPUs).
    reads: dict[str, Callable[[], torch.Tensor]] = {"amax": x.amax, "amin": x.amin, "sum": x.sum}
    times = {name: [seconds_of(read, setup.device) for _ in range(QUANTIZE_INNER)] for name, read in reads.items()}
    fastest = min(times, key=lambda name: median(times[name]) or 0.0)

    def floor() -> None:
        reads[fastest]()
        target.copy_(x)

    path, base = paired(
        lambda: layer.error_operand(x, operand, "E"), floor, setup.device, setup.repeats, tick, WARMUP, QUANTIZE_INNER
    )
    return Measurement(ratios(path, base), path, base, note=f"read: {fastest}; {x.nbytes / 2**20:.1f} MiB")


def _row(name: str) -> Callable[[Setup, Tick], Measurement]:
    """How a row is measured about which the catalog says all."""
    row = info(name)

    def measure(setup: Setup, tick: Tick) -> Measurement:
        count = row.threads or setup.threads
        own = replace(setup, batch=min(setup.batch, row.batch or setup.batch), threads=count)
        with threads(count):
            if row.method:
                return _against_fp32(own, MethodStep(own, row.method, row.settings, row.candidates), tick)
            return other_libraries.measure_library(name, own, tick, WARMUP)

    return measure


MEASURES: Mapping[str, Callable[[Setup, Tick], Measurement]] = {
    **{path.name: _row(path.name) for path in (*PATHS, *FORMATS, *PEERS)}, "fp32_contiguous": _fp32_contiguous,
    "quantize_stochastic": _quantize_stochastic, "memory_fractrain": memory_fractrain,
    "harness_overhead": harness_overhead,
}  # fmt: skip
VIEW_TICKS = 2


@dataclass(frozen=True)
class Measurements:
    """Results in the order asked for."""

    paths: list[tuple[PathInfo, Measurement]]
    views: list[StepProfile]


def run(setup: Setup, paths: Sequence[str], views: Sequence[str], progress: Progress) -> Measurements:
    """Measure.

    Args:
        paths: names of the catalog.
        views: registry names of the methods whose step is taken apart.
        progress: told about every round.

    Raises:
        FractrainError: a model or method that there is not, or that does not fit.
    """
    found = Measurements([], [])
    done, label = 0, ""

    def tick() -> None:
        nonlocal done
        done += 1
        progress.update(done, label=label)

    with threads(setup.threads):
        progress.start("bench", sum(rounds(p, setup.repeats) for p in paths) + VIEW_TICKS * len(views))
        try:
            for name in paths:
                label, before = name, done
                progress.update(done, label=label)
                found.paths.append((info(name), MEASURES[name](setup, tick)))
                done = before + rounds(name, setup.repeats)  # also where there was nothing to measure
            for method in views:
                label = f"where the time of {method} goes"
                found.views.append(profile_step(setup, method, tick))
        finally:
            progress.close()
    return found
