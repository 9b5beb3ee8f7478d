"""Small models that multiply in their own code, and the same networks with layers, under the names that these get."""

from __future__ import annotations

from typing import Any

import torch
from field_models import Functional
from torch import nn
from torch.nn import functional as F

from fractrain.layers.matmul import Matmul


def _with_weight(layer: Any, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    layer.weight = nn.Parameter(weight.detach().clone())
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return layer


class Attending(nn.Module):
    """Attention of 2 heads by ``F.scaled_dot_product_attention``, and by ``matmul``; a product stored transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.out, self.shift = nn.Parameter(torch.randn(16, 16) * 0.2), nn.Parameter(torch.randn(16))
        self.checkpointed: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = self.attend(q, k, v)
        z = self.weighted((q @ k.transpose(-2, -1) / 8**0.5).softmax(-1), v)
        return self.project((y + z).transpose(1, 2).flatten(2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def weighted(self, p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.checkpointed is None:
            return torch.matmul(p, v)
        from torch.utils.checkpoint import checkpoint

        return checkpoint(torch.matmul, p, v, use_reentrant=self.checkpointed)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.shift, x.flatten(0, 1), self.out).unflatten(0, x.shape[:2])


class Layered(Attending):
    """:class:`Attending` with layers."""

    def __init__(self, plain: Attending) -> None:
        super().__init__()
        self.qkv = plain.qkv
        del self.out, self.shift
        self.functional = nn.ModuleDict(
            {
                "scores_1": Matmul(transpose=True), "mix_1": Matmul(), "matmul_1": Matmul(), "matmul_2": Matmul(),
                "linear_1": _with_weight(nn.Linear(16, 16), plain.out.t(), plain.shift),
            }
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.functional
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = f["scores_1"](q * 8**-0.5, k)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        y = f["mix_1"](scores.masked_fill(later, -torch.inf).softmax(-1), v)
        z = f["matmul_2"]((f["matmul_1"](q, k.transpose(-2, -1)) / 8**0.5).softmax(-1), v)
        out: torch.Tensor = f["linear_1"]((y + z).transpose(1, 2).flatten(2).flatten(0, 1))
        return out.unflatten(0, x.shape[:2])


class Words(nn.Module):
    """Two blocks of attention on patches of images."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, stride=2)
        self.first, self.second = Attending(), Attending()
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patch(x).flatten(2).mT
        y = y + self.first(y)
        return self.head((y + self.second(y)).mean(1))


class LayeredWords(Words):
    """:class:`Words` with layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layered(self.first), Layered(self.second)


class LayeredFunctional(Functional):
    """:class:`field_models.Functional` with layers."""

    def __init__(self) -> None:
        super().__init__()
        self.functional = nn.ModuleDict(
            {
                "conv2d_1": _with_weight(nn.Conv2d(8, 8, 3), self.kernel),
                "linear_1": _with_weight(nn.Linear(8, 8), self.mixer.t()),
                "linear_2": _with_weight(nn.Linear(8, 8), self.table.t()),
                "linear_3": _with_weight(nn.Linear(8, 4), self.out),
            }
        )
        del self.kernel, self.mixer, self.table, self.out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.functional
        y = f["conv2d_1"](torch.relu(self.stem(x))).flatten(2).mT
        out: torch.Tensor = f["linear_3"](f["linear_2"](f["linear_1"](y)).mean(1))
        return out


class Tied(nn.Module):
    """An embedding that is the classifier as well, and experts chosen by the input's sum."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 8)
        self.experts = nn.Parameter(torch.randn(3, 8, 8) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.words(x)
        for expert in range(1 + int(x.sum()) % 3):
            y = y + F.linear(y, self.experts[expert]).relu()
        return F.linear(y, self.words.weight)
