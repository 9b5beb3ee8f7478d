"""Texts for language models: WikiText-103, WikiText-2, and the embedded one.

The WikiTexts are used as published: words as they stand between white space, ``<unk>`` where the authors put it, the
end of a line as the word ``<eos>``, upper and lower case. The vocabulary is that of the training part. A word of the
validation or test part that it lacks means that the files are of two releases (the two WikiTexts have the same articles
there, with different words replaced by ``<unk>``): an error, never counted as ``<unk>``.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch

from fractrain.data.cifar import DATA_VARIABLE, DEFAULT_ROOT
from fractrain.data.registry import DatasetInfo
from fractrain.data.text_cache import CACHE_VARIABLE, RECORD, cache_folder, prepare, read
from fractrain.data.text_files import PARTS, HubText, Text, TextFiles, find_files
from fractrain.data.text_stream import TextEvalStream, TextTrainStream
from fractrain.data.tokens import Tokens
from fractrain.util.errors import ConfigError, DataError

_REVISION: Final = "b08601e04326c79dfdd32d625aee71d232d685c3"
OFFICIAL: Final = {"wikitext103": "wikitext-103", "wikitext2": "wikitext-2"}


@dataclass(frozen=True, eq=False)
class TextData:
    """A loaded text.

    Attributes:
        info: what is known of the data set.
        train, val, test: its parts, as numbers of words.
        digest: SHA-256 over vocabulary and tokens.
        words: the vocabulary, by number; empty where it is left on disk.
        folder: of the prepared form, or None for a text in memory.
    """

    info: DatasetInfo
    train: Tokens
    val: Tokens
    test: Tokens
    digest: str
    words: tuple[str, ...] = field(default=(), repr=False)
    folder: Path | None = None

    @property
    def context(self) -> int:
        """Words per sequence."""
        return self.info.shape[0]

    def train_stream(self, batch_size: int, seed: int, device: torch.device | str, augment: bool) -> TextTrainStream:
        """Return the training batches; there is nothing to augment."""
        return TextTrainStream(self.train, self.context, batch_size, seed, device)

    def eval_stream(self, split: str, batch_size: int, device: torch.device | str) -> TextEvalStream:
        """Return the batches of ``val`` or ``test``."""
        return TextEvalStream(getattr(self, split), self.context, self.info.stride, batch_size, device)


def load(entry: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int) -> TextData:
    """Load ``wikitext103`` or ``wikitext2``, prepared if it is not yet; see :func:`registry.load`."""
    refuse_fraction(entry, val_fraction)
    found, missing = locate(entry, data_dir)
    if not found:
        if not download:
            raise DataError(f"{missing}; {how_to_mend(entry, data_dir)}")
        prepared = prepare(entry, hub_texts(entry), hub_cache(entry, data_dir))
    elif isinstance(found, Path):
        prepared = read(entry, found)
    else:
        prepared = prepare(entry, found, cache_folder(entry.name, found, found["train"].paths[0].parent))
    parts = prepared.parts
    return TextData(entry, parts["train"], parts["val"], parts["test"], prepared.digest, folder=prepared.folder)


def refuse_fraction(entry: DatasetInfo, val_fraction: float) -> None:
    """Raise a ConfigError unless ``val_fraction`` is 0: texts have a validation part of their own."""
    if val_fraction:
        raise ConfigError(
            f"val_fraction is {val_fraction}, but {entry.name} has a validation part of its own, which is always used: "
            "set it to 0"
        )


def root_of(data_dir: str | Path | None) -> Path:
    """Return the folder of the data sets: ``data_dir``, else ``FRACTRAIN_DATA``, else ``./data``."""
    return Path(data_dir or os.environ.get(DATA_VARIABLE) or DEFAULT_ROOT).expanduser()


def locate(entry: DatasetInfo, data_dir: str | Path | None) -> tuple[dict[str, TextFiles] | Path | None, str]:
    """Look for a text: its files, else the prepared form of the hub's.

    Files may be in ``wikitext-103`` (``wikitext-2``), in a folder called like the data set, or in the folder itself.

    Returns:
        the files by part, or the folder of the prepared form, or None; and what is missing, in words.
    """
    root, official = root_of(data_dir), OFFICIAL[entry.name]
    found: dict[str, TextFiles] = {}
    for folder in (root / official, root / f"{official}-v1", root / entry.name, root):
        found = found or find_files(folder, official)
    if len(found) == len(PARTS):
        return found, ""
    cache = hub_cache(entry, data_dir)
    if (cache / RECORD).is_file():
        return cache, ""
    if found:
        where = next(iter(found.values())).paths[0].parent
        lacking = ", ".join(part for part in PARTS if part not in found)
        return None, f"{entry.name}: {where} has no {lacking} text (wiki.train.tokens, wiki.valid.tokens, ...)"
    return None, f"{entry.name} is not in {root}: there are no files {official}/wiki.*.tokens"


def hub_texts(entry: DatasetInfo) -> dict[str, Text]:
    """Return the parts as the hub has them, at a fixed revision."""
    return {part: HubText(f"Salesforce/wikitext@{_REVISION}/{OFFICIAL[entry.name]}-v1", part) for part in PARTS}


def hub_cache(entry: DatasetInfo, data_dir: str | Path | None) -> Path:
    """Return where the prepared form of the hub's text is or should be."""
    return cache_folder(entry.name, hub_texts(entry), root_of(data_dir) / OFFICIAL[entry.name])


def how_to_mend(entry: DatasetInfo, data_dir: str | Path | None) -> str:
    """Return how to get the data set, in one clause."""
    return (
        f"mend with `fractrain data fetch {entry.name} --data-dir {root_of(data_dir)}`, or put the official token "
        f"files into {root_of(data_dir) / OFFICIAL[entry.name]} (prepared beside them, or below {CACHE_VARIABLE})"
    )


def unigram_perplexity(data: TextData, split: str = "test") -> float:
    """Perplexity per word of the trivial predictor, which gives every word its frequency in the training part.

    Counts are raised by one, so that a word that only occurs in ``split`` has a probability. Every word after the first
    is scored, as for a model.

    Args:
        data: a loaded text.
        split: ``test`` or ``val``.
    """
    part: Tokens = getattr(data, split)
    counts = data.train.counts(data.info.classes).astype(np.float64) + 1
    cost = math.log(counts.sum()) - np.log(counts)
    scored = part.counts(data.info.classes)
    scored[part.windows([0], 1)[0, 0]] -= 1
    return math.exp(float(scored @ cost) / (len(part) - 1))
