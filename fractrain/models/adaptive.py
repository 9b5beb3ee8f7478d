"""The two ends of a language model: word vectors going in, word probabilities coming out, with tied tables.

Large vocabularies use the adaptive input of Baevski and Auli (ICLR 2019) and the adaptive softmax of Grave et al. (ICML
2017), the latter torch's own: words in the order of their frequency are cut into bands, and each further band has
vectors a quarter as wide. Words must therefore be numbered by falling frequency.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

WIKITEXT103_WORDS = 267_735
WIKITEXT103_CUTOFFS = (20_000, 60_000, 200_000)  # as in fairseq's published WikiText-103 setting
PLAIN_UP_TO = 10_000  # words (ours): below, one table and a linear softmax
DIV_VALUE = 4


def cutoffs_for(words: int) -> tuple[int, ...]:
    """Where the vocabulary is cut: WikiText-103's cutoffs in proportion to its size; none for small ones (ours).

    Args:
        words: size of the vocabulary.
    """
    if words <= PLAIN_UP_TO:
        return ()
    return tuple(cut * words // WIKITEXT103_WORDS for cut in WIKITEXT103_CUTOFFS)


class AdaptiveEmbedding(nn.Module):
    """Word vectors of several widths, each projected to the width of the model; the tables are the softmax's.

    Args:
        words: size of the vocabulary.
        cutoffs: first word of every band but the first.
        width: width of the model, and of the first band's vectors.
    """

    keeps_float = True  # for fractrain.layers.convert: how many words a projection sees depends on the text

    def __init__(self, words: int, cutoffs: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.edges = (0, *cutoffs, words)
        self.projections = nn.ModuleList(
            nn.Linear(width // DIV_VALUE**i, width, bias=False) for i in range(1, len(cutoffs) + 1)
        )
        for p in self.projections.parameters():
            nn.init.normal_(p, std=width**-0.5)

    def forward(self, tokens: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
        """Look up ``tokens`` (int64 ``[N, T]``) in ``tables`` (one per band, ``[words, width]``) -> ``[N, T, width]``.

        Raises:
            IndexError: a token is not in the vocabulary (on the CPU).
        """
        flat = tokens.reshape(-1)
        bands = torch.bucketize(flat, flat.new_tensor(self.edges[1:-1]), right=True)
        first = F.embedding(torch.where(bands == 0, flat, 0), tables[0])
        out = first * (bands == 0).to(first.dtype)[:, None]
        for i, project in enumerate(self.projections, start=1):
            rows = (bands == i).nonzero().squeeze(1)
            if len(rows):
                vectors = F.embedding(flat[rows] - self.edges[i], tables[i])
                out = out.index_add(0, rows, project(vectors))
        return out.view(*tokens.shape, -1)


def adaptive_head(words: int, cutoffs: tuple[int, ...], width: int) -> nn.AdaptiveLogSoftmaxWithLoss:
    """Torch's adaptive softmax, its tables drawn as word vectors (deviation 1 / sqrt(width of the band)).

    Args:
        words: size of the vocabulary.
        cutoffs: as for :class:`AdaptiveEmbedding`.
        width: width of the model.
    """
    head = nn.AdaptiveLogSoftmaxWithLoss(width, words, list(cutoffs), div_value=float(DIV_VALUE))
    for m in head.modules():
        if isinstance(m, nn.Linear):
            # A table has rows of its own width; a projection reads the width of the model: both 1 / sqrt(inputs).
            nn.init.normal_(m.weight, std=m.in_features**-0.5)
    return head
