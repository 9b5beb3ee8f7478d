"""What watching for products outside of layers costs a training step: two sessions in turn, one without the watching.

    python benchmarks/speed/watching.py [--model resnet38] [--method sbm] [--batch 16] [--pairs 40]

A session watches its first forward pass, and asks before every later one whether it has. The ratio is that of the
medians; the quartiles of the ratios of pairs say how far it can be trusted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

import fractrain
from fractrain.models.registry import build


def trainer(model: str, method: str, batch: int, watched: bool) -> Callable[[], float]:
    """A function that makes one training step and returns its processor seconds."""
    torch.manual_seed(0)
    session = fractrain.attach(method, build(model, 10, (3, 32, 32)), seed=0)
    if not watched:
        hooks = session.model._forward_pre_hooks
        (watch,) = [key for key, hook in hooks.items() if getattr(hook, "__name__", "") == "_watch"]
        del hooks[watch]
        session._meter.after = lambda *_: False
    optimizer = torch.optim.SGD(session.model.parameters(), lr=0.01)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> float:
        started = time.process_time()
        optimizer.zero_grad()
        session.loss(F.cross_entropy(session.model(x), y)).backward()
        optimizer.step()
        session.step()
        return time.process_time() - started

    for _ in range(3):  # the first pass is watched, kernels are compiled
        step()
    return step


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet38")
    parser.add_argument("--method", default="sbm")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    watched, plain = (trainer(args.model, args.method, args.batch, on) for on in (True, False))
    pairs = []
    for i in range(args.pairs):  # who goes first changes, so that neither profits
        pairs.append((watched(), plain()) if i % 2 else (plain(), watched())[::-1])
    with_it, without = (statistics.median(side) for side in zip(*pairs, strict=True))
    low, _, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    print(f"{args.method} on {args.model}, batch {args.batch}, one thread, {args.pairs} pairs")
    print(f"with {with_it:.4f} s, without {without:.4f} s: {with_it / without:.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
