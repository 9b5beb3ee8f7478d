"""The models by name. Importing this does not import torch: listing stays fast.

Besides registry names there are names for models from elsewhere: ``torchvision:resnet50``, ``timm:NAME`` and
``FILE.py:factory``. A factory in a file is called with the number of classes and the input shape ``(C, H, W)`` and
returns the plain FP32 model. Which parts of it are blocks that gated methods may choose for, see
:mod:`fractrain.methods.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fractrain.models.info import DatasetLike, ModelInfo
from fractrain.models.specs import MODELS
from fractrain.util.errors import ConfigError, PluginError, did_you_mean, needed, typed_line
from fractrain.util.registry import Origin, Registry, import_file, line_of

if TYPE_CHECKING:
    from torch import nn


class ModelRegistry(Registry[ModelInfo]):
    """Lazily loaded models."""

    noun, plural = "model", "models"

    def builtin(self) -> Mapping[str, Origin]:
        """Those of the papers, and their families."""
        return {model.name: Origin("module", "fractrain.models.specs") for model in MODELS}

    def base(self) -> type:
        """Entries are instances."""
        return ModelInfo

    def external(self, name: str) -> ModelInfo | None:
        """Models of torchvision and timm, and factories in files."""
        return outside_model(name)

    def names(self) -> list[str]:
        """In the order of the table of models, then plugins."""
        order = [model.name for model in MODELS]
        return sorted(self.origins, key=lambda n: (order.index(n) if n in order else len(order), n))


def names() -> list[str]:
    """Registry names."""
    return ModelRegistry.shared().names()


def info(name: str) -> ModelInfo:
    """Return what is known of a model.

    Raises:
        ConfigError: no model has that name.
    """
    return ModelRegistry.shared().get(name)


def compatible(name: str, dataset: DatasetLike) -> str | None:
    """Return why the model cannot be trained on the data set, or None when it can."""
    model = info(name)
    shape = tuple(getattr(dataset, "shape", ()) or ())
    if model.input == "image" and len(shape) != 3:
        return f"{name} takes images, {dataset.name} has none"
    if model.input == "tokens" and len(shape) != 1:
        return f"{name} takes text, {dataset.name} has none"
    if model.input == "tokens":
        return None if shape[0] >= model.min_size else f"{dataset.name} has sequences without words"
    if min(shape[1:]) < model.min_size:
        least = f"{model.min_size}x{model.min_size}"
        return f"{name} needs images of at least {least}, {dataset.name} has {shape[1]}x{shape[2]}"
    return None


def build(name: str, classes: int, shape: Sequence[int], seed: int = 0) -> nn.Module:
    """Build a model with weights that are a function of the seed; torch's global generator is left as it was.

    Args:
        name: registry name.
        classes: number of outputs, or words of the vocabulary.
        shape: input shape ``(C, H, W)``, or ``(T,)`` of word numbers.
        seed: the run's seed.
    """
    import torch

    from fractrain.util.seeds import derive_seed

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        model: nn.Module = info(name).factory(classes, tuple(shape))
    return model


# -- models from elsewhere ---------------------------------------------------------------------------------------------


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
        with needed(f"timm:{model} needs timm ({{}}); mend with `pip install timm`"):
            import timm
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
