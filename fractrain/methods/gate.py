"""The gate of DFQ: a small recurrent network, shared along depth, that picks each block's precision for each sample."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from fractrain.cost.ledger import FLOAT_BITS, Entry
from fractrain.layers.number_types import widened, without_autocast
from fractrain.layers.recomputation import recomputing
from fractrain.util.errors import ConfigError

PASSES = 4  # forward passes whose states are kept for activation checkpointing
State = tuple[torch.Tensor, torch.Tensor]


class Pass(NamedTuple):
    """How a training pass came to a block.

    Attributes:
        pooled: the block's pooled input, by which the pass is known again.
        state: of the LSTM, without its graph.
        graph: whether a graph was made.
    """

    pooled: torch.Tensor
    state: State | None
    graph: bool


def _no_passes(blocks: int) -> list[deque[Pass]]:
    return [deque(maxlen=PASSES) for _ in range(blocks)]


def _leaves(state: State | None) -> State | None:
    """A state without its graph, which wants a gradient where it did."""
    if state is None:
        return None
    h, c = (t.detach().requires_grad_(t.requires_grad) for t in state)
    return h, c


class GateNetwork(nn.Module):
    """One gate per block: pooled features -> C x hidden -> ReLU -> hidden x embed, then a shared LSTM and a linear.

    FracTrain's CIFAR gate (authors' code): hidden 32, embed 16, LSTM(16, 16) whose state runs along depth and starts at
    zero in every forward pass; softmax over candidates; hard choice by argmax with a straight-through gradient.

    Args:
        channels: input channels of each block.
        candidates: number of candidates K.
        hidden, embed: sizes; hidden 0 leaves one projection C x embed, as in SkipNet's gate.
        state: size of the LSTM's state; None: as embed. (FracTrain's ImageNet gate: hidden 0, embed 40, state 20.)
    """

    def __init__(
        self, channels: Sequence[int], candidates: int, hidden: int = 32, embed: int = 16, state: int | None = None
    ) -> None:
        super().__init__()
        state = embed if state is None else state
        self.channels = list(channels)
        self.features = nn.ModuleList(
            nn.Sequential(nn.Linear(c, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, embed))
            if hidden
            else nn.Linear(c, embed)
            for c in channels
        )
        self.cell = nn.LSTMCell(embed, state)
        self.head = nn.Linear(state, candidates)
        self._next = 0
        self._state: State | None = None
        self._passes = _no_passes(len(channels))
        self._init_weights()

    def _init_weights(self) -> None:
        """As FracTrain's authors: projections, 1x1 convolutions there, by their outputs; the head by both sizes.

        Torch's own, which the LSTM and all biases keep, is several times smaller: the gate would then start by choosing
        nearly the same for every sample.
        """
        for m in self.features.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0.0, math.sqrt(2.0 / m.out_features))
        nn.init.normal_(self.head.weight, 0.0, math.sqrt(2.0 / (self.head.in_features * self.head.out_features)))

    def forward(self, index: int, pooled: torch.Tensor) -> torch.Tensor:
        """Probabilities ``[N, K]`` for block ``index`` from its pooled input; see :meth:`logits`."""
        return F.softmax(self.logits(index, pooled), dim=1)

    @without_autocast
    def logits(self, index: int, pooled: torch.Tensor) -> torch.Tensor:
        """Scores ``[N, K]`` (float32 or float64) for block ``index`` from its pooled input ``[N, C]``.

        Blocks must be asked in order; block 0 starts a new pass.

        A pass that activation checkpointing runs again starts, block by block, from the state it had before.

        Raises:
            ConfigError: a block is asked out of turn, or by checkpointing that hides the gate from the loss.
        """
        pooled = pooled.to(self.head.weight.dtype)
        if recomputing():
            h, _ = self.cell(self.features[index](pooled), self._before(index, pooled))
            return widened(self.head(h))
        if index not in (0, self._next):
            raise ConfigError(
                f"gated block number {index} ran where number {self._next} was due: name the blocks in the order data "
                "flows through them, each once (MethodContext.blocks)"
            )
        self._next = (index + 1) % len(self.channels)
        if index == 0:
            self._state = None
        if self.training:
            self._passes[index].append(Pass(pooled.detach(), _leaves(self._state), torch.is_grad_enabled()))
        h, c = self.cell(self.features[index](pooled), self._state)
        self._state = (h, c)
        if index == len(self.channels) - 1:
            self._state = None  # nothing of this pass may outlive it
        return widened(self.head(h))

    def _before(self, index: int, pooled: torch.Tensor) -> State | None:
        """State in which an earlier pass came to a block with this input."""
        found = next((p for p in reversed(self._passes[index]) if torch.equal(p.pooled, pooled)), None)
        if found is None:
            raise ConfigError(f"activation checkpointing: more than {PASSES} forward passes before backward")
        if not found.graph:
            raise ConfigError(
                "activation checkpointing with use_reentrant=True hides the gates from the loss: use_reentrant=False"
            )
        return found.state

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to the last passes."""
        return {**self.__dict__, "_state": None, "_passes": _no_passes(len(self.channels))}

    def macs(self, index: int) -> int:
        """Forward MACs per sample of one block's gate."""
        cell = 4 * self.cell.hidden_size * (self.cell.input_size + self.cell.hidden_size)
        linears = [*(m for m in self.features[index].modules() if isinstance(m, nn.Linear)), self.head]
        return cell + sum(m.in_features * m.out_features for m in linears)

    def entries(self, index: int, block: str, training: bool) -> list[Entry]:
        """Ledger entries per sample: the gate runs in floating point."""
        products = ("FW", "EB", "GC") if training else ("FW",)
        name = f"{block}.gate"
        return [Entry(name, p, FLOAT_BITS, FLOAT_BITS, self.macs(index)) for p in products]  # type: ignore[arg-type]


def straight_through(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hard one-hot choice whose gradient is that of the probabilities.

    Args:
        probabilities: ``[N, K]``.

    Returns:
        (mask ``[N, K]``, exactly 0 or 1 in value; choice ``[N]`` int64).
    """
    choice = probabilities.detach().argmax(dim=1)
    return _HardMask.apply(probabilities, choice), choice


class _HardMask(torch.autograd.Function):
    """One-hot forward, identity backward.

    The authors write ``hard - p.detach() + p``, whose value is 1 only up to rounding; the gradient is the same.
    """

    @staticmethod
    def forward(ctx: object, p: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(p).scatter_(1, choice[:, None], 1.0)

    @staticmethod
    def backward(ctx: object, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None
