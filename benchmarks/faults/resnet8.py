"""ResNet-8 for the fault trials: residual blocks, gates and all, and a step within milliseconds."""

from typing import Any

from fractrain.models.info import ModelInfo


def resnet8(classes: int, shape: tuple[int, ...]) -> Any:
    """One residual block at each of the three widths."""
    from fractrain.models.resnet_cifar import ResNetCifar

    return ResNetCifar(1, classes, channels=shape[0])


RESNET8 = ModelInfo(
    name="resnet8", title="ResNet-8", description="CIFAR's ResNet with one block per width", source="ours",
    input="image", min_size=4, blocks=3, forward_macs={}, parameters={}, factory=resnet8,
)  # fmt: skip
