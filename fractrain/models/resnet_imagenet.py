"""ResNet-18 and ResNet-34 for ImageNet (He et al. 2016): torchvision's own definitions, with their gateable blocks.

Names of parameters are torchvision's, so its checkpoints load. Only the model registry imports this module, when such a
model is built: listing and the other models do without torchvision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from fractrain.layers.norm_relu import norm_relu
from fractrain.layers.residual import SumReLU

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Block(BasicBlock):  # type: ignore[misc, unused-ignore]
    """torchvision's basic block, its end as one layer; takes its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.join = SumReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(f(x) + shortcut(x))."""
        y = norm_relu(self.bn1, self.relu, self.conv1(x))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.join(y, x if self.downsample is None else self.downsample(x))
        return out


class ResNetImageNet(ResNet):  # type: ignore[misc, unused-ignore]  # torchvision may come without types
    """torchvision's ResNet of basic blocks: 7x7 stem and pooling (stride 4), four groups of 64 to 512 channels.

    Input ``[N, C, H, W]`` of any size from 32, output ``[N, classes]``.

    Args:
        depth: 18 or 34.
        classes: number of outputs.
        channels: input channels; other than 3 change the first convolution.
    """

    def __init__(self, depth: int, classes: int, channels: int = 3) -> None:
        super().__init__(Block, list(LAYERS[depth]), num_classes=classes)
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images to logits."""
        y = self.maxpool(norm_relu(self.bn1, self.relu, self.conv1(x)))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(y), 1))
        return logits

    def zero_init_residual(self) -> None:
        """Set the scale of each block's last BatchNorm to zero: every block starts as its shortcut."""
        for m in self.modules():
            if isinstance(m, BasicBlock):
                nn.init.zeros_(m.bn2.weight)

    def gateable_blocks(self) -> list[str]:
        """Names of the residual blocks in the order data flows through them."""
        return [name for name, m in self.named_modules() if isinstance(m, BasicBlock)]
