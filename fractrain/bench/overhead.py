"""What the harness adds to a step: the real training loop, with a clock around what is training proper.

Whatever a step of :class:`~fractrain.engine.loop.TrainingLoop` spends outside forward, backward and optimizer counts
(hooks, cost term, learning rate, loss watch, sums, progress), and inside the forward pass the layers' reports to the
ledger. Data is synthetic and lies on the device: loading is not part of it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fractrain.bench.catalog import TYPICAL
from fractrain.bench.subject import Setup, force_choices
from fractrain.bench.timing import Measurement, Tick, ratios
from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.registries import Registries
from fractrain.engine.site import Site
from fractrain.plan.calibrate import RandomRegistries
from fractrain.util.progress import make_progress

WARMUP = 2
DATASET = "cifar10"  # only its number of classes and its recipe: nothing is read
REPORTS = ("report", "_count")  # of layers and gated blocks to the ledger


class Stopwatch:
    """Adds up the time spent inside wrapped calls; calls inside calls count once.

    Attributes:
        seconds: so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device, self._depth = device, 0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``call`` with the clock around it."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return call(*args, **kwargs)
            self._depth = 1
            start = time.perf_counter()
            try:
                result = call(*args, **kwargs)
                if self._device.type == "cuda":  # what was started here must end here
                    torch.cuda.synchronize(self._device)
                return result
            finally:
                self._depth = 0
                self.seconds += time.perf_counter() - start

        return timed


def harness_overhead(setup: Setup, tick: Tick) -> Measurement:
    """Seconds per step outside training proper, and of whole steps."""
    training, reports = Stopwatch(setup.device), Stopwatch(torch.device("cpu"))
    outside, whole = [], []
    with torch.random.fork_rng(devices=[]), _timed_backward(training):
        loop = _loop(setup)
        check = force_choices(loop.model, TYPICAL)
        _time_parts(loop, training, reports)
        progress = make_progress("line", stream=io.StringIO())
        progress.start("bench", loop.clock.total)
        for i in range(WARMUP + setup.repeats):
            training.seconds = reports.seconds = 0.0
            start = time.perf_counter()
            loop.advance()
            progress.update(loop.step, loop.watch.last)
            spent = time.perf_counter() - start
            if i >= WARMUP:
                whole.append(spent)
                outside.append(spent - training.seconds + reports.seconds)
            tick()
        check()
    return Measurement(ratios(outside, whole), outside, whole)


@contextmanager
def _timed_backward(clock: Stopwatch) -> Any:
    """Put the clock around every backward pass."""
    backward = torch.Tensor.backward
    torch.Tensor.backward = clock.around(backward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def _time_parts(loop: TrainingLoop, training: Stopwatch, reports: Stopwatch) -> None:
    """Put the clocks around the model with its loss, the optimizer, and the reports to the ledger."""
    task: Any = loop.task
    loop.task = _TimedTask(task, training.around(task.step))  # type: ignore[assignment]
    optimizer: Any = loop.optimizer
    for name in ("step", "zero_grad"):
        setattr(optimizer, name, training.around(getattr(optimizer, name)))
    for module in loop.model.modules():
        for name in REPORTS:
            if hasattr(module, name):
                setattr(module, name, reports.around(getattr(module, name)))


class _TimedTask:
    """A task whose training step is timed; all else is the task's."""

    def __init__(self, task: Any, step: Callable[..., Any]) -> None:
        self._task, self.step = task, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def _loop(setup: Setup) -> TrainingLoop:
    """The training loop on synthetic data; no epoch ends while it is timed."""
    known = _Synthetic(setup)
    recipe = {**setup.recipe().model_dump(), "iterations": WARMUP + setup.repeats + 1, "augment": False}
    config = RunConfig.create(
        method="fractrain", model=setup.model, dataset=DATASET, profile="smoke", recipe=recipe, registries=known
    )
    return TrainingLoop(config, Site(device=str(setup.device), kernels=setup.kernels), known)


class _Synthetic(RandomRegistries):
    """Random data of the bench's size, as much of it as is trained on."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(Registries())
        self._setup = setup

    def dataset_info(self, name: str) -> Any:
        size, steps = self._setup.size, WARMUP + self._setup.repeats + 1
        return replace(super().dataset_info(name), shape=(3, size, size), train_size=steps * self._setup.batch)

    def model(self, name: str, dataset: str, seed: int) -> nn.Module:
        return self._setup.plain()
