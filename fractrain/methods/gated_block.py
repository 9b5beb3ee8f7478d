"""A residual block that runs at several candidate precisions and keeps, for each sample, the one its gate chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from fractrain.cost.ledger import Entry
from fractrain.layers.conv_linear import QuantLayer
from fractrain.layers.convert import quant_layers
from fractrain.layers.eager import eager
from fractrain.layers.recomputation import recomputing
from fractrain.layers.state import CandidateScope, QuantState
from fractrain.methods.block_call import BlockWrapper, Call, Output, combined, pooled
from fractrain.methods.depthwise import is_depthwise
from fractrain.methods.gate import GateNetwork, straight_through
from fractrain.methods.select import chosen_only, mix, per_sample
from fractrain.numerics.precision import Precision

Finish = Callable[[], Any]
RANDOM_TYPES = ("StochasticDepth", "DropPath")


@dataclass(frozen=True)
class Candidate:
    """One precision a gate can choose: activation, weight and error width."""

    a: int
    w: int
    e: int

    def cost(self) -> float:
        """FW + EB + GC cost as fractions of 32 x 32 bit products: (a w + e w + a e) / 1024 (FracTrain, section 3.2)."""
        return (self.a * self.w + self.e * self.w + self.a * self.e) / 1024


class GatedBlock(BlockWrapper):
    """Wraps a block whose convolutions are quantized layers.

    Training computes the block at every *distinct* forward precision (the gate's gradient needs every candidate's
    output), and goes backward only through candidates that some sample chose; the gradient of the others is exactly
    zero, because their mask is. Candidates that differ only in the error's width share their forward products (not in
    blocks with dropout: there every pass draws its own mask).
    BatchNorm's running statistics are updated once per distinct forward precision, from the whole batch. Evaluation
    computes each sample at its own precision only; where other arguments than the input have as many rows as there are
    samples, it cannot know whether these are the samples' (of a mask they may be words), so that the whole batch runs
    at each chosen precision and each sample's row is taken.

    With ``selected`` training does so, too: one pass, each sample quantized at its own widths. What that changes:

    * activations share one range per layer as before, but beyond the block's first layers, and for every error, it is
      that of the mixed batch, not of the whole batch at one precision; stochastic rounding draws other numbers;
    * BatchNorm takes its statistics from the mixed batch and updates the running ones once per step;
    * samples add nothing to the gradients of candidates they did not choose (computed in full, such samples do, through
      BatchNorm's statistics and because zeros are moved to the error's grid);
    * the gate's mask gets <dL/d out, out> in the column of the chosen candidate and zero in the others: it learns from
      the cost term and from the candidates it chooses, and no longer what another one would have done.

    Args:
        block: the block.
        name: its name in the model.
        index: position among the gated blocks.
        gate: the shared gate network (registered elsewhere, once).
        candidates: what can be chosen.
        precisions: precision of the block's layers for each candidate.
        state: shared state.
        every_pass: run every candidate in full, as the authors' code does (BatchNorm's running statistics then change
            once per candidate); slower, same outputs and gradients. Without effect on ``selected``.
        constant: precision of the block's depthwise convolutions whatever the gate says; None: they are gated, too.
        selected: train each sample at its chosen precision only; candidates then differ in widths of A and E alone.

    Attributes:
        mask, choice: of the last forward pass, ``[N, K]`` with the gate's gradient and ``[N]``.
        shares_batch: whether the passes of the last evaluation saw the batch in parts.
        constant_share: share (0..1) of the block's MACs, as last run, that ``constant`` holds for; layers in floating
            point are left out.
    """

    def __init__(
        self, block: nn.Module, name: str, index: int, gate: GateNetwork, candidates: Sequence[Candidate],
        precisions: Sequence[Precision], state: QuantState, every_pass: bool = False,
        constant: Precision | None = None, selected: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(block, name, index, gate, state)
        self.candidates = list(candidates)
        self.precisions = list(precisions)
        self.every_pass = every_pass
        self.constant = constant
        self.selected = selected
        self.constant_share = 0.0
        for layer in quant_layers(block):
            layer.gated = True
        self._kept = frozenset(layer.site for layer in quant_layers(block) if layer.precision.is_float)
        # Each pass through a block that draws random numbers has forward values of its own: nothing can be shared.
        self._random = any(isinstance(m, _DropoutNd) or type(m).__name__ in RANDOM_TYPES for m in block.modules())
        self.shares_batch = True
        self.mask: torch.Tensor | None = None
        self.choice: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the last choice: it belongs to a graph, and graphs can be neither copied nor pickled."""
        return {**self.__dict__, "mask": None, "choice": None}

    @eager
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns, each sample ``[N, ...]`` at the precision its gate chose."""
        call = self.call(args, kwargs)
        x = call.input
        if x.dim() == 4 and call.axis == 1:
            x = x.contiguous(memory_format=torch.channels_last)
        mask, choice = straight_through(self._gate[0](self.index, pooled(x, call.axis)))
        if not recomputing():
            self.mask, self.choice = mask, choice
        counts = self._counts(choice)
        self.shares_batch = not self.training and not call.further
        if self.training and self.selected:
            finish, sites = self._train_selected(call, x, mask, choice)
        elif self.training:  # candidates that a sample of any process chose run on all of them: they share statistics
            finish, sites = self._train(call, x, mask, choice, self._live(counts))
        else:
            finish, sites = self._evaluate(call, x, choice, counts.tolist())
        held = sum(macs for layer, macs, *_ in sites if is_depthwise(layer)) if self.constant else 0
        quantized = sum(macs for layer, macs, *_ in sites if layer.site not in self._kept)
        self.constant_share = held / quantized if held else 0.0
        self._count(call, counts, sites)
        return finish()  # last: activation checkpointing breaks off where nothing more is needed for backward

    def _counts(self, choice: torch.Tensor) -> torch.Tensor:
        """How many samples chose each candidate, int64 ``[K]``."""
        every = torch.arange(len(self.candidates), device=choice.device)
        return (choice[:, None] == every).sum(0)  # bincount would wait for the device

    def _live(self, counts: torch.Tensor) -> list[int]:
        """How many samples of all processes chose each candidate; in a recorded step, which must not ask, one each.

        The gradient of a candidate that none chose is zero, and computed as such then.
        """
        if self.state.recorded:
            return [1] * len(self.candidates)
        whole = counts if self.state.reduce_sum is None else self.state.reduce_sum(counts)
        return whole.tolist()

    def _held(self, layer: nn.Module) -> Precision | None:
        """Precision of a layer that the gate has no say in: depthwise, or left in floating point."""
        if getattr(layer, "site", None) in self._kept:
            return Precision()
        return self.constant if self.constant is not None and is_depthwise(layer) else None

    def precisions_of(self, layer: nn.Module) -> list[Precision]:
        """Precisions that one layer of the block may have: one if it is held, else one per candidate."""
        return [self._precision(layer, k) for k in range(1 if self._held(layer) else len(self.candidates))]

    def _precision(self, layer: nn.Module, k: int) -> Precision:
        """Precision of one layer for candidate ``k``."""
        return self._held(layer) or self.precisions[k]

    def _groups(self) -> dict[Any, list[int]]:
        """Candidates by what decides their forward values."""
        groups: dict[Any, list[int]] = {}
        for k, c in enumerate(self.candidates):
            alone = self.training and (self.every_pass or self._random)
            groups.setdefault(k if alone else (c.a, c.w), []).append(k)
        return groups

    def _train(
        self, call: Call, x: torch.Tensor, mask: torch.Tensor, choice: torch.Tensor, counts: list[int]
    ) -> tuple[Finish, list[Any]]:
        """What makes the output of every sample at its choice from those of every candidate, and what ran."""
        outs: list[Output | None] = [None] * len(self.candidates)
        sites: list[Any] = []
        memo: dict[Any, Any] = {}
        for key, members in self._groups().items():
            live = [k for k in members if counts[k] or self.every_pass]
            for k in live:
                before = self._random_state(x.device)
                with frozen_statistics(self.block, k != live[0]):
                    outs[k], ran = self._run(k, call, CandidateScope(k, x, key, memo))
                sites = sites or ran
                if before is not None and not torch.equal(before, cast(torch.Tensor, self._random_state(x.device))):
                    _drop_products(memo)  # a function of the block's code drew numbers: the next pass has its own
            if not live:  # only its output is needed, for the gate's gradient
                with torch.no_grad():
                    outs[members[0]], _ = self._run(members[0], call, CandidateScope(members[0], x, key, memo))
            _drop_products(memo)  # of no use to the next group
            shared = next(o for k in members if (o := outs[k]) is not None).detached()
            for k in members:
                outs[k] = shared if outs[k] is None else outs[k]

        def chosen(values: list[torch.Tensor]) -> torch.Tensor:
            if not values[0].is_floating_point():
                return torch.stack(values)[choice, torch.arange(len(choice), device=choice.device)]
            return mix(mask, choice, values, self.state.kernels)

        first = next((k for k, count in enumerate(counts) if count), 0)  # with a graph, which others have not
        return partial(combined, [o for o in outs if o is not None], chosen, self.title, first), sites

    def _random_state(self, device: torch.device) -> torch.Tensor | None:
        """State of the generator that dropout draws from; None in a recorded step, which cannot be asked."""
        if self.state.recorded:
            return None
        if device.type == "cpu":
            return torch.get_rng_state()
        generators: Any = getattr(torch, device.type, None)  # None for devices that draw no numbers, as meta
        return None if generators is None else cast(torch.Tensor, generators.get_rng_state(device))

    def _train_selected(
        self, call: Call, x: torch.Tensor, mask: torch.Tensor, choice: torch.Tensor
    ) -> tuple[Finish, list[Any]]:
        """What makes the output of every sample at its choice, and what ran."""
        mixed = per_sample(self.precisions, choice)
        scope = CandidateScope(0, x, "selected", {})
        out, sites = self._pass(lambda layer: self._held(layer) or mixed, call, scope)

        def learning(values: list[torch.Tensor]) -> torch.Tensor:
            if not values[0].is_floating_point():
                return values[0]
            return chosen_only(mask, choice, values[0], self.state.kernels)

        return partial(combined, [out], learning, self.title), sites

    def _evaluate(
        self, call: Call, x: torch.Tensor, choice: torch.Tensor, counts: list[int]
    ) -> tuple[Finish, list[Any]]:
        """What makes the output of every sample at its choice, and what ran."""
        outs: list[Output] = []
        places: list[torch.Tensor] = []
        sites: list[Any] = []
        for key, members in self._groups().items():
            if not any(counts[k] for k in members):
                continue
            chosen = sum((choice == k for k in members[1:]), choice == members[0])
            rows = chosen.nonzero().squeeze(1)
            scope = CandidateScope(members[0], x[rows] if self.shares_batch else x, key, {})
            part, ran = self._run(members[0], call, scope)
            sites = sites or ran
            outs.append(part)
            places.append(rows)

        def joined(values: list[torch.Tensor]) -> torch.Tensor:
            out = values[0].new_empty((len(x), *values[0].shape[1:]))
            for rows, part in zip(places, values, strict=True):
                out[rows] = part if self.shares_batch else part[rows]
            return out

        return partial(combined, outs, joined, self.title), sites

    def _run(self, k: int, call: Call, scope: CandidateScope) -> tuple[Output, list[Any]]:
        return self._pass(lambda layer: self._precision(layer, k), call, scope)

    def _pass(
        self, precision: Callable[[nn.Module], Precision], call: Call, scope: CandidateScope
    ) -> tuple[Output, list[Any]]:
        for layer in quant_layers(self.block):
            layer.precision = precision(layer)
        self.state.scope = scope
        try:
            return Output.of(call.run(self.block, scope.input), len(scope.input), self.title), scope.sites
        finally:
            self.state.scope = None

    def _count(self, call: Call, counts: torch.Tensor, sites: list[Any]) -> None:
        ledger = self.state.ledger
        if not ledger.enabled:
            return
        again = recomputing()
        learns = (self.training or self.state.trains) and not again
        sites = [(layer, macs, eb and learns, gc and learns) for layer, macs, eb, gc in sites]
        ran = "".join(f"{'E' if eb else ''}{'G' if gc else ''}." for _, _, eb, gc in sites)  # frozen layers, no_grad
        works = tuple(f"{self.name}#{k}|{c.a},{c.w},{c.e}|{call.shape}|{ran}" for k, c in enumerate(self.candidates))

        def define(k: int) -> list[Entry]:
            own: list[Entry] = []
            for layer, macs, eb, gc in sites:
                assert isinstance(layer, QuantLayer)
                own += layer.entries(self._precision(layer, k), macs, eb, gc)
            return own

        gate, train = self._gate[0], learns and self.training and torch.is_grad_enabled()
        with ledger.during("recompute" if again else ledger.phase):
            ledger.count_selected(works, counts, define)
            samples = len(call.input)
            ledger.count(f"{self.name}.gate|{train}", samples, lambda: gate.entries(self.index, self.name, train))


def _drop_products(memo: dict[Any, Any]) -> None:
    """Forget products that candidates share."""
    for name in [name for name in memo if name[0] == "product"]:
        del memo[name]


@contextmanager
def frozen_statistics(block: nn.Module, frozen: bool) -> Iterator[None]:
    """Keep normalisation layers from updating their running statistics."""
    layers = [m for m in block.modules() if frozen and getattr(m, "track_running_stats", False)]
    before = [m.momentum for m in layers]
    try:
        for m in layers:
            m.momentum = 0.0  # type: ignore[assignment]
        yield
    finally:
        for m, momentum in zip(layers, before, strict=True):
            m.momentum = momentum
