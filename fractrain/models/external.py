"""Models from elsewhere by name: ``torchvision:resnet50``, ``timm:NAME``, ``FILE.py:factory``.

A factory in a file is called with the number of classes and the input shape ``(C, H, W)`` and returns the plain FP32
model. Which parts of it are blocks that gated methods may choose for, see :mod:`fractrain.methods.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fractrain.models.info import ModelInfo
from fractrain.util.errors import ConfigError, MachineError, PluginError, did_you_mean, typed_line
from fractrain.util.registry import Origin, import_file, line_of

MIN_SIZE = 32  # pixels; what torchvision's models divide height and width by


def outside_model(name: str) -> ModelInfo | None:
    """Return the model for a name with a prefix, or None where the prefix is unknown; nothing is built yet."""
    prefix, _, rest = name.rpartition(":")
    if prefix.endswith(".py"):
        return _info(name, f"{rest} of {Path(prefix).name}", prefix, 1, _from_file(prefix, rest))
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision":
        return _info(name, f"{rest} of torchvision", "torchvision", MIN_SIZE, _from_torchvision(rest))
    if prefix == "timm":
        return _info(name, f"{rest} of timm", "timm (pytorch-image-models)", MIN_SIZE, _from_timm(rest))
    return None


def _info(name: str, title: str, source: str, size: int, factory: Callable[[int, tuple[int, ...]], Any]) -> ModelInfo:
    return ModelInfo(name, title, f"{title}, trained from scratch", source, "image", size, 0, {}, {}, factory)


def _from_torchvision(model: str) -> Callable[[int, tuple[int, ...]], Any]:
    def make(classes: int, shape: tuple[int, ...]) -> Any:
        from torchvision import models

        if model not in (known := models.list_models(module=models)):
            raise ConfigError(f"torchvision has no classification model {model!r}{did_you_mean(model, known)}")
        _three_channels(f"torchvision:{model}", shape)
        return models.get_model(model, weights=None, num_classes=classes)

    return make


def _from_timm(model: str) -> Callable[[int, tuple[int, ...]], Any]:
    def make(classes: int, shape: tuple[int, ...]) -> Any:
        try:
            import timm
        except ImportError as error:
            raise MachineError(f"timm:{model} needs timm ({error}); mend with `pip install timm`") from error
        if not timm.is_model(model):
            raise ConfigError(f"timm has no model {model!r}{did_you_mean(model, timm.list_models())}")
        return timm.create_model(model, pretrained=False, num_classes=classes, in_chans=shape[0])

    return make


def _from_file(file: str, factory: str) -> Callable[[int, tuple[int, ...]], Any]:
    def make(classes: int, shape: tuple[int, ...]) -> Any:
        from torch import nn

        path = Path(file).resolve()
        origin = Origin("file", str(path))
        try:
            function = getattr(import_file(path.stem, path), factory)
            model = function(classes, shape)
        except Exception as problem:  # whatever somebody's file raises
            where = f"{file}:{factory} ({line_of(origin, problem)})"
            raise PluginError(f"model {where}: {typed_line(problem)}") from problem
        if not isinstance(model, nn.Module):
            raise PluginError(f"model {file}:{factory} returned {type(model).__name__}, expected a torch.nn.Module")
        return model

    return make


def _three_channels(name: str, shape: tuple[int, ...]) -> None:
    if shape[0] != 3:
        raise ConfigError(f"{name} takes images of 3 channels, not {shape[0]}")
