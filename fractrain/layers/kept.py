"""What a step keeps for backward: bytes that autograd holds, and bytes per element of the quantized activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fractrain.layers.base import Backward, QuantLayer


@contextmanager
def keeping(model: nn.Module) -> Iterator[dict[int, int]]:
    """Collect what autograd saves inside the block: bytes by storage, parameters and buffers of the model left out."""
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


def kept_bytes(step: Callable[[], object], model: nn.Module) -> int:
    """Bytes held for backward in one step."""
    with keeping(model) as kept:
        step()
    return sum(kept.values())


def kept_per_element(step: Callable[[], object], model: nn.Module) -> float | None:
    """Bytes kept per element of the activations that one step keeps quantized; None where it keeps none."""
    sizes: list[tuple[int, int]] = []

    def seen(layer: QuantLayer, backward: Backward) -> None:
        if backward.activation is not None:
            sizes.append((backward.activation.nbytes(), layer.shapes["A"].numel()))

    layers = [m for m in model.modules() if isinstance(m, QuantLayer)]
    for layer in layers:
        layer.backward_observer = seen
    try:
        step()
    finally:
        for layer in layers:
            layer.backward_observer = None
    return sum(size for size, _ in sizes) / sum(count for _, count in sizes) if sizes else None
