"""How long a run will take on this machine, from a few steps of it on random data; nothing is stored.

The steps go through the real training loop, so that everything a step does is in its time. Where a whole batch would
take too long to try (ImageNet on a CPU), fewer samples are used and the time is scaled up in proportion; that is said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch

from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.recording import SETTLED, recorder_for
from fractrain.engine.registries import Registries, Stream
from fractrain.engine.schedule import Clock
from fractrain.seeds import derive_seed

STEPS: Final = 2
WARM_UP: Final = 1  # the first step compiles, allocates and chooses algorithms
CPU_VALUES: Final = 32 * 3 * 32 * 32  # input values of a trial batch on a CPU: 32 CIFAR images,
CPU_SAMPLES: Final = 8  # but never fewer samples: what a step takes beside them would be scaled up with them


@dataclass(frozen=True)
class Estimate:
    """What one run will take.

    Attributes:
        step_s: seconds of one training step at the full batch size.
        evaluation_s: seconds of one evaluation of all parts.
        iterations, evaluations: how many of each.
        disk_bytes: what the run keeps when it is done: its last checkpoint.
        trial_batch, batch: samples the time was measured with, and samples it stands for.
    """

    step_s: float
    evaluation_s: float
    iterations: int
    evaluations: int
    disk_bytes: int
    trial_batch: int
    batch: int

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self.step_s * self.iterations + self.evaluation_s * self.evaluations


class _RandomData:
    """Batches of random inputs and targets in a data set's shape; as many of them as the data set has."""

    def __init__(self, info: Any, batch: int, device: torch.device, total: int) -> None:
        self._length = max(1, -(-total // batch))
        generator = torch.Generator().manual_seed(derive_seed(0, "calibrate"))
        if getattr(info, "kind", "image") == "text":
            x = torch.randint(info.classes, (batch, info.shape[0]), generator=generator)
            y = torch.randint(info.classes, (batch, info.shape[0]), generator=generator)
        else:
            x = torch.randn(batch, *info.shape, generator=generator)
            y = torch.randint(info.classes, (batch,), generator=generator)
        self._batch = (x.to(device), y.to(device))

    def __len__(self) -> int:
        return self._length

    def batch(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same batch each time."""
        return self._batch

    def __iter__(self) -> Any:
        yield self._batch


class RandomRegistries(Registries):
    """The real methods and models of ``known`` on random data."""

    def __init__(self, known: Registries) -> None:
        self._known = known

    def dataset_info(self, name: str) -> Any:
        """As known."""
        return self._known.dataset_info(name)

    def model(self, name: str, dataset: str, seed: int) -> torch.nn.Module:
        """As known."""
        return self._known.model(name, dataset, seed)

    def method(self, name: str, settings: Any) -> Any:
        """As known."""
        return self._known.method(name, settings)

    def forward_macs(self, model: torch.nn.Module, dataset: str) -> int:
        """As known."""
        return self._known.forward_macs(model, dataset)

    def data(self, name: str, data_dir: Path | None, download: bool, val_fraction: float, seed: int) -> Any:
        """Nothing is loaded."""
        return SimpleNamespace(info=self.dataset_info(name), val=None, digest="random")

    def train_stream(self, data: Any, batch_size: int, seed: int, device: torch.device, augment: bool) -> Stream:
        """Random batches."""
        return _RandomData(data.info, batch_size, device, data.info.train_size)

    def eval_stream(
        self, data: Any, split: str, batch_size: int, device: torch.device
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """One random batch."""
        return _RandomData(data.info, batch_size, device, data.info.test_size)


def estimate(config: RunConfig, device: torch.device, registries: Registries | None = None) -> Estimate:
    """Measure a few steps of a run and one evaluation batch; return what the whole run will take.

    Args:
        config: the run; its data need not be there.
        device: where it would be trained.
        registries: where names are looked up.
    """
    known = (registries or Registries()).for_setting(config.setting, config.seed)  # classes and sizes of its part
    info = known.dataset_info(config.dataset)
    text = getattr(info, "kind", "image") == "text"
    batch = config.recipe.batch_size
    values = 16 * info.shape[0] if text else info.shape[0] * info.shape[1] * info.shape[2]
    trial = batch if device.type != "cpu" else min(batch, max(CPU_SAMPLES, CPU_VALUES // values))
    recorder = recorder_for(device)
    before = WARM_UP if recorder is None else WARM_UP + SETTLED
    recipe = config.recipe.model_copy(update={"batch_size": trial, "iterations": before + STEPS, "eval_every": 0})
    small = config.model_copy(update={"recipe": recipe})
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        loop = TrainingLoop(
            small, device, None, False, RandomRegistries(known), lambda line: None, lambda: False, recorder=recorder
        )
        times = [_timed(loop.advance, device) for _ in range(before + STEPS)][before:]
        loop.step = loop.clock.end(loop.epoch)
        evaluation = _timed(loop.advance, device)
    trained, evaluated = _samples(info, config.recipe.val_fraction)
    clock = Clock.of(config.recipe, max(1, -(-trained // batch)))
    return Estimate(
        step_s=statistics.median(times) * batch / trial,
        evaluation_s=evaluation / trial * evaluated,
        iterations=clock.total,
        evaluations=clock.periods,
        disk_bytes=_bytes(loop.state_dict()),
        trial_batch=trial,
        batch=batch,
    )


def _samples(info: Any, val_fraction: float) -> tuple[int, int]:
    """Images or sequences of the training part, and of the validation and test parts together."""
    if getattr(info, "kind", "image") != "text":
        held_back = round(info.train_size * val_fraction)
        return info.train_size - held_back, info.test_size + held_back
    context, stride = info.shape[0], info.stride or info.shape[0]
    windows = [1 + max(0, -(-(words - 1 - context) // stride)) for words in (info.val_size, info.test_size) if words]
    return (info.train_size - context) // context, sum(windows)


def _timed(call: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_bytes(v) for v in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes(v) for v in value)
    return 0
