"""Small models of the kinds that people bring along."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F


class Standardized(nn.Conv2d):
    """A convolution that standardises its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight
        mean, std = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (w - mean) / (std + 1e-5), self.bias)


class LowRank(nn.Linear):
    """A linear layer with an adapter of rank 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + F.linear(self.down(x), self.up)


class Block(nn.Module):
    """A residual block of 8 channels with ``norm`` between its convolutions."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
        self.relu = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
        self.shortcut = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Residual(nn.Module):
    """Stem, two blocks that a gate can steer, classifier."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1, self.block2 = Block(norm), Block(norm)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block2(self.block1(self.stem(x))).mean((2, 3)))

    def gateable_blocks(self) -> list[str]:
        return ["block1", "block2"]


class Wave(nn.Module):
    """A residual block of 8 channels on signals."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv1d(8, 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8)
        self.conv2, self.shortcut = nn.Conv1d(8, 8, 3, padding=1), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(F.relu(self.norm(self.conv1(x)))) + self.shortcut(x))


class Waves(nn.Module):
    """Images as signals: stem, two blocks that a gate can steer, classifier; no layer of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 4, stride=4)
        self.block1, self.block2 = Wave(), Wave()
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block2(self.block1(self.stem(x.flatten(2)))).mean(2))

    def gateable_blocks(self) -> list[str]:
        return ["block1", "block2"]


def group_norm(channels: int) -> nn.GroupNorm:
    """A norm that does not mix samples."""
    return nn.GroupNorm(2, channels)


def chain() -> nn.Sequential:
    """Layers in a row: norm before ReLU, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


def seeded(build, seed: int = 0) -> nn.Module:
    """A model whose weights follow from the seed."""
    torch.manual_seed(seed)
    return build()


def batches(count: int, size: int = 4, side: int = 8) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels."""
    for i in range(count):
        g = torch.Generator().manual_seed(100 + i)
        yield torch.randn(size, 3, side, side, generator=g), torch.randint(0, 4, (size,), generator=g)
