"""Making the gates choose what a bench wants: how long a gated step takes depends on which candidates have samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fractrain.methods.gate import GateNetwork
from fractrain.methods.gated_block import GatedBlock
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
