"""The training steps that are compared: one model, synthetic data, with or without a method, gates forced or free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fractrain.cost.ledger import Ledger
from fractrain.engine.recipes import Recipe
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.methods.gate import GateNetwork
from fractrain.methods.gated_block import GatedBlock
from fractrain.methods.optimizer import make_optimizer
from fractrain.models.registry import build
from fractrain.numerics.backend import Kernels
from fractrain.util.errors import RunError

STRENGTH = 0.9  # share of the wanted choice in the probabilities; the rest keeps the gate's own gradient alive


def wanted_choices(candidates: tuple[int, ...], batch: int) -> torch.Tensor:
    """Choice of each sample, int64 ``[batch]``: the candidates in turn, so that each gets its equal part."""
    return torch.tensor(candidates)[torch.arange(batch) % len(candidates)]


def force_choices(model: nn.Module, candidates: tuple[int, ...]) -> Callable[[], None]:
    """Make every gate of the model choose ``candidates`` in turn over the samples, from now on.

    The gate itself still runs, forward and backward; what it says is only mixed with the wanted choice.

    Returns:
        A function that checks that the last step did so.

    Raises:
        RunError: the model has no gates.
    """
    gates = [m for m in model.modules() if isinstance(m, GateNetwork)]
    blocks = [m for m in model.modules() if isinstance(m, GatedBlock)]
    if not gates or not blocks:
        raise RunError("bench: the model has no gates whose choice could be set")

    def push(_gate: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        wanted = F.one_hot(wanted_choices(candidates, len(output)).to(output.device), output.shape[1])
        return (1 - STRENGTH) * output + STRENGTH * wanted.to(output.dtype)

    for gate in gates:
        gate.register_forward_hook(push)

    def check() -> None:
        for block in blocks:
            if block.choice is None or not torch.equal(
                block.choice.cpu(), wanted_choices(candidates, len(block.choice))
            ):
                raise RunError(f"bench: the gate of {block.name} could not be made to choose candidates {candidates}")

    return check


CLASSES = 10
LR = 0.01  # small: labels are random, and no run may diverge while it is timed


@dataclass(frozen=True)
class Setup:
    """What all paths of one bench share.

    Attributes:
        batch: samples per step.
        size: image height and width.
        repeats: rounds that count.
        kernels: ``auto``, ``reference`` or ``fused``.
        threads: of torch, on the CPU.
    """

    model: str
    batch: int
    size: int
    repeats: int
    device: torch.device
    kernels: Kernels = "auto"
    threads: int = 1

    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``[batch, 3, size, size]`` (standard normal, channels last), labels ``[batch]``; always the same."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
        y = torch.randint(0, CLASSES, (self.batch,), generator=generator)
        return x.to(self.device, memory_format=torch.channels_last), y.to(self.device)

    def plain(self) -> nn.Module:
        """The FP32 model."""
        return build(self.model, CLASSES, (3, self.size, self.size), seed=0)

    def recipe(self) -> Recipe:
        """Optimizer settings: the paper's, at a small learning rate."""
        return Recipe(iterations=1, batch_size=self.batch, lr=LR)


class PlainStep:
    """One FP32 training step per call: no method, no ledger.

    Args:
        memory_format: layout of model and images.
        model: instead of the plain one.
    """

    def __init__(
        self, setup: Setup, memory_format: torch.memory_format = torch.channels_last, model: nn.Module | None = None
    ) -> None:
        x, self.y = setup.data()
        self.x = x.contiguous(memory_format=memory_format)
        self.model: nn.Module = (model or setup.plain()).to(  # type: ignore[call-overload]
            device=setup.device, memory_format=memory_format
        )
        self.model.train()
        self.optimizer = make_optimizer(self.model.parameters(), setup.recipe())

    def __call__(self) -> None:
        """Do a step."""
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(self.x), self.y).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


class MethodStep:
    """One training step of a method per call, its cost term and the ledger included.

    Args:
        settings: that differ from its defaults.
        candidates: which ones the gates are made to choose, in turn over the samples; None: the gates decide.
    """

    def __init__(
        self, setup: Setup, method: str, settings: Mapping[str, Any] | None = None,
        candidates: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        self.x, self.y = setup.data()
        self.ledger = Ledger()
        self.method = registry.create(method, settings)
        context = MethodContext(batch_size=setup.batch, ledger=self.ledger)
        model = self.method.prepare(setup.plain(), context)
        self.method.state.kernels = setup.kernels
        self.model: nn.Module = model.to(  # type: ignore[call-overload]
            device=setup.device, memory_format=torch.channels_last
        )
        self.model.train()
        self.check: Callable[[], None] = lambda: None
        if candidates is not None:
            self.check = force_choices(self.model, candidates)
        self.optimizer = self.method.optimizer(self.model.parameters(), setup.recipe())
        self.ledger.begin("train", 0)
        self.method.on_epoch_start(0)
        self.step = 0

    def __call__(self) -> None:
        """Do a step."""
        self.method.on_step_start(self.step)
        self.ledger.samples(len(self.y))
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(self.x), self.y)
        extra = self.method.extra_loss()
        (loss if extra is None else loss + extra).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.method.on_step_end(self.step, loss.detach(), None if extra is None else extra.detach())
        self.step += 1
