"""CIFAR ResNets of 6n+2 layers with 1x1 projection shortcuts (He et al. 2016, section 4.2), as in FracTrain."""

from __future__ import annotations

import math

import torch
from torch import nn

from fractrain.layers.norm_relu import ConvNormReLU, norm_relu
from fractrain.layers.residual import SumReLU

WIDTHS = (16, 32, 64)


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut (1x1 convolution with batch norm where the shape changes).

    Input ``[N, inputs, H, W]``, output ``[N, outputs, H/stride, W/stride]``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(outputs, outputs, 3, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.join = SumReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(f(x) + shortcut(x))."""
        y = norm_relu(self.bn1, self.relu1, self.conv1(x))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.join(y, self.shortcut(x))
        return out


class ResNetCifar(nn.Module):
    """ResNet of ``6 n + 2`` layers: a 3x3 stem, three groups of n blocks (16, 32, 64 channels), pooling, one linear.

    Args:
        n: blocks per group (6 for ResNet-38, 12 for ResNet-74).
        classes: number of outputs.
        channels: input channels.
    """

    def __init__(self, n: int, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.stem = ConvNormReLU(_conv(channels, WIDTHS[0], 3, 1), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(inplace=True))
        groups = []
        inputs = WIDTHS[0]
        for g, width in enumerate(WIDTHS):
            blocks = []
            for i in range(n):
                blocks.append(BasicBlock(inputs, width, stride=2 if g > 0 and i == 0 else 1))
                inputs = width
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.head = nn.Linear(inputs, classes)
        self._init_weights()

    def _init_weights(self) -> None:
        # N(0, sqrt(2 / (k*k*out))) for convolutions and N(0, sqrt(2 / (in*out))) for the classifier, whose bias is
        # torch's, as the FracTrain authors initialise theirs.
        nn.init.normal_(self.head.weight, 0.0, math.sqrt(2.0 / (self.head.in_features * self.head.out_features)))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels
                nn.init.normal_(m.weight, 0.0, math.sqrt(2.0 / fan_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, classes]``."""
        y = self.groups(self.stem(x))
        logits: torch.Tensor = self.head(y.mean(dim=(2, 3)))
        return logits

    def zero_init_residual(self) -> None:
        """Set the scale of each block's last BatchNorm to zero: every block starts as its shortcut."""
        for m in self.modules():
            if isinstance(m, BasicBlock):
                nn.init.zeros_(m.bn2.weight)

    def gateable_blocks(self) -> list[str]:
        """Names of the residual blocks in the order data flows through them."""
        return [name for name, m in self.named_modules() if isinstance(m, BasicBlock)]
