"""Where inf or nan came from: one more forward pass with a hook on every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fractrain.util.errors import NonFiniteError


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
