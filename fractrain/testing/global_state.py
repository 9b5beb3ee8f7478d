"""What a method could change around itself: generators, torch's settings, the environment, other people's modules."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as nn_module

from fractrain.layers.conv_linear import QuantConv2d, QuantLayer, QuantLinear
from fractrain.testing.subject import digest

PATCHABLE: tuple[Any, ...] = (
    torch, functional, torch.Tensor, nn.Module, nn.Conv2d, nn.Linear, nn.BatchNorm2d, QuantLayer, QuantConv2d,
    QuantLinear,
)  # fmt: skip


def generator_state() -> dict[str, str]:
    """Digest of every global random generator."""
    numpy = np.random.get_state(legacy=True)
    return {
        "torch's generator": digest(torch.get_rng_state()),
        "Python's generator": digest(random.getstate()),
        "NumPy's generator": digest([part.tolist() if isinstance(part, np.ndarray) else part for part in numpy]),
    }


def _settings() -> dict[str, Any]:
    """Settings of the process that many share."""
    hooks = [getattr(nn_module, name, {}) for name in dir(nn_module) if name.startswith("_global_")]
    return {
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
        "gradient mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cuDNN flags": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "anomaly detection": torch.is_anomaly_enabled(),
        "global module hooks": sum(len(h) for h in hooks if hasattr(h, "__len__")),
        "current folder": os.getcwd(),
        "module search path": tuple(sys.path),
        "Python's generator": generator_state()["Python's generator"],
        "NumPy's generator": generator_state()["NumPy's generator"],
    }


@dataclass(frozen=True)
class GlobalState:
    """A snapshot; see :meth:`capture` and :meth:`changes`."""

    settings: dict[str, Any]
    environment: dict[str, str]
    modules: dict[str, int]
    attributes: dict[tuple[int, str], int]
    held: tuple[Any, ...]  # keeps what is compared by id alive

    @classmethod
    def capture(cls) -> GlobalState:
        """Take a snapshot."""
        modules = dict(sys.modules)
        values = {(i, name): value for i, owner in enumerate(PATCHABLE) for name, value in vars(owner).items()}
        return cls(
            _settings(), dict(os.environ), {name: id(module) for name, module in modules.items()},
            {key: id(value) for key, value in values.items()}, (modules, values),
        )  # fmt: skip

    def changes(self) -> list[str]:
        """What is different now."""
        now = GlobalState.capture()
        found = [name for name, value in self.settings.items() if now.settings[name] != value]
        for name in sorted(self.environment.keys() | now.environment.keys()):
            if self.environment.get(name) != now.environment.get(name):
                found.append(f"environment variable {name}")
        found += [
            f"module {name} replaced"
            for name, module in self.modules.items()
            if name in now.modules and now.modules[name] != module
        ]
        for (owner, name), value in self.attributes.items():  # what is new there came with some import
            if now.attributes.get((owner, name), value) != value:
                found.append(f"{getattr(PATCHABLE[owner], '__name__', owner)}.{name} patched")
        return found
