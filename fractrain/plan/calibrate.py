"""How long a run will take on this machine, from a few steps of it on random data; nothing is stored.

The steps go through the real training loop, so that everything a step does is in its time, but for the reading of
photos from disk, which worker processes do meanwhile (:mod:`fractrain.plan.loading`): the slower sets the pace.
Where a whole batch would take too long to try (ImageNet on a CPU), fewer samples are used and the time is scaled up in
proportion; that is said.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal

import torch

from fractrain.data.images import Split
from fractrain.data.in_memory import TrainStream
from fractrain.data.info import DatasetInfo
from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.registries import Registries, Stream
from fractrain.engine.schedule import Clock
from fractrain.engine.site import Site
from fractrain.engine.summary import tensor_bytes
from fractrain.experimental.cuda_graphs import SETTLED, recorder_for
from fractrain.util.seeds import derive_seed

STEPS: Final = 2
WARM_UP: Final = 1  # the first step compiles, allocates and chooses algorithms
CPU_VALUES: Final = 32 * 3 * 32 * 32  # input values of a trial batch on a CPU: 32 CIFAR images,
CPU_SAMPLES: Final = 8  # but never fewer images: what a step takes beside them would be scaled up with them
CPU_WORDS: Final = 2 * 512  # of a text: two sequences of WikiText-103, each of which takes seconds, all else little
SLOW_S: Final = 2.0  # where the first step took longer, chance is small beside it: one more is enough


@dataclass(frozen=True)
class Trial:
    """What a few steps showed.

    Attributes:
        step_s: seconds of one training step at the full batch size.
        evaluation_s: seconds of the evaluation of one sample.
        disk_bytes: size of a checkpoint.
        parameters: of the plain model.
        samples: with which it was measured.
    """

    step_s: float
    evaluation_s: float
    disk_bytes: int
    parameters: int
    samples: int


@dataclass(frozen=True)
class RunEstimate:
    """What one run will take.

    Attributes:
        step_s: seconds of one training step at the full batch size.
        evaluation_s: seconds of one evaluation of all parts.
        iterations, evaluations: how many of each.
        disk_bytes: what the run keeps when it is done: its last checkpoint.
        trial_batch, batch: samples the time was measured with, and samples it stands for.
        load_s: seconds in which the workers read one batch; 0 for data that is held in memory, or not measured.
        evaluation_load_s: seconds in which they read what is evaluated, likewise.
        tried: ids of the runs whose steps were timed: this one, or others that are alike.
    """

    step_s: float
    evaluation_s: float
    iterations: int
    evaluations: int
    disk_bytes: int
    trial_batch: int
    batch: int
    load_s: float = 0.0
    evaluation_load_s: float = 0.0
    tried: tuple[str, ...] = ()

    @property
    def bound(self) -> Literal["step", "loading"]:
        """Which of the two sets the pace of the training."""
        return "loading" if self.load_s > self.step_s else "step"

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        step, evaluation = max(self.step_s, self.load_s), max(self.evaluation_s, self.evaluation_load_s)
        return step * self.iterations + evaluation * self.evaluations


class _RandomData:
    """Batches of random inputs and targets in a data set's shape; as many of them as the data set has."""

    def __init__(self, info: Any, batch: int, device: torch.device, total: int, augment: bool = False) -> None:
        self._length = max(1, -(-total // batch))
        generator = torch.Generator().manual_seed(derive_seed(0, "calibrate"))
        self._stream: TrainStream | None = None
        if getattr(info, "kind", "image") == "text":
            x = torch.randint(info.classes, (batch, info.shape[0]), generator=generator)
            y = torch.randint(info.classes, (batch, info.shape[0]), generator=generator)
        else:
            x = torch.randn(batch, *info.shape, generator=generator)
            y = torch.randint(info.classes, (batch,), generator=generator)
            if augment and isinstance(info, DatasetInfo) and not info.read_while_training:
                # Held in memory: cropped and mirrored within the step.
                pixels = torch.randint(256, (batch, *info.shape), generator=generator, dtype=torch.uint8)
                self._stream = TrainStream(Split(pixels, y), info, batch, 0, device)
        form = torch.channels_last if x.dim() == 4 else torch.preserve_format  # as real streams have it
        self._batch = (x.to(device, memory_format=form), y.to(device))

    def __len__(self) -> int:
        return self._length

    def batch(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same samples each time."""
        return self._batch if self._stream is None else self._stream.batch(0, 0)

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
        return _RandomData(data.info, batch_size, device, data.info.train_size, augment)

    def eval_stream(
        self, data: Any, split: str, batch_size: int, device: torch.device
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """One random batch."""
        return _RandomData(data.info, batch_size, device, data.info.test_size)


def run_trial(config: RunConfig, device: torch.device, registries: Registries | None = None) -> Trial:
    """Measure a few steps of a run and one evaluation batch.

    Args:
        config: the run; its data need not be there.
        device: where it would be trained.
    """
    known = _known(config, registries)
    info = known.dataset_info(config.dataset)
    batch = config.recipe.batch_size
    trial = _trial_batch(info, batch, device)
    recorder = recorder_for(device)
    before = WARM_UP if recorder is None else WARM_UP + SETTLED
    recipe = config.recipe.model_copy(update={"batch_size": trial, "iterations": before + STEPS, "eval_every": 0})
    small = config.model_copy(update={"recipe": recipe})
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        loop = TrainingLoop(small, Site(device=str(device)), RandomRegistries(known), recorder=recorder)
        first = [_timed(loop.advance, device) for _ in range(before)]
        times = [_timed(loop.advance, device) for _ in range(1 if max(first, default=0.0) > SLOW_S else STEPS)]
        loop.step = loop.clock.end(loop.epoch)
        evaluation = _timed(loop.advance, device)
    return Trial(
        step_s=statistics.median(times) * batch / trial, evaluation_s=evaluation / trial,
        disk_bytes=tensor_bytes(loop.state_dict()), parameters=parameters(config, registries), samples=trial,
    )  # fmt: skip


def parameters(config: RunConfig, registries: Registries | None = None) -> int:
    """Count the numbers in the plain model's parameters; it is built without memory."""
    with torch.device("meta"):
        model = _known(config, registries).model(config.model, config.dataset, 0)
    return sum(value.numel() for value in model.parameters())


def forecast(config: RunConfig, trial: Trial, count: int, images_per_s: float | None = None) -> RunEstimate:
    """Return what a run will take, from a trial of it, or of one that differs in its data set's classes or its length.

    Args:
        trial: what was measured, with the same model and batch size.
        count: parameters of the run's plain model.
        images_per_s: what the workers read; None: nothing is read while training, or it was not measured.
    """
    info = _known(config, None).dataset_info(config.dataset)  # classes and sizes of its part
    batch = config.recipe.batch_size
    trained, evaluated = _samples(info, config.recipe.val_fraction)
    clock = Clock.from_recipe(config.recipe, max(1, -(-trained // batch)))
    return RunEstimate(
        step_s=trial.step_s,
        evaluation_s=trial.evaluation_s * evaluated,
        iterations=clock.total,
        evaluations=clock.periods,
        # Another number of classes makes another last layer; all else that a checkpoint holds goes with the parameters.
        disk_bytes=round(trial.disk_bytes * count / trial.parameters),
        trial_batch=trial.samples,
        batch=batch,
        load_s=batch / images_per_s if images_per_s else 0.0,
        evaluation_load_s=evaluated / images_per_s if images_per_s else 0.0,
        tried=(config.run_id,),
    )


def _known(config: RunConfig, registries: Registries | None) -> Registries:
    return (registries or Registries()).for_setting(config.setting, config.seed)


def _trial_batch(info: Any, batch: int, device: torch.device) -> int:
    if device.type != "cpu":
        return batch
    if getattr(info, "kind", "image") == "text":
        return min(batch, max(1, CPU_WORDS // int(info.shape[0])))
    return min(batch, max(CPU_SAMPLES, CPU_VALUES // math.prod(map(int, info.shape))))


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
