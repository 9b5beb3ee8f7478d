"""What the ledger and the gates cost per training step, in this process, on this machine.

    python benchmarks/speed/overhead.py [--size 32] [--batch 128] [--rounds 10]

Two figures for each: the *direct* share (time spent inside the calls, by wrapping them with a clock) and, for the
ledger, the *paired* ratio of a step with it to a step without (interleaved, order reversed every other round, medians).
The direct share is the sharper one: a per mille is far below the step-to-step noise of a shared machine. Writes JSON to
stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fractrain.cost.ledger import Ledger
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.registry import build


class Clock:
    """Adds up the time spent inside wrapped calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, owner: Any, name: str) -> None:
        """Replace ``owner.name`` by a timed version."""
        call = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(owner, name, timed)


def stepper(method_name: str, size: int, batch: int) -> tuple[Callable[[], None], Any, Ledger, torch.nn.Module]:
    """A function that does one training step, with the method, ledger and model it uses."""
    method = registry.create(method_name)
    ledger = Ledger()
    model = build("resnet38", 10, (3, size, size))
    model = method.prepare(model, MethodContext(batch_size=batch, ledger=ledger))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,), generator=generator)
    step = 0

    def run() -> None:
        nonlocal step
        method.on_step_start(step)
        ledger.samples(batch)
        loss = F.cross_entropy(model(x), y)
        extra = method.extra_loss()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        optimizer.zero_grad()
        method.on_step_end(step, loss.detach(), extra)
        step += 1

    return run, method, ledger, model


def timed(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ledger_overhead(method_name: str, size: int, batch: int, rounds: int) -> dict[str, float]:
    """Paired ratio (median and quartiles of on/off) and direct share of the ledger in a step."""
    run, _, ledger, _ = stepper(method_name, size, batch)
    clock = Clock()
    for name in ("count", "count_selected", "samples"):
        clock.wrap(ledger, name)
    for _ in range(2):
        run()
    ratios, shares, steps = [], [], []
    for i in range(rounds):
        seconds = {}
        for enabled in (True, False) if i % 2 else (False, True):
            ledger.enabled = enabled
            clock.seconds = 0.0
            seconds[enabled] = timed(run)
            if enabled:
                shares.append(clock.seconds / seconds[True])
        ratios.append(seconds[True] / seconds[False])
        steps.append(seconds[True])
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "step_seconds": statistics.median(steps),
        "paired_ratio": statistics.median(ratios), "paired_ratio_q1": low, "paired_ratio_q3": high,
        "direct_share": statistics.median(shares),
    }  # fmt: skip


def gate_overhead(size: int, batch: int, rounds: int) -> dict[str, float]:
    """Share of the gates' forward passes in a FracTrain step by time, and in forward MACs by the ledger."""
    from fractrain.cost.metrics import gate_overhead as counted

    run, _, ledger, model = stepper("fractrain", size, batch)
    clock = Clock()
    clock.wrap(model.get_submodule("precision_gate"), "forward")
    for _ in range(2):
        run()
    shares = []
    for _ in range(rounds):
        clock.seconds = 0.0
        seconds = timed(run)
        shares.append(clock.seconds / seconds)
    return {"time_share_forward": statistics.median(shares), "mac_share_forward": counted(ledger)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="image height and width")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    a = parser.parse_args()
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "size": a.size, "batch": a.batch}
    for name in ("sbm", "fractrain"):
        result[f"ledger_{name}"] = ledger_overhead(name, a.size, a.batch, a.rounds)
    result["gate_fractrain"] = gate_overhead(a.size, a.batch, a.rounds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
