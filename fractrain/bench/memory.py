"""Peak memory of a training step above what importing costs, each kind of step in a process of its own.

On the CPU: the peak of the resident set, as Linux keeps it (``VmHWM``). On a GPU: torch's own peak. A process is never
measured after another kind of step ran in it, because allocators keep what they were once given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fractrain.bench.catalog import TYPICAL
from fractrain.bench.subject import MethodStep, PlainStep, Setup
from fractrain.bench.timing import Measurement, Tick, ratios
from fractrain.kernels.cpu.uniform import probed
from fractrain.util.errors import RunError

STATUS = Path("/proc/self/status")
STEPS = 3
MOST_ROUNDS = 3  # peaks hardly differ from process to process


def memory_fractrain(setup: Setup, tick: Tick) -> Measurement:
    """Peak bytes of FracTrain steps and of FP32 steps above the import base, in turn."""
    if setup.device.type == "cpu" and not STATUS.exists():
        return Measurement(missing="not available: this system does not tell the peak of the resident set")
    path, base = [], []
    for i in range(setup.repeats):
        if i < MOST_ROUNDS:
            path.append(_peak_of(setup, "fractrain"))
            base.append(_peak_of(setup, ""))
        tick()
    return Measurement(ratios(path, base), path, base, unit="bytes", note=f"{len(path)} processes each")


def _peak_of(setup: Setup, method: str) -> float:
    job = {
        "method": method, "model": setup.model, "batch": setup.batch, "size": setup.size, "repeats": STEPS,
        "device": str(setup.device), "kernels": setup.kernels, "threads": setup.threads,
    }  # fmt: skip
    answer = in_process(__name__, job)
    return float(answer["peak"] - answer["base"])


def in_process(module: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a module that takes a job as JSON (with its ``threads``) in a process of its own; return its JSON answer.

    Raises:
        RunError: the process failed.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    command = [sys.executable, "-m", module, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        what = f"{job['method'] or 'fp32'} on {job['model']}"
        raise RunError(f"bench: the process that measures memory of {what} ended with code {done.returncode}: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def resident(field: str) -> int:
    """Bytes of the resident set of this process: ``VmRSS`` now, ``VmHWM`` at its peak."""
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RunError(f"bench: {STATUS} does not tell {field}")


def main(job: str) -> int:
    """Do some steps of one kind; print base and peak as JSON."""
    values = json.loads(job)
    method = values.pop("method")
    setup = Setup(**{**values, "device": torch.device(values["device"])})
    torch.set_num_threads(setup.threads)
    if setup.kernels != "reference":
        probed()  # loading the kernels belongs to importing, in both kinds of process
    base = resident("VmRSS") if setup.device.type == "cpu" else 0
    step = MethodStep(setup, method, candidates=TYPICAL) if method else PlainStep(setup)
    for _ in range(setup.repeats):
        step()
    cuda = setup.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(setup.device) if cuda else resident("VmHWM")
    print(json.dumps({"base": base, "peak": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
