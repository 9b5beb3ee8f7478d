"""The real methods, data and loop on a ResNet of eight layers: what is tested does not depend on depth, time does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fractrain.engine.registries import Registries
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.util.seeds import derive_seed

RESNET8 = f"{Path(__file__).parents[2]}/benchmarks/faults/resnet8.py:resnet8"  # the same, as a name of --model


class SmallRegistries(Registries):
    """Every model is a ResNet-8."""

    def model(self, name: str, dataset: str, seed: int) -> nn.Module:
        info = self.dataset_info(dataset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            return ResNetCifar(1, info.classes, channels=info.shape[0])
