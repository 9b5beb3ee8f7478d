"""How close is a run on two processes to the same run on one?

    python benchmarks/equality/two_ranks.py [--model resnet38] [--steps 1 5] [--out results/bench/two_ranks.json]

Trains a model on the embedded 8x8 digits on the CPU, on one process and on two (gloo, started by torchrun), and
compares after so many steps: weights and BatchNorm statistics tensor by tensor, training losses, and the ledger.
Batches of 63 images, so that the shares differ (31 and 32). The single process computes BatchNorm once as it always
does (``own``: torch's, or the compiled one of quantized models) and once as several processes do (``shared``): what
remains then is the order of the sums over samples.

Figures: ``weights`` is the largest difference of an element, by the largest element of its tensor, over all tensors
(a tensor of small numbers, such as a bias after a few steps, counts like any other), and ``where`` names the tensor;
``weights_norm`` is the norm of the difference of all parameters by the norm of what training has changed in them;
``loss`` is the largest relative difference of a step's loss; ``ledger`` says whether the digests are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fractrain.distributed.batch_norm import replace_norms
from fractrain.distributed.ranks import Ranks, connect
from fractrain.engine import loop as loop_module
from fractrain.engine.config import RunConfig
from fractrain.engine.environment import cpu_model
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.site import Site
from fractrain.util.files import atomic_write

METHODS = ("fp32", "static8", "sbm", "pfq", "dfq", "fractrain")
BATCH = 63
START = "start"

State = dict[str, torch.Tensor]


def trained(method: str, model: str, steps: list[int], ranks: Ranks) -> dict[str, Any]:
    """Weights before training and after each of ``steps``, all losses, and the ledger's digest at the end."""
    recipe = {"batch_size": BATCH, "iterations": max(steps), "val_fraction": 0.0}
    config = RunConfig.create(method=method, model=model, dataset="digits", recipe=recipe)
    states, losses, before = {}, [], 0.0
    with torch.random.fork_rng(devices=[]):
        loop = TrainingLoop(config, Site(), ranks=ranks)
        states[START] = weights(loop)
        while loop.step < max(steps):
            loop.advance()
            losses.append(float(loop.loss_sum) - before)
            before = float(loop.loss_sum)
            if loop.step in steps:
                states[str(loop.step)] = weights(loop)
    ranks.sum_ledger(loop.ledger)
    names = [name for name, _ in loop.model.named_parameters()]
    return {"states": states, "parameters": names, "losses": losses, "ledger": loop.ledger.digest()}


def weights(loop: TrainingLoop) -> State:
    """Floating-point state of the model, copied."""
    return {n: v.detach().double().clone() for n, v in loop.model.state_dict().items() if v.is_floating_point()}


def compared(one: dict[str, Any], two: dict[str, Any], step: str) -> dict[str, Any]:
    """The figures after ``step`` steps."""
    start, a, b = one["states"][START], one["states"][step], two["states"][step]
    if a.keys() != b.keys():
        raise ValueError(f"the two runs keep other tensors: {sorted(a.keys() ^ b.keys())}")
    far = {n: float((a[n] - b[n]).abs().max() / a[n].abs().max().clamp(min=1e-12)) for n in a}
    moved = sum(float((a[n] - start[n]).square().sum()) for n in one["parameters"])
    apart = sum(float((a[n] - b[n]).square().sum()) for n in one["parameters"])
    losses = zip(one["losses"][: int(step)], two["losses"][: int(step)], strict=True)
    worst = max(far, key=lambda name: far[name])
    return {
        "weights": far[worst],
        "where": worst,
        "weights_norm": (apart / moved) ** 0.5,
        "loss": max(abs(x - y) / abs(x) for x, y in losses),
        "ledger": one["ledger"] == two["ledger"],
    }


def on_two(model: str, steps: list[int]) -> dict[str, Any]:
    """Every method's run on two processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "two.pt"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [__file__, "--model", model, "--steps", *map(str, steps), "--worker", str(out)]
        subprocess.run([sys.executable, *launcher, *command], check=True)
        found: dict[str, Any] = torch.load(out)
        return found


def work(model: str, steps: list[int], out: Path) -> None:
    """What each of the two processes does."""
    with connect("cpu") as ranks:
        found = {method: trained(method, model, steps, ranks) for method in METHODS}
        if ranks.is_main:
            torch.save(found, out)


def measure(model: str, steps: list[int]) -> dict[str, Any]:
    """All figures, by method, BatchNorm of the single process, and step."""
    two, rows = on_two(model, steps), []
    alone = Ranks(torch.device("cpu"))
    for method in METHODS:
        for norms in ("own", "shared"):
            with patch.object(
                loop_module, "synchronise_norms", replace_norms if norms == "shared" else loop_module.synchronise_norms
            ):
                one = trained(method, model, steps, alone)
            for step in steps:
                rows.append({"method": method, "norms": norms, "steps": step, **compared(one, two[method], str(step))})
    return {
        "benchmark": "two_ranks", "model": model, "dataset": "digits", "batch": BATCH, "processes": 2,
        "torch": torch.__version__, "cpu": cpu_model(), "rows": rows,
    }  # fmt: skip


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet38")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        work(options.model, options.steps, options.worker)
        return
    text = json.dumps(measure(options.model, options.steps), indent=2) + "\n"
    if options.out:
        atomic_write(options.out, text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
