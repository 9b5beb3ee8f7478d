"""Words and their numbers: counted once over a text, then the text is written as numbers, block by block.

A text comes as blocks of whole lines, so that nothing ever holds all of it. A word is what stands between white space,
the end of a line is the word ``<eos>``: the convention of all WikiText results.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Final

import numpy as np
import numpy.typing as npt

from fractrain.util.errors import DataError

EOS: Final = "<eos>"
UNK: Final = "<unk>"

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.int32]


def words_of(block: str) -> list[str]:
    """Split a block of whole lines into words; each line end becomes ``<eos>``."""
    return block.replace("\n", f" {EOS} ").split()


def count_words(blocks: Iterable[str]) -> Counter[str]:
    """Count the words of a text; the counter's total is its length in tokens."""
    counts: Counter[str] = Counter()
    for block in blocks:
        counts.update(words_of(block))
    return counts


def by_frequency(counts: Mapping[str, int], most: int | None = None) -> list[str]:
    """Return the words by falling frequency, the first ``most`` of them (None: all).

    Equally frequent words stand in the order of their code points, so that the order of a text's articles does not
    matter. Frequent words have small numbers: adaptive softmax and embedding need that.
    """
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]


def number_type(words: int) -> type[np.uint16] | type[np.int32]:
    """Smallest type of number that a vocabulary of this size needs."""
    return np.uint16 if words <= np.iinfo(np.uint16).max + 1 else np.int32


class Vocabulary:
    """Words by number and numbers by word.

    Args:
        words: in the order of their numbers.
        unknown: number that words outside the vocabulary get; None: they are an error.
    """

    def __init__(self, words: Sequence[str], unknown: int | None = None) -> None:
        self.words = tuple(words)
        self._unknown = -1 if unknown is None else unknown
        # One string object per word for the whole text: they come back from str.split as new ones each time.
        self._numbers = {sys.intern(word): number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Sequence[str], origin: str = "the text") -> TokenArray:
        """Return the numbers of words, shape ``[n]``.

        Raises:
            DataError: a word is not in the vocabulary, and there is no number for such; ``origin`` and word are named.
        """
        found = np.fromiter(map(self._numbers.get, words, repeat(self._unknown)), dtype=np.int32, count=len(words))
        if len(found) and found.min() < 0:
            word = words[int(found.argmin())]
            raise DataError(
                f"{origin} has the word {word!r}, which the training text does not have: the two are not of one "
                "release; take all three files from the same one"
            )
        return found.astype(np.uint16) if number_type(len(self)) is np.uint16 else found
