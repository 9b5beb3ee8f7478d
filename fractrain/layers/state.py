"""State shared by all quantized layers of one model: step, seed, ledger, and what candidates of a gated block share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fractrain.cost.ledger import Ledger
from fractrain.numerics.backend import Kernels
from fractrain.numerics.stochastic_rounding import NoiseKey, NoiseTable, noise_key
from fractrain.util.seeds import derive_seed

ReduceLimits = Callable[[torch.Tensor, torch.Tensor, int | None], tuple[torch.Tensor, torch.Tensor]]


@dataclass
class CandidateScope:
    """One pass through a gated block at one candidate precision.

    While a scope is active the layers do not count themselves: each adds ``(layer, MACs per sample, has EB, has GC)``
    to ``sites``, and the block counts them times the samples that chose the candidate.

    Attributes:
        index: candidate number; part of the name that stochastic rounding depends on.
        input: the block's input.
        forward_key: passes with equal keys have equal forward values.
        memo: shared by all passes through the block in one step, so that the range of the block's input is measured
            once and passes whose forward precision is equal share their products.
        sites: what ran in this pass.
    """

    index: int
    input: torch.Tensor
    forward_key: Any
    memo: dict[Any, Any]
    sites: list[Any] = field(default_factory=list)

    def ran(self, layer: Any, macs: int, eb: bool, gc: bool) -> None:
        """Note a layer and its forward MACs in this pass.

        A layer may have other rows along its first axis than samples: windows of an image, a table for all of them.
        """
        n = len(self.input)
        self.sites.append((layer, (macs + n // 2) // n, eb, gc))


class QuantState:
    """Shared by reference between a method and its layers.

    Attributes:
        seed: seed of stochastic rounding, derived from the run's seed.
        step: current training step (0-based); stochastic rounding is a function of it.
        sample_offset: index of this process's first sample in the global batch, so that rounding does not depend on the
            number of workers.
        ledger: where executed products are counted.
        batch_samples: samples of the global batch, where it is spread over several processes; else None.
        reduce_sum: sums a tensor over the processes of the run; None on a single one.
        reduce_limits: from (low, high) of this process's part of a tensor, and its number of samples where limits are
            means over samples (else None), to the limits of the whole; None: ranges are each process's own.
        kernels: ``auto``, ``reference`` or ``fused``; all round to the same bits.
        scope: the active :class:`CandidateScope`, or None.
        table: keys of stochastic rounding on the device, while steps are recorded or about to be (see
            :mod:`fractrain.experimental.cuda_graphs`): nothing that a step does may then depend on what the host
            reads from the
            device; else None.
        passes: forward passes of the whole model so far; quantized weights are kept within one at most, since writes
            through ``weight.data`` leave no trace in a weight's version.
        trains: whether the whole model is in training mode, though parts of it may be frozen in evaluation mode.
        seen: called as ``seen(layer, MACs, elsewhere)`` for every pass through a layer while a pass of the model is
            watched; see :class:`fractrain.methods.coverage.Watch`.
        left_in_float: layers that were not converted because they are more than a plain convolution or linear layer, by
            name, each with the reason; see :func:`fractrain.layers.convert.convert`.
        kept_in_float: layers that were converted but stay in floating point, by name, each with the reason.
    """

    def __init__(self, seed: int = 0, ledger: Ledger | None = None, kernels: Kernels = "auto") -> None:
        self.seed = derive_seed(seed, "rounding")
        self.step = 0
        self.sample_offset = 0
        self.batch_samples: int | None = None
        self.reduce_sum: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.reduce_limits: ReduceLimits | None = None
        self.ledger = ledger if ledger is not None else Ledger()
        self.kernels: Kernels = kernels
        self.scope: CandidateScope | None = None
        self.table: NoiseTable | None = None
        self.passes, self.trains = 0, False
        self.seen: Callable[[Any, int, bool], None] | None = None
        self.left_in_float: dict[str, str] = {}
        self.kept_in_float: dict[str, str] = {}
        self._watched: dict[tuple[str, str], torch.Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantState:
        """The state of a copied model: the same step and seed, shared by the copy's layers alone, and counting nothing.

        Set ``ledger.enabled`` of the copy to count its work as well.
        """
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.ledger = memo.setdefault(id(self.ledger), Ledger(self.ledger.meta))
        twin.ledger.enabled = False
        twin.scope = twin.table = twin.seen = None
        twin._watched = {}
        twin.left_in_float, twin.kept_in_float = dict(self.left_in_float), dict(self.kept_in_float)
        return twin

    @property
    def recorded(self) -> bool:
        """Whether what a step does must not depend on what the host reads from the device."""
        return self.table is not None

    def noise(self, name: str, base: int = 0) -> NoiseKey:
        """Key of the rounding of one tensor in this step; ``base`` as in :class:`NoiseKey`."""
        return noise_key(self.seed, self.step, name, base) if self.table is None else self.table.key(name, base)

    @property
    def reduce_amax(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """From the largest magnitudes in this process's samples to those of the batch; None on a single process."""
        reduce = self.reduce_limits
        return None if reduce is None else lambda amax: reduce(-amax, amax, None)[1]

    def watch(self, site: str, what: str, low: torch.Tensor, high: torch.Tensor) -> None:
        """Note on the device whether limits were finite; :meth:`bad_site` reads the notes later."""
        self.note(site, what, ~(torch.isfinite(low).all() & torch.isfinite(high).all()))

    def note(self, site: str, what: str, bad: torch.Tensor) -> None:
        """Note on the device whether an operand had inf or nan (0-dim bool)."""
        noted = self._watched.get((site, what))
        if noted is None:
            self._watched[site, what] = bad.clone()
        else:
            noted.logical_or_(bad)  # in place: a recorded step finds it where it was

    def bad_site(self) -> tuple[str, str] | None:
        """First (layer, operand) whose limits were not finite since the start, or None; reads the device once."""
        if not self._watched:
            return None
        flags = torch.stack(list(self._watched.values())).tolist()
        return next((key for key, bad in zip(self._watched, flags, strict=True) if bad), None)
