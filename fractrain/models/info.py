"""What is known of a model without building it. Imports no torch.

A model of your own is one file with one :class:`ModelInfo`: see ``docs/add-a-model.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class DatasetLike(Protocol):
    """What a model must know of a data set to say whether it fits."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> int: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class ModelInfo:
    """One model.

    Attributes:
        name: registry name.
        title: name in print.
        description: one line.
        source: paper.
        input: what it takes: ``image``, or ``tokens`` (word numbers).
        min_size: smallest image height and width, or length of a sequence.
        blocks: number of gateable blocks.
        forward_macs: exact MACs per sample, by data set name (of the data sets of the papers); a language model's
            sample is a sequence of 512 words, and the MACs are those of its layers.
        parameters: trainable parameters, by data set name.
        version: raised when the same seed gives other weights or another network: it is part of the run id.
    """

    name: str
    title: str
    description: str
    source: str
    input: str
    min_size: int
    blocks: int
    forward_macs: Mapping[str, int]
    parameters: Mapping[str, int]
    factory: Callable[[int, tuple[int, ...]], Any]
    family: str = ""
    version: int = 1
