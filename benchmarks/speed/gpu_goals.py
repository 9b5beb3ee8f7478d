"""The goals for a GPU, as ratios and minutes measured in one run; for an H200 or the like.

    python benchmarks/speed/gpu_goals.py [--device cuda] [--repeats 30] [--seconds 20] [--runs 4,8] [--out FILE]

* ``against_bf16``: a training step of ``sbm`` (static 8 bits) against one in bf16 (``torch.autocast`` around the plain
  model, weights in float32), ResNet-18 at 224x224 and Transformer-base: paired, interleaved, medians with quartiles.
  Below 1, 8 bits are faster.
* ``paper_run``: minutes of the paper's run (ResNet-38 on CIFAR-10), its number of iterations times the median step;
  evaluations are not in it.
* ``side_by_side``: steps per second of several runs of ResNet-38 at once on one device, each a process, over those of
  one alone.

All go through the real training loop on random data in the shape of the paper's sets; steps are recorded as CUDA graphs
where a run would record them, the bf16 ones as well. Writes JSON, by default to stdout. ``--quick`` tries everything
on small batches of one small model, only to see that it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fractrain.bench.timing import interleaved, median, quartiles, ratios
from fractrain.engine import environment
from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.registries import Registries
from fractrain.engine.site import Site
from fractrain.experimental.cuda_graphs import SETTLED, recorder_for
from fractrain.plan.calibrate import RandomRegistries
from fractrain.util.files import atomic_write

AGAINST_BF16 = (("resnet18", "imagenet", 64), ("transformer_base", "wikitext103", 8))
PAPER_RUN = (("sbm", 6.0), ("fractrain", 20.0))  # minutes aimed at
PAPER = ("resnet38", "cifar10", 128)
QUICK = ("resnet38", "cifar10", 2)
WARM_UP = SETTLED + 3  # first steps try kernels; then one records, and one is checked


class Bf16(RandomRegistries):
    """Models whose forward pass runs under autocast to bf16."""

    def __init__(self, known: Registries, device: torch.device) -> None:
        super().__init__(known)
        self._device = device

    def model(self, name: str, dataset: str, seed: int) -> torch.nn.Module:
        """As known, under autocast; casts are not kept between calls, which a recording could not know of."""
        model = super().model(name, dataset, seed)
        cast = torch.autocast(self._device.type, torch.bfloat16, cache_enabled=False)
        model.forward = cast(model.forward)
        return model


def loop_of(method: str, case: tuple[str, str, int], device: torch.device, bf16: bool = False) -> TrainingLoop:
    """A run's training loop on random data."""
    model, dataset, batch = case
    config = RunConfig.create(
        method=method, model=model, dataset=dataset, profile="paper", recipe={"batch_size": batch, "eval_every": 0}
    )
    known = Bf16(Registries(), device) if bf16 else RandomRegistries(Registries())
    return TrainingLoop(config, Site(device=str(device)), known, recorder=recorder_for(device))


def against_bf16(case: tuple[str, str, int], device: torch.device, repeats: int) -> dict[str, Any]:
    """Steps of ``sbm`` and of bf16, in turn."""
    ours, theirs = loop_of("sbm", case, device), loop_of("fp32", case, device, bf16=True)
    path, base = interleaved((ours.advance, theirs.advance), device, repeats, lambda: None, WARM_UP)
    each = ratios(path, base)
    return {
        "model": case[0], "batch": case[2], "goal": 1.0, "ratio": median(each), "spread": quartiles(each),
        "sbm_s": median(path), "bf16_s": median(base),
    }  # fmt: skip


def paper_run(method: str, goal: float, case: tuple[str, str, int], device: torch.device, repeats: int) -> Any:
    """Median step of one run, and the minutes of its iterations."""
    loop = loop_of(method, case, device)
    (times,) = interleaved((loop.advance,), device, repeats, lambda: None, WARM_UP)
    step = statistics.median(times)
    minutes = step * loop.clock.total / 60
    return {"method": method, "model": case[0], "batch": case[2], "iterations": loop.clock.total, "step_s": step,
            "spread_s": quartiles(times), "minutes": minutes, "goal_minutes": goal}  # fmt: skip


def side_by_side(runs: int, case: tuple[str, str, int], device: torch.device, seconds: float) -> float:
    """Steps per second of so many processes together."""
    job = json.dumps([*case, str(device), seconds])
    command = [sys.executable, __file__, "--child", job]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(runs)
    ]
    try:
        for child in children:  # all are ready before any starts
            if _line(child) != "ready":
                raise RuntimeError("a process of side_by_side has failed; its message is above")
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return sum(float(_line(child)) for child in children)
    finally:
        for child in children:
            child.kill()
            child.wait()


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def work(job: str) -> None:
    """A child: be ready, wait, and tell steps per second."""
    model, dataset, batch, name, seconds = json.loads(job)
    device = torch.device(name)
    torch.set_num_threads(1)
    loop = loop_of("sbm", (model, dataset, batch), device)
    for _ in range(WARM_UP):
        loop.advance()
    _wait_for(device)
    print("ready", flush=True)
    sys.stdin.readline()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        loop.advance()
        _wait_for(device)
        steps += 1
    print(steps / (time.perf_counter() - start), flush=True)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement side by side")
    parser.add_argument("--runs", default="4,8", help="how many side by side")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        work(args.child)
        return
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --quick only tries the script")
    quick = args.quick
    repeats, seconds = (2, 1.0) if quick else (args.repeats, args.seconds)
    small = QUICK if quick else PAPER
    print("against bf16 ...", file=sys.stderr)
    beside = [against_bf16(case, device, repeats) for case in ((QUICK,) if quick else AGAINST_BF16)]
    print("paper's runs ...", file=sys.stderr)
    paper = [paper_run(method, goal, small, device, repeats) for method, goal in PAPER_RUN]
    print("side by side ...", file=sys.stderr)
    alone = side_by_side(1, small, device, seconds)
    counts = [2] if quick else [int(n) for n in args.runs.split(",")]
    many = [(n, side_by_side(n, small, device, seconds)) for n in counts]
    found = {
        "benchmark": "gpu_goals", "quick": quick, "machine": environment.capture(device),
        "against_bf16": beside, "paper_run": paper,
        "side_by_side": {
            "goal": 2.5, "alone_steps_per_s": alone,
            "runs": [{"runs": n, "steps_per_s": total, "throughput": total / alone} for n, total in many],
        },
    }  # fmt: skip
    text = json.dumps(found, indent=2) + "\n"
    if args.out is None:
        print(text, end="")
    else:
        atomic_write(args.out, text.encode())
        print(f"written: {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
