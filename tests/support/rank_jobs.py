"""Run jobs on one rank of several: ``python rank_jobs.py jobs.json`` with torchrun's variables set.

Each job is a config, a store and what to do with it; rank 0 writes summaries, every rank how its jobs ended.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import image_folders
import pytest
import torch
from torch import nn

from fractrain.data.tokens import MemoryTokens
from fractrain.distributed.batch_norm import replace_norms
from fractrain.distributed.ranks import Ranks, connect
from fractrain.engine import environment
from fractrain.engine import loop as loop_module
from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.registries import Registries
from fractrain.engine.site import Site
from fractrain.engine.trainer import Trainer
from fractrain.models.transformer import TransformerLM
from fractrain.util.errors import DataError, FractrainError
from fractrain.util.seeds import derive_seed


class Block(nn.Module):
    """Residual block with an attribute that slu knows as its shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class Small(nn.Module):
    def __init__(self, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.drop(self.blocks(self.bn(self.stem(x)).relu()).mean((2, 3))))
        return y

    def gateable_blocks(self) -> list[str]:
        return ["blocks.0", "blocks.1"]


class SmallModels(Registries):
    """The package's methods and data; a small model, and a data set of 50 images cut from digits, or 40 of 64 words."""

    def mismatch(self, model: str, dataset: str) -> str | None:
        return None

    def model(self, name: str, dataset: str, seed: int) -> nn.Module:
        info = self.dataset_info(dataset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            if info.kind == "text":
                return TransformerLM(info.classes, 2, 16, 32, 2, 0.0)
            if name.startswith("resnet"):
                return super().model(name, dataset, seed)
            return Small(info.classes, 0.3 if name == "dropout" else 0.0)

    def data(self, name: str, data_dir: Path | None, download: bool, val_fraction: float, seed: int) -> Any:
        import numpy as np

        if self.dataset_info(name).kind == "text":
            return text()
        data = super().data(name, data_dir, download, val_fraction, seed)
        if not self.dataset_info(name).embedded:
            return data
        return replace(data, train=data.train.take(np.arange(50)), test=data.test.take(np.arange(90)))


@functools.cache
def text() -> Any:
    """40 sequences to train on, 4 to validate and 4 to test; made once, which takes seconds."""
    data = Registries().data("docs_text", None, False, 0.0, 0)
    words = {"train": 41 * 64, "val": 5 * 64, "test": 5 * 64}
    return replace(data, **{part: MemoryTokens(getattr(data, part).array[:n]) for part, n in words.items()})


def config_of(job: dict[str, Any]) -> RunConfig:
    recipe = {"batch_size": 16, "eval_every": 3, "iterations": 5, "val_fraction": 0.0, **job.get("recipe", {})}
    return RunConfig.create(
        method=job["method"], model=job.get("model", "small"), dataset=job.get("dataset", "digits"),
        seed=job.get("seed", 0), settings=job.get("settings", {}), recipe=recipe, registries=SmallModels(),
    )  # fmt: skip


def do(job: dict[str, Any], ranks: Ranks | None = None) -> dict[str, Any]:
    """Run a job; with ``stop``, only so many steps; with ``differ``, rank 1 has another seed, data, weights or trouble.

    With ``same_norms``, batch norm is computed as on several ranks also on one. ``images`` says what the registry is to
    know of a data set of images (name, size, classes, train, test) below ``data_dir``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "packages", dict)  # these two take longer than a job's steps
        patch.setattr(environment, "source_revision", lambda: None)
        patch.setenv("FRACTRAIN_WORKERS", "0")
        patch.setenv("FRACTRAIN_BAD_IMAGES", job.get("bad_images", "stop"))
        if "images" in job:
            image_folders.install(patch, image_folders.entry(**job["images"]))
        config, known = config_of(job), SmallModels()
        if ranks is not None and not ranks.is_main and "differ" in job:
            config = _differ(patch, job, config, known)
        if job.get("same_norms"):
            patch.setattr(loop_module, "synchronise_norms", replace_norms)
        stop = job.get("stop")
        if stop is not None:
            _before_each_step(patch, lambda loop: _interrupt(loop.step == stop))
        try:
            site = Site(job["store"], "cpu", job.get("data_dir"), checkpoint_seconds=60 if stop is None else 0)
            trainer = Trainer(config, site, registries=known, ranks=ranks)
            record = trainer.run()
            return {"summary": record.summary, "metrics": record.metrics()}
        except FractrainError as error:
            return {"error": str(error), "code": error.exit_code}


def _differ(patch: pytest.MonkeyPatch, job: dict[str, Any], config: RunConfig, known: SmallModels) -> RunConfig:
    """Give this rank what the other one does not have; return its config."""
    load, kind = known.data, job["differ"]
    if kind == "seed":
        return config_of({**job, "seed": 1})
    if kind == "data":
        patch.setattr(known, "data", lambda *arguments: _with_other_test(load(*arguments)))
    elif kind == "weights":
        _before_each_step(patch, _move_weights)
    elif kind == "missing":
        patch.setattr(known, "data", _missing)
    elif kind == "evaluation":
        patch.setattr(SmallModels, "eval_stream", lambda *arguments: Breaks())
    return config


def _with_other_test(data: Any) -> Any:
    return replace(data, test=data.train)


def _missing(*arguments: Any) -> Any:
    raise DataError("no data here")


class Breaks:
    """Evaluation batches that cannot be read."""

    def __iter__(self) -> Iterator[Any]:
        raise DataError("photo.jpg cannot be decoded")


def _move_weights(loop: TrainingLoop) -> None:
    if loop.step == 1:
        with torch.no_grad():
            loop.model.get_parameter("head.bias").add_(1.0)


def _interrupt(now: bool) -> None:
    if now:
        raise KeyboardInterrupt


def _before_each_step(patch: pytest.MonkeyPatch, action: Callable[[TrainingLoop], None]) -> None:
    real = TrainingLoop.advance

    def advance(loop: TrainingLoop) -> None:
        action(loop)
        real(loop)

    patch.setattr(TrainingLoop, "advance", advance)


def main(path: str) -> None:
    torch.set_num_threads(1)
    with connect("cpu") as ranks:
        ends = [do(job, ranks) for job in json.loads(Path(path).read_text())]
    Path(f"{path}.{os.environ['RANK']}").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(sys.argv[1])
