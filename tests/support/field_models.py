"""Small models with what the field uses beside 2-D convolutions and linear layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Upsampler(nn.Module):
    """Convolution, transposed convolution, linear layer; images of 3 channels."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1, groups=groups)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(torch.relu(self.down(x))).mean((2, 3)))


class UNet(nn.Module):
    """Two scales and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.first(x))
        return self.last(torch.cat([a, self.up(torch.relu(self.down(a)))], 1)).mean((2, 3))


class Functional(nn.Module):
    """Products called as functions on parameters of the model's own: ``F.conv2d``, ``F.linear``, ``einsum``, ``@``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.1)
        self.mixer = nn.Parameter(torch.randn(8, 8) * 0.3)
        self.table = nn.Parameter(torch.randn(8, 8) * 0.3)
        self.out = nn.Parameter(torch.randn(4, 8) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(torch.relu(self.stem(x)), self.kernel).flatten(2).mT
        y = torch.einsum("ntc,cd->ntd", y, self.mixer) @ self.table
        return F.linear(y.mean(1), self.out)


class Attention(nn.Module):
    """Attention written with ``F.scaled_dot_product_attention``, on patches of images."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, stride=2)
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patch(x).flatten(2).mT
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(y).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.out(y).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer over the rows of an image."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.cell = kind(8, 12, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(torch.relu(self.stem(x)).mean(2).mT)[0].mean(1))

    def recurrent_macs(self, samples: int, steps: int) -> int:
        """Forward MACs of the recurrent layer: both matrices for every vector."""
        return samples * steps * sum(w.numel() for w in self.cell.parameters() if w.dim() == 2)


class Encoder(nn.Module):
    """Two of PyTorch's encoder layers on patches of images."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, stride=2)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.head, self.batch_first = nn.Linear(16, 4), batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patch(x).flatten(2).mT
        y = self.encoder(y) if self.batch_first else self.encoder(y.transpose(0, 1)).transpose(0, 1)
        return self.head(y.mean(1))


class CrossAttention(nn.Module):
    """A decoder layer: attention to itself, then to another sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, stride=2)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patch(x).flatten(2).mT
        return self.head(self.decoder(y[:, :5], y).mean(1))


class Borrowing(nn.Module):
    """Layers that are never called: the model's own code multiplies their weights, as torchvision's Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grow = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        y = F.conv2d(y, self.grow.weight, self.grow.bias, stride=2, padding=(1, 1), groups=2).flatten(2).mT
        return self.head(torch.relu(F.linear(y, self.mix.weight, bias=self.mix.bias)).mean(1))


class Lending(Borrowing):
    """One of the layers is called as well, another one's kernel is used with another stride."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(torch.relu(self.stem(x)), self.grow.weight, self.grow.bias, 1, 1, groups=2).flatten(2).mT
        return self.head(self.mix(y).mean(1) + F.linear(y.mean(1), self.mix.weight))
