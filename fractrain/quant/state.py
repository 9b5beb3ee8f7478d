"""State shared by all quantized layers of one model: step, seed, ledger, and what candidates of a gated block share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fractrain.cost.ledger import Entry, Ledger
from fractrain.seeds import derive_seed


@dataclass
class CandidateScope:
    """One pass through a gated block at one candidate precision.

    While a scope is active the layers do not count themselves: they put their per-sample entries into ``entries``, and
    the block counts them times the samples that chose the candidate.

    Attributes:
        index: candidate number; part of the name that stochastic rounding depends on.
        memo: shared by all passes through the block in one step, so that the range of the block's input is measured
            once and passes whose forward precision is equal share their products.
        forward_key: passes with equal keys have equal forward values.
    """

    index: int
    memo: dict[Any, Any]
    forward_key: Any
    entries: list[Entry] = field(default_factory=list)


class QuantState:
    """Shared by reference between a method and its layers.

    Attributes:
        seed: seed of stochastic rounding, derived from the run's seed.
        step: current training step (0-based); stochastic rounding is a function of it.
        sample_offset: index of this process's first sample in the global batch, so that rounding does not depend on the
            number of workers.
        scope: the active :class:`CandidateScope`, or None.
    """

    def __init__(self, seed: int = 0, ledger: Ledger | None = None) -> None:
        self.seed = derive_seed(seed, "rounding")
        self.step = 0
        self.sample_offset = 0
        self.ledger = ledger if ledger is not None else Ledger()
        self.scope: CandidateScope | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantState:
        """Copies of a model keep sharing one state (a deep copy would split it layer by layer)."""
        return self


def as_float_bits(bits: int) -> int:
    """Width under which an operand is counted: 32 for anything that is not quantized."""
    return bits if bits < 32 else 32


__all__ = ["CandidateScope", "QuantState", "as_float_bits", "torch"]
