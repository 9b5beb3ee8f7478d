"""The models by name. Importing this does not import torch: listing stays fast.

Besides registry names there are names for models from elsewhere, see :mod:`fractrain.models.external`:
``torchvision:resnet50``, ``timm:NAME`` and ``FILE.py:factory``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fractrain.models.external import outside_model
from fractrain.models.info import DatasetLike, ModelInfo
from fractrain.models.specs import MODELS
from fractrain.util.registry import Origin, Registry

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
