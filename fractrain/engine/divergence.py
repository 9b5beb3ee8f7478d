"""Divergence: the loss is watched for inf and nan without making a GPU wait; then the layer is found they came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn

from fractrain.util.errors import NonFiniteError

READ_EVERY_GPU: Final = 50  # reading the loss waits for the GPU; on the CPU it costs nothing


class Diverged(NonFiniteError):
    """A run whose loss, or a tensor inside a layer, became inf or nan; the message names run, step and layer."""


class BadLoss(Exception):
    """The loss of a step is not finite.

    Attributes:
        step: the first such step.
        value: the loss as last seen.
    """

    def __init__(self, step: int, value: float) -> None:
        super().__init__(step, value)
        self.step, self.value = step, value


class LossWatch:
    """Notes the first step whose loss is not finite: on the device itself, read every so many steps.

    Args:
        every: steps between two readings; None means every step on the CPU and every 50 elsewhere.

    Attributes:
        last: loss as last read, or None.
    """

    def __init__(self, device: torch.device, every: int | None = None) -> None:
        self._every = every or (1 if device.type == "cpu" else READ_EVERY_GPU)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._loss: torch.Tensor | None = None
        self.last: float | None = None

    def record_loss(self, step: int, total: torch.Tensor) -> None:
        """Note the loss of a step, before its backward pass.

        Args:
            total: what is differentiated, 0-dim.

        Raises:
            BadLoss: this is a step at which the device is read, and a loss since the last reading was not finite.
        """
        self._loss = total.detach()
        bad = (self._first_bad < 0) & ~torch.isfinite(self._loss)
        self._first_bad = torch.where(bad, step, self._first_bad)
        if (step + 1) % self._every == 0:
            self.read()

    def read(self) -> None:
        """Read the device.

        Raises:
            BadLoss: a loss since the last reading was not finite.
        """
        if self._loss is None:
            return
        self.last = float(self._loss)
        first = int(self._first_bad)
        if first >= 0:
            raise BadLoss(first, self.last)


def first_nonfinite(model: nn.Module, forward: Callable[[], object]) -> str:
    """Return the name of the first layer whose weights or output are not finite.

    Args:
        model: the model whose layers are watched; its state is put back afterwards.
        forward: runs the model on the batch in question.

    Returns:
        The layer's name; ``"loss"`` when all layers are finite, so that it came up after the last one.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            own = list(module.parameters(recurse=False))
            if not found and not all(_finite(t) for t in (*own, *_tensors(output))):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            forward()
    except NonFiniteError as error:
        return found[0] if found else error.layer
    finally:
        for handle in handles:
            handle.remove()
        for name, buffer in model.named_buffers():  # batch norm moved its running statistics
            if name in buffers:
                buffer.copy_(buffers[name])
    return found[0] if found else "loss"


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
