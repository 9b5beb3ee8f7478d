"""The real methods, data and loop on a ResNet of eight layers and few images to evaluate on.

What is tested depends on neither; time does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fractrain.engine.registries import Registries
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.util.seeds import derive_seed

RESNET8 = f"{Path(__file__).parents[2]}/benchmarks/faults/resnet8.py:resnet8"  # the same, as a name of --model


class SmallRegistries(Registries):
    """Every model is a ResNet-8, and every test set has 32 images."""

    def model(self, name: str, dataset: str, seed: int) -> nn.Module:
        info = self.dataset_info(dataset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            return ResNetCifar(1, info.classes, channels=info.shape[0])

    def data(self, name: str, data_dir: Path | None, download: bool, val_fraction: float, seed: int) -> Any:
        data = super().data(name, data_dir, download, val_fraction, seed)
        return replace(data, test=data.test.take(np.arange(32)))
