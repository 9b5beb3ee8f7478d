"""The models that are shipped, each with what is known of it. Networks are imported when they are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fractrain.models.info import ModelInfo


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

MODELS = (
    ModelInfo(
        "resnet38", "ResNet-38", "CIFAR ResNet, 6 blocks in each of three groups", _HE, "image", 8, 18,
        {"cifar10": 83_280_512, "cifar100": 83_286_272}, {"cifar10": 564_122, "cifar100": 569_972}, _resnet(6),
        "resnet-cifar",
        version=2,
    ),
    ModelInfo(
        "resnet74", "ResNet-74", "CIFAR ResNet, 12 blocks in each of three groups", _HE, "image", 8, 36,
        {"cifar10": 168_215_168, "cifar100": 168_220_928}, {"cifar10": 1_147_418, "cifar100": 1_153_268},
        _resnet(12), "resnet-cifar", version=2,
    ),
    ModelInfo(
        "resnet20", "ResNet-20", "CIFAR ResNet, 3 blocks in each of three groups", _HE, "image", 8, 9,
        {"cifar10": 40_813_184, "cifar100": 40_818_944}, {"cifar10": 272_474, "cifar100": 278_324}, _resnet(3),
        "resnet-cifar",
    ),
    ModelInfo(
        "resnet56", "ResNet-56", "CIFAR ResNet, 9 blocks in each of three groups", _HE, "image", 8, 27,
        {"cifar10": 125_747_840, "cifar100": 125_753_600}, {"cifar10": 855_770, "cifar100": 861_620}, _resnet(9),
        "resnet-cifar",
    ),
    ModelInfo(
        "resnet110", "ResNet-110", "CIFAR ResNet, 18 blocks in each of three groups", _HE, "image", 8, 54,
        {"cifar10": 253_149_824, "cifar100": 253_155_584}, {"cifar10": 1_730_714, "cifar100": 1_736_564},
        _resnet(18), "resnet-cifar",
    ),
    ModelInfo(
        "mobilenet_v2", "MobileNetV2", "CIFAR variant: 17 inverted residual blocks, 1x1 shortcuts", _SANDLER,
        "image", 8, 17, {"cifar10": 91_154_944, "cifar100": 91_270_144},
        {"cifar10": 2_296_922, "cifar100": 2_412_212}, _mobilenet_v2, version=2,
    ),
    ModelInfo(
        "resnet18", "ResNet-18", "torchvision's, 8 basic blocks", _HE18, "image", 32, 8,
        {"imagenet": 1_814_073_344}, {"imagenet": 11_689_512}, _resnet_imagenet(18),
        "resnet-imagenet",
    ),
    ModelInfo(
        "resnet34", "ResNet-34", "torchvision's, 16 basic blocks", _HE18, "image", 32, 16,
        {"imagenet": 3_663_761_408}, {"imagenet": 21_797_672}, _resnet_imagenet(34),
        "resnet-imagenet",
    ),
    ModelInfo(
        "transformer_base", "Transformer-base", "causal language model, 6 layers, adaptive input and softmax, tied",
        _VASWANI, "tokens", 1, 6, {"wikitext103": 11_274_289_152, "wikitext2": 11_274_289_152},
        {"wikitext103": 39_470_776, "wikitext2": 21_621_824}, _transformer,
    ),
)  # fmt: skip
