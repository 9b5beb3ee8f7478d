"""Count the Python calls of a quantized layer and of a training step: python benchmarks/speed/calls.py [--json].

A forward and a backward pass of one ``QuantConv2d`` under ``sbm`` (by the paths this machine takes, and by the plain
one), and the backward pass of a ResNet-38 under ``fractrain``. Counts say how far a reader has to walk, and what Python
costs where tensors are small; they do not depend on the machine's speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import fractrain
from fractrain.models.registry import build

PACKAGE = Path(fractrain.__file__).parent


@dataclass
class Count:
    """What was called.

    Attributes:
        calls: of Python functions, PyTorch's own included.
        own: of them, those of this package.
        functions: different ones of this package.
        files: that these are in.
        changes: of the file from one such call to the next.
    """

    calls: int = 0
    own: int = 0
    functions: int = 0
    files: int = 0
    changes: int = 0


@contextmanager
def counted(into: Count) -> Iterator[None]:
    """Count calls of Python functions in this thread (a CPU's backward pass runs in it)."""
    codes: list[Any] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            codes.append(frame.f_code)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
    own = [c for c in codes if Path(c.co_filename).is_relative_to(PACKAGE)]
    files = [c.co_filename for c in own]
    into.calls, into.own, into.functions, into.files = len(codes), len(own), len(set(own)), len(set(files))
    into.changes = sum(a != b for a, b in pairwise(files))


def passes(model: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[Count, Count]:
    """Forward and backward of the second step of a model: the first compiles and probes kernels, unwatched."""
    forward, backward = Count(), Count()
    for step in range(2):
        with counted(forward) if step else nullcontext():
            y = model(x)
        total: Any = loss(y)
        with counted(backward) if step else nullcontext():
            total.backward()
    return forward, backward


def count() -> dict[str, dict[str, int]]:
    """All counts, by what was counted."""
    torch.manual_seed(0)  # first weights decide which candidates are chosen
    gen = torch.Generator().manual_seed(0)
    out = {}
    for kernels in ("auto", "reference"):
        convs = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)]
        session = fractrain.attach("sbm", nn.Sequential(*convs, nn.Flatten(), nn.Linear(16384, 2)))
        session.method.state.kernels = kernels
        layer = session.model[1]
        x = torch.randn(8, 16, 32, 32, generator=gen).contiguous(memory_format=torch.channels_last).requires_grad_()
        forward, backward = passes(layer, torch.Tensor.sum, x)
        out[f"QuantConv2d, {kernels}: forward"], out[f"QuantConv2d, {kernels}: backward"] = forward, backward
    session = fractrain.attach("fractrain", build("resnet38", 10, (3, 32, 32)).to(memory_format=torch.channels_last))
    x = torch.randn(16, 3, 32, 32, generator=gen).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (16,), generator=gen)
    _, backward = passes(session.model, lambda out: session.loss(F.cross_entropy(out, y)), x)
    out["ResNet-38 under fractrain: backward"] = backward
    return {name: asdict(c) for name, c in out.items()}


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description="Count the Python calls of quantized layers.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    found = count()
    if parser.parse_args().json:
        print(json.dumps(found, indent=1))
        return
    for name, c in found.items():
        print(f"{name}: {c['calls']} calls, {c['own']} of them of {c['functions']} functions of this package "
              f"in {c['files']} files, {c['changes']} changes of file")  # fmt: skip


if __name__ == "__main__":
    main()
