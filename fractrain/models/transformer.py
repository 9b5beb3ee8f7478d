"""Transformer-base as a language model: 6 layers, width 512, FFN 2048, 8 heads (Vaswani et al. 2017), causal.

FracTrain trains it on WikiText-103; what of its recipe could be read is the name. Ours, therefore:

* pre-norm: ``x + f(LayerNorm(x))`` and a LayerNorm at the end (as fairseq's WikiText-103 model; trains without a long
  warm-up), LayerNorm with parameters, biases in all linear layers of the body;
* sinusoidal positions, no parameters: any length of context; word vectors are multiplied by sqrt(width);
* word vectors and softmax share their tables, adaptive above 10,000 words (:mod:`fractrain.models.adaptive`); the
  projections of embedding and softmax are not shared, and no end has a bias;
* ReLU; dropout (0.1) on the embedded words and on what each branch adds, none on attention weights;
* Q, K, V are three linear layers, not one: their errors differ in size and get a range of their own each.

Attention's two products are :class:`fractrain.layers.matmul.Matmul` modules, so that methods quantize them and the
ledger counts them, in full: causal masking saves nothing. Where they are in floating point, torch's fused attention
computes them. The softmax between them, LayerNorm and the lookup of words stay in floating point.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from fractrain.layers.matmul import Matmul
from fractrain.layers.softmax import causal_softmax
from fractrain.models.adaptive import DIV_VALUE, AdaptiveEmbedding, adaptive_head, cutoffs_for
from fractrain.util.errors import ConfigError


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class CausalAttention(nn.Module):
    """Multi-head self-attention to the present and earlier positions, ``[N, T, width]`` to the same.

    Args:
        width: width of the model.
        heads: number of heads; divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key, self.value = (_linear(width, width) for _ in range(3))
        self.scores = Matmul(transpose=True, remade=True)  # Q K^T
        self.mix = Matmul()  # P V
        self.out = _linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend."""
        n, t, width = x.shape
        q, k, v = (f(x).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        if self.scores.is_float and self.mix.is_float:
            self.mix(self.scores(q, k, elsewhere=True), v, elsewhere=True)  # reported only
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            # Nested, so that the scores are gone when the probabilities are multiplied: each takes N * heads * T * T.
            y = self.mix(causal_softmax(self.scores(q * self.scale, k), self.scores.again()), v)
        return cast(torch.Tensor, self.out(y.transpose(1, 2).reshape(n, t, width)))


class TransformerLayer(nn.Module):
    """Attention and a feed-forward network, each added to its normalised input, ``[N, T, width]`` to the same.

    Args:
        width: width of the model.
        hidden: width of the feed-forward network.
        heads: number of heads.
        dropout: probability, on what each branch adds.
    """

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.shortcut = nn.Identity()  # around the whole layer: a method may skip the rest
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(_linear(width, hidden), nn.ReLU(), _linear(hidden, width))
        # Without dropout there is no module for it: methods may then share work between passes.
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        y = self.shortcut(x) + self.dropout(self.attention(self.attention_norm(x)))
        return cast(torch.Tensor, y + self.dropout(self.ffn(self.ffn_norm(y))))


class TransformerLM(nn.Module):
    """Causal language model over words numbered by falling frequency; see the module's docstring for what is ours.

    Args:
        words: size of the vocabulary.
        layers, width, hidden, heads: size; the defaults are Transformer-base.
        dropout: probability while training.
        cutoffs: of the adaptive ends; None: :func:`fractrain.models.adaptive.cutoffs_for`, empty: plain ends.

    Raises:
        ConfigError: the width cannot be split as asked.
    """

    input = "tokens"

    def __init__(
        self, words: int, layers: int = 6, width: int = 512, hidden: int = 2048, heads: int = 8, dropout: float = 0.1,
        cutoffs: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads or width % 2:
            raise ConfigError(f"a width of {width} cannot be split into {heads} heads of equal, even size")
        cutoffs = cutoffs_for(words) if cutoffs is None else cutoffs
        if width < DIV_VALUE ** len(cutoffs):
            raise ConfigError(f"a width of {width} is too small for {len(cutoffs) + 1} bands of words")
        self.words, self.width = words, width
        # The tables belong to the head; the embedding has its own only where it is torch's.
        self.embedding = AdaptiveEmbedding(words, cutoffs, width) if cutoffs else nn.Embedding(words, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.layers = nn.Sequential(*(TransformerLayer(width, hidden, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head: nn.Module
        if cutoffs:
            self.head = adaptive_head(words, cutoffs, width)
        else:
            self.head = nn.Linear(width, words, bias=False)
            nn.init.normal_(self.head.weight, std=width**-0.5)
            cast(nn.Embedding, self.embedding).weight = self.head.weight

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Map words (int64 ``[N, T]``) to hidden states ``[N, T, width]``, or with targets to their NLL ``[N, T]``.

        Args:
            tokens: numbers of the words read.
            targets: numbers of the words to predict at each position.

        Raises:
            ConfigError: not a batch of int64 sequences.
        """
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise ConfigError(
                f"a language model takes word numbers as int64 [N, T], got {tokens.dtype} of shape {list(tokens.shape)}"
            )
        x = self._embed(tokens) * math.sqrt(self.width) + self._positions(tokens.shape[1], tokens.device)
        hidden: torch.Tensor = self.norm(self.layers(self.dropout(x)))
        return hidden if targets is None else self.nll(hidden, targets)

    def nll(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood (nats, float32 ``[N, T]``) of targets ``[N, T]`` from hidden states.

        Its mean is the loss; the exponential of its mean over all words the perplexity.
        """
        if isinstance(self.head, nn.AdaptiveLogSoftmaxWithLoss):
            flat: torch.Tensor = -self.head(hidden.flatten(0, 1), targets.reshape(-1)).output
        else:
            flat = F.cross_entropy(self.head(hidden).flatten(0, 1), targets.reshape(-1), reduction="none")
        return flat.view(targets.shape)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        if isinstance(self.head, nn.AdaptiveLogSoftmaxWithLoss):
            # Asked for by name: a method may have put other modules with the same parameters in their place.
            first = self.head.head.weight[: self.head.cutoffs[0]]
            further = [cast(torch.Tensor, cast(nn.Sequential, band)[1].weight) for band in self.head.tail]
            vectors: torch.Tensor = self.embedding(tokens, [first, *further])
            return vectors
        plain: torch.Tensor = self.embedding(tokens)
        return plain

    def _positions(self, length: int, device: torch.device) -> torch.Tensor:
        """Sines and cosines ``[T, width]`` of geometrically spaced wavelengths up to 10,000 * 2 pi."""
        rates = torch.exp(torch.arange(self.width // 2, device=device) * (-math.log(10_000.0) * 2 / self.width))
        angles = torch.arange(length, device=device)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def gateable_blocks(self) -> list[str]:
        """Names of the layers in the order data flows through them."""
        return [f"layers.{i}" for i in range(len(self.layers))]
