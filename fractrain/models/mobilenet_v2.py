"""MobileNetV2 for small images (Sandler et al. 2018), in the variant that FracTrain's CIFAR rows are about.

Against the ImageNet network: a stem of stride 1, the second group of blocks at stride 1, ReLU instead of ReLU6, every
block expands (the first one by 1), and a 1x1 convolution with BatchNorm on the shortcut wherever a block of stride 1
changes the width. Weights start as torch has them, like the authors'. The 91,154,944 forward MACs at 32x32 with 10
classes are those of the authors' own FLOP table.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from fractrain.layers.norm_relu import ConvNormReLU, norm_relu

# Expansion, width, number of blocks and stride of the first one, group by group (the paper's table 2, CIFAR strides).
GROUPS = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
STEM, LAST = 32, 1280


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, 1x1 projection, each with BatchNorm; a shortcut where stride is 1.

    Input ``[N, inputs, H, W]``, output ``[N, outputs, H/stride, W/stride]``, no ReLU after the sum.

    Attributes:
        use_res_connect: there is a shortcut; ``shortcut`` exists then, empty (identity) or a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.conv1, self.bn1 = _conv(inputs, hidden), nn.BatchNorm2d(hidden)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv(hidden, hidden, 3, stride, groups=hidden), nn.BatchNorm2d(hidden)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3, self.bn3 = _conv(hidden, outputs), nn.BatchNorm2d(outputs)
        self.use_res_connect = stride == 1
        if self.use_res_connect:
            self.shortcut = nn.Sequential()
            if inputs != outputs:
                self.shortcut = nn.Sequential(_conv(inputs, outputs), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return f(x), plus shortcut(x) where stride is 1."""
        y = norm_relu(self.bn1, self.relu1, self.conv1(x))
        y = norm_relu(self.bn2, self.relu2, self.conv2(y))
        out: torch.Tensor = self.bn3(self.conv3(y))
        return out + self.shortcut(x) if self.use_res_connect else out


class MobileNetV2(nn.Module):
    """A 3x3 stem, 17 inverted residual blocks (16 to 320 channels), a 1x1 convolution to 1280, pooling, one linear.

    Args:
        classes: number of outputs.
        channels: input channels.

    Attributes:
        block_weighting: blocks count in cp by their MACs, as in the authors' code for this model.
    """

    block_weighting: ClassVar[str] = "macs"

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.stem = ConvNormReLU(_conv(channels, STEM, 3), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))
        blocks, inputs = [], STEM
        for expansion, width, count, first in GROUPS:
            for i in range(count):
                blocks.append(InvertedResidual(inputs, width, expansion, first if i == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.last = ConvNormReLU(_conv(inputs, LAST), nn.BatchNorm2d(LAST), nn.ReLU(inplace=True))
        self.head = nn.Linear(LAST, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, classes]``."""
        y = self.last(self.blocks(self.stem(x)))
        logits: torch.Tensor = self.head(y.mean(dim=(2, 3)))
        return logits

    def zero_init_residual(self) -> None:
        """Start every block that has a shortcut as its shortcut; the others would be dead, and stay as they are."""
        for m in self.modules():
            if isinstance(m, InvertedResidual) and m.use_res_connect:
                nn.init.zeros_(m.bn3.weight)

    def gateable_blocks(self) -> list[str]:
        """Names of the 17 blocks in the order data flows through them."""
        return [f"blocks.{i}" for i in range(len(self.blocks))]
