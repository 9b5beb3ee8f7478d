"""Paired, interleaved timing, and how the numbers are put together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Tick = Callable[[], None]


@dataclass(frozen=True)
class Measurement:
    """What was measured of one path.

    Attributes:
        ratios: one per round (to the baseline, or a share).
        path, base: amounts of the path and of the baseline, one per round: seconds or bytes.
        contiguous: seconds of the baseline in contiguous memory in the same rounds, where that is of interest.
        unit: of these amounts.
        note: how, where it is not the same every time.
        missing: why there is nothing; empty where there is.
        kept: bytes that autograd holds for backward in a step of the path and of the baseline; None: not measured.
        kept_per_element: bytes kept of a quantized activation, per element; None: none is.
    """

    ratios: Sequence[float] = ()
    path: Sequence[float] = ()
    base: Sequence[float] = ()
    contiguous: Sequence[float] = ()
    unit: str = "s"
    note: str = ""
    missing: str = ""
    kept: tuple[int, int] | None = None
    kept_per_element: float | None = None


def ratios(path: Sequence[float], base: Sequence[float]) -> list[float]:
    """Ratio of each round."""
    return [p / b for p, b in zip(path, base, strict=True)]


def median(values: Sequence[float]) -> float | None:
    """Median, or None of nothing."""
    return statistics.median(values) if values else None


def quartiles(values: Sequence[float]) -> list[float] | None:
    """First and third quartile, linear between the values (one value is both); None of nothing."""
    if not values:
        return None
    if len(values) == 1:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def seconds_of(call: Call, device: torch.device) -> float:
    """Wall-clock seconds of one call; on a GPU from an idle device until its last kernel has ended."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def paired(
    path: Call, base: Call, device: torch.device, repeats: int, tick: Tick, warmup: int = 2, inner: int = 1
) -> tuple[list[float], list[float]]:
    """:func:`interleaved` for two: seconds of ``path`` and of ``base``, one per round."""
    times = interleaved((path, base), device, repeats, tick, warmup, inner)
    return times[0], times[1]


def interleaved(
    calls: Sequence[Call], device: torch.device, repeats: int, tick: Tick, warmup: int = 2, inner: int = 1
) -> list[list[float]]:
    """Time calls in turn, their order reversed every other round.

    Args:
        repeats: rounds that count.
        tick: called after every round.
        warmup: rounds before them that do not.
        inner: calls per timing, for calls that are short; each time returned is that of one call.

    Returns:
        Seconds of each, one per round.
    """
    times: list[list[float]] = [[] for _ in calls]
    order = list(zip(calls, times, strict=True))
    for i in range(-warmup, repeats):
        for call, own in order if i % 2 else reversed(order):
            spent = seconds_of(lambda call=call: [call() for _ in range(inner)], device)  # type: ignore[misc]
            if i >= 0:
                own.append(spent / inner)
        tick()
    return times


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch with so many threads inside the block (the compiled kernels take torch's number)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
