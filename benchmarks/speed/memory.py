"""What autograd keeps for backward: FP32 against 8-bit training of the same model, in bytes of unique storages.

    python benchmarks/speed/memory.py [--model resnet38] [--method sbm] [--batch 128] [--json]

``convolutions`` is what convolutions and linear layers ask to be kept of their *input*: float32 in FP32, integer codes
when quantized. ``weights`` is kept besides the parameters themselves (the quantized copy of each weight).
``everything`` is all that the whole model keeps, batch norm and ReLU included, each storage once. It says what training
really saves: a plain ReLU keeps its float32 output, which in FP32 is the very tensor the next convolution keeps anyway;
quantized models get one that keeps a bit per element.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fractrain.layers.conv_linear import QuantLayer
from fractrain.methods.registry import create
from fractrain.models.registry import build

LAYERS = (nn.Conv2d, nn.Linear, QuantLayer)


class SavedTensors:
    """Tensors kept for backward, by storage.

    Attributes:
        inputs, weights, others: storage address to bytes of what layers keep of their input, of weights, and the rest.
    """

    def __init__(self, model: nn.Module) -> None:
        self.inputs: dict[int, int] = {}
        self.weights: dict[int, int] = {}
        self.others: dict[int, int] = {}
        self._own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self._layer: nn.Module | None = None
        self._alive: list[torch.Tensor] = []  # an address must not be given out again while we count

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Hook of autograd: note one tensor."""
        storage = x.untyped_storage()
        if storage.data_ptr() in self._own or not storage.nbytes():
            return x
        self._alive.append(x)
        weight = None if self._layer is None else self._layer.weight
        if weight is None:
            place = self.others
        elif x.shape == weight.shape and x.dtype == weight.dtype:
            place = self.weights
        else:
            place = self.inputs
        place[storage.data_ptr()] = storage.nbytes()
        return x

    def enter(self, layer: nn.Module, *_: Any) -> None:
        """Forward hook: a layer begins."""
        self._layer = layer

    def leave(self, *_: Any) -> None:
        """Forward hook: it has ended."""
        self._layer = None

    def totals(self) -> dict[str, int]:
        """Bytes by kind; a storage that several operations keep counts once in ``everything``."""
        return {
            "convolutions": sum(self.inputs.values()),
            "weights": sum(self.weights.values()),
            "everything": sum((self.others | self.weights | self.inputs).values()),
        }


@contextmanager
def counting(model: nn.Module) -> Iterator[SavedTensors]:
    """Count what the forward passes inside keep for backward."""
    kept = SavedTensors(model)
    hooks = []
    for m in model.modules():
        if isinstance(m, LAYERS):
            hooks += [m.register_forward_pre_hook(kept.enter), m.register_forward_hook(kept.leave)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x):
            yield kept
    finally:
        for h in hooks:
            h.remove()


def kept_bytes(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """Bytes kept for backward by one forward pass in training mode.

    Args:
        model: any model of one tensor.
        x: its input.

    Returns:
        ``convolutions``, ``weights``, ``everything`` (see the module's docstring).
    """
    with counting(model.train()) as kept:
        y = model(x)
    totals = kept.totals()
    y.sum().backward()  # the graph was alive until here
    return totals


def measure(model: str = "resnet38", method: str = "sbm", batch: int = 128, size: int = 32) -> dict[str, Any]:
    """Compare FP32 with a method on one model.

    Args:
        model: registry name.
        method: registry name.
        batch: samples.
        size: height and width of the images.

    Returns:
        JSON-able: the settings, bytes by kind for ``fp32`` and the method, and the ratios FP32 / method.
    """
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    found = {}
    for name in ("fp32", method):
        net = create(name).prepare(build(model, 10, (3, size, size), seed=0))
        found[name] = kept_bytes(net.to(memory_format=torch.channels_last), x)
    ratios = {kind: found["fp32"][kind] / found[method][kind] for kind in ("convolutions", "everything")}
    return {"model": model, "method": method, "batch": batch, "size": size, "bytes": found, "ratio": ratios}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Bytes kept for backward, FP32 against a low-precision method")
    parser.add_argument("--model", default="resnet38")
    parser.add_argument("--method", default="sbm")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(args.model, args.method, args.batch)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['model']}, batch {result['batch']}, {result['size']}x{result['size']}: MiB kept for backward")
    for name, sizes in result["bytes"].items():
        print(f"  {name:10s}", *(f"{kind} {n / 2**20:8.2f}" for kind, n in sizes.items()), sep="  ")
    print("  fp32 / method:", *(f"{kind} {r:.2f}" for kind, r in result["ratio"].items()), sep="  ")


if __name__ == "__main__":
    main()
