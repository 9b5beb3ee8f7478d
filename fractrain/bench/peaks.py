"""Peak memory of every model under a method, next to FP32: each pair in a process of its own, through the real loop.

Input is random, in the shape of the paper's data set; batches are what one machine of a few cores trains with. Three
figures, from the narrowest to the widest:

* ``kept`` is what autograd holds for backward at the end of the forward pass (each storage once, parameters not
  counted): the part that quantized activations are about;
* ``tensors`` is the peak of all tensors of one step above those at its start, passing copies included: what
  ``torch.cuda.max_memory_allocated`` would tell on a GPU;
* ``peak`` is that of the whole process above what importing costs. Beside weights and the optimizer's state it holds
  what the C library keeps of freed memory, which differs by the sizes asked for and not only by their sum.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fractrain.bench.memory import resident
from fractrain.engine.calibrate import RandomRegistries
from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.progress import Progress
from fractrain.engine.registries import Registries
from fractrain.errors import ConfigError, RunError
from fractrain.methods.presets import paper_settings
from fractrain.quant.blocks import blocks
from fractrain.quant.kernels import probed

CASES = {  # model: data set whose shape is used, samples a step
    "resnet38": ("cifar10", 128),
    "resnet74": ("cifar10", 128),
    "mobilenet_v2": ("cifar10", 128),
    "resnet18": ("imagenet", 32),
    "resnet34": ("imagenet", 32),
    "transformer_base": ("wikitext103", 4),
}
METHODS = ("fp32", "sbm", "dfq", "fractrain", "dynasty")
STEPS = 4  # the heap still grows in the second


@dataclass(frozen=True)
class Peak:
    """One model under one method; bytes.

    Attributes:
        model, method, dataset, batch: what was trained.
        kept: held for backward after the forward pass.
        tensors: peak of all tensors of a step, above what lived before it.
        peak: of the process, above its size after importing.
        step_s: seconds of the last step.
        missing: why there is none; empty where there is.
    """

    model: str
    method: str
    dataset: str
    batch: int
    kept: int = 0
    tensors: int = 0
    peak: int = 0
    step_s: float = 0.0
    missing: str = ""


def measure(
    progress: Progress, models: Sequence[str] = tuple(CASES), methods: Sequence[str] = METHODS, threads: int = 1
) -> list[Peak]:
    """Measure every pair, one after the other, on the CPU."""
    pairs = [(model, method) for model in models for method in methods]
    progress.start("peak memory", len(pairs))
    found = []
    for number, (model, method) in enumerate(pairs, start=1):
        found.append(_in_a_process(model, method, threads))
        progress.update(number)
    progress.close()
    return found


def markdown(peaks: Iterable[Peak]) -> str:
    """A table: one line per pair, ratios to FP32 of the same model."""
    from tabulate import tabulate

    peaks = list(peaks)
    plain = {p.model: p for p in peaks if p.method == "fp32"}
    lines = []
    for p in peaks:
        base = plain.get(p.model)
        if p.missing:
            lines.append([p.model, p.dataset, p.batch, p.method, *["–"] * 6, p.missing])
            continue
        sizes = []
        for field in ("kept", "tensors", "peak"):
            value, other = getattr(p, field), getattr(base, field, 0)
            sizes += [f"{value / 2**20:.0f}", f"{value / other:.2f}" if other else "–"]
        lines.append([p.model, p.dataset, p.batch, p.method, *sizes, f"{p.step_s:.2f}"])
    head = [
        "model",
        "shape of",
        "batch",
        "method",
        "kept MiB",
        "x FP32",
        "tensors MiB",
        "x FP32",
        "process MiB",
        "x FP32",
    ]
    head.append("step s")
    return tabulate(lines, headers=head, tablefmt="github", disable_numparse=True)


def _in_a_process(model: str, method: str, threads: int) -> Peak:
    job = json.dumps({"model": model, "method": method, "threads": threads})
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", __name__, job]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"bench: {method} on {model} ended with code {done.returncode}: {last}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def run_here(model: str, method: str, threads: int) -> Peak:
    """Do some steps in this process.

    Raises:
        KeyError: no such model among the cases.
    """
    torch.set_num_threads(threads)
    probed()  # loading the kernels belongs to importing, under every method
    dataset, batch = CASES[model]
    device = torch.device("cpu")
    known = RandomRegistries(Registries())
    try:
        config = RunConfig.create(
            method=method, model=model, dataset=dataset, profile="paper",
            settings=paper_settings(method, model, dataset), recipe={"batch_size": batch},
        )  # fmt: skip
        base = resident("VmRSS")
        loop = TrainingLoop(config, device, None, False, known, lambda line: None, lambda: False)
    except ConfigError as error:
        return Peak(model, method, dataset, batch, missing=str(error))
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in (*loop.model.parameters(), *loop.model.buffers())}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    for _ in range(STEPS - 1):
        loop.advance()
    loop.advance()
    peak = resident("VmHWM") - base
    seconds = loop.pace.step_seconds[-1]
    tensors = _peak_of_tensors(loop.advance)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        x, y = loop.stream.batch(0, 0)
        outcome = loop.task.step(loop.model, x, y)  # the graph, and with it what is kept, lives until here
    del outcome
    return Peak(model, method, dataset, batch, sum(kept.values()), tensors, peak, seconds)


def _peak_of_tensors(step: Callable[[], object]) -> int:
    """Most bytes that torch's allocator and the package's own had given out during a step, above those at its start."""
    own: list[tuple[int, int]] = []
    blocks().watch = lambda size: own.append((time.time_ns(), size))
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            step()
    finally:
        blocks().watch = None
    if trace.profiler is None or trace.profiler.kineto_results is None:
        raise RunError("bench: torch's profiler has recorded nothing")
    events = trace.profiler.kineto_results.events()  # the summaries of the public interface tell no order
    changes = sorted([(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"] + own)
    return max(accumulate(size for _, size in changes), default=0)


def main(job: str) -> int:
    """Print one :class:`Peak` as JSON."""
    values: dict[str, Any] = json.loads(job)
    print(json.dumps(asdict(run_here(**values))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
