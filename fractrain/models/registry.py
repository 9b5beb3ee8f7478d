"""The models by name. Importing this does not import torch: listing stays fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fractrain.util.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import nn


class DatasetLike(Protocol):
    """What a model must know of a data set to say whether it fits."""

    name: str
    classes: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelInfo:
    """One model.

    Attributes:
        name: registry name.
        title: name in print.
        description: one line.
        source: paper.
        input: what it takes: ``image``, or ``tokens`` (word numbers).
        min_size: smallest image height and width, or length of a sequence.
        blocks: number of gateable blocks.
        forward_macs: exact MACs per sample, by data set name (of the data sets of the papers); a language model's
            sample is a sequence of 512 words, and the MACs are those of its layers.
        parameters: trainable parameters, by data set name.
        version: raised when the same seed gives other weights or another network: it is part of the run id.
    """

    name: str
    title: str
    description: str
    source: str
    input: str
    min_size: int
    blocks: int
    forward_macs: dict[str, int]
    parameters: dict[str, int]
    factory: Callable[[int, tuple[int, ...]], Any]
    version: int = 1


def _resnet(n: int) -> Callable[[int, tuple[int, ...]], Any]:
    def make(classes: int, shape: tuple[int, ...]) -> Any:
        from fractrain.models.resnet_cifar import ResNetCifar

        return ResNetCifar(n, classes, channels=shape[0])

    return make


def _mobilenet_v2(classes: int, shape: tuple[int, ...]) -> Any:
    from fractrain.models.mobilenet_v2 import MobileNetV2

    return MobileNetV2(classes, channels=shape[0])


def _resnet_imagenet(depth: int) -> Callable[[int, tuple[int, ...]], Any]:
    def make(classes: int, shape: tuple[int, ...]) -> Any:
        from fractrain.models.resnet_imagenet import ResNetImageNet

        return ResNetImageNet(depth, classes, channels=shape[0])

    return make


def _transformer(words: int, _shape: tuple[int, ...]) -> Any:
    from fractrain.models.transformer import TransformerLM

    return TransformerLM(words)


_HE = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2"
_HE18 = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.1; torchvision"
_SANDLER = "Sandler et al., MobileNetV2, CVPR 2018; CIFAR variant of the FracTrain authors"
_VASWANI = "Vaswani et al., Attention Is All You Need, NeurIPS 2017 (base); as a language model: ours"

_MODELS = {
    m.name: m
    for m in (
        ModelInfo(
            "resnet38", "ResNet-38", "CIFAR ResNet, 6 blocks in each of three groups", _HE, "image", 8, 18,
            {"cifar10": 83_280_512, "cifar100": 83_286_272}, {"cifar10": 564_122, "cifar100": 569_972}, _resnet(6),
            version=2,
        ),
        ModelInfo(
            "resnet74", "ResNet-74", "CIFAR ResNet, 12 blocks in each of three groups", _HE, "image", 8, 36,
            {"cifar10": 168_215_168, "cifar100": 168_220_928}, {"cifar10": 1_147_418, "cifar100": 1_153_268},
            _resnet(12), version=2,
        ),
        ModelInfo(
            "mobilenet_v2", "MobileNetV2", "CIFAR variant: 17 inverted residual blocks, 1x1 shortcuts", _SANDLER,
            "image", 8, 17, {"cifar10": 91_154_944, "cifar100": 91_270_144},
            {"cifar10": 2_296_922, "cifar100": 2_412_212}, _mobilenet_v2,
        ),
        ModelInfo(
            "resnet18", "ResNet-18", "torchvision's, 8 basic blocks", _HE18, "image", 32, 8,
            {"imagenet": 1_814_073_344}, {"imagenet": 11_689_512}, _resnet_imagenet(18),
        ),
        ModelInfo(
            "resnet34", "ResNet-34", "torchvision's, 16 basic blocks", _HE18, "image", 32, 16,
            {"imagenet": 3_663_761_408}, {"imagenet": 21_797_672}, _resnet_imagenet(34),
        ),
        ModelInfo(
            "transformer_base", "Transformer-base", "causal language model, 6 layers, adaptive input and softmax, tied",
            _VASWANI, "tokens", 1, 6, {"wikitext103": 11_274_289_152, "wikitext2": 11_274_289_152},
            {"wikitext103": 39_470_776, "wikitext2": 21_621_824}, _transformer,
        ),
    )
}  # fmt: skip


def names() -> list[str]:
    """Registry names."""
    return list(_MODELS)


def info(name: str) -> ModelInfo:
    """Return what is known of a model.

    Raises:
        ConfigError: no model has that name.
    """
    if name not in _MODELS:
        raise ConfigError(f"unknown model {name!r}{did_you_mean(name, _MODELS)}; `fractrain list models` shows all")
    return _MODELS[name]


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
