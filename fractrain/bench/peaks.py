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

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

import baselines
import fractrain
from fractrain.bench.memory import in_process, resident
from fractrain.engine import environment
from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.registries import Registries
from fractrain.engine.site import Site
from fractrain.kernels.cpu.memory import blocks
from fractrain.kernels.cpu.uniform import probed
from fractrain.layers.kept import keeping
from fractrain.methods import registry
from fractrain.methods.presets import paper_settings
from fractrain.plan.calibrate import RandomRegistries
from fractrain.util.errors import ConfigError, RunError
from fractrain.util.files import write_files
from fractrain.util.progress import Progress

FORMAT_VERSION: Final = 3
CASES = {  # model: data set whose shape is used, samples a step
    "resnet38": ("cifar10", 128), "resnet74": ("cifar10", 128), "mobilenet_v2": ("cifar10", 128),
    "resnet18": ("imagenet", 32), "resnet34": ("imagenet", 32), "transformer_base": ("wikitext103", 4),
}  # fmt: skip
VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {  # measured beside the settings the paper gives
    "dfq": {"forward": "selected"},
    "fractrain": {"forward": "selected"},
}
STEPS = 4  # the heap still grows in the second


@dataclass(frozen=True)
class Peak:
    """One model under one method; bytes.

    Attributes:
        model, method, dataset, batch: what was trained.
        variant: settings beside the paper's, as ``name=value``; empty without.
        kept: held for backward after the forward pass.
        tensors: peak of all tensors of a step, above what lived before it.
        peak: of the process, above its size after importing.
        missing: why there is none; empty where there is.
        code: hash of the code it was measured with.
    """

    model: str
    method: str
    dataset: str
    batch: int
    variant: str = ""
    kept: int = 0
    tensors: int = 0
    peak: int = 0
    missing: str = ""
    code: str = ""


Pair = tuple[str, str, str]  # model, method, variant


def pairs(models: Sequence[str] = tuple(CASES), methods: Sequence[str] | None = None) -> list[Pair]:
    """Every model with every method, FP32 first; methods default to all that are registered."""
    names = methods or sorted(registry.names(), key=lambda name: (name != "fp32", name))
    variants = {name: ["", *([_text(VARIANTS[name])] if name in VARIANTS else [])] for name in names}
    return [(model, name, variant) for model in models for name in names for variant in variants[name]]


def measure(progress: Progress, wanted: Sequence[Pair], threads: int, out: Path) -> dict[str, Any]:
    """Measure pair by pair on the CPU; each is written to ``out/memory.json`` at once.

    What the file has of the same code, on the same machine, is not measured again.

    Returns:
        the document that was written.

    Raises:
        RunError: a measuring process failed.
        StoreError: the folder cannot be written.
    """
    machine = environment.capture(torch.device("cpu"))
    del machine["git"]  # the file itself may be a tracked one, and change what git says
    machine |= {"threads": threads, "packages": {"torch": machine["packages"]["torch"]}}
    machine |= {"memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    code = _code()
    file = out / "memory.json"
    found = {(p.model, p.method, p.variant): p for p in _stored(file, machine) if p.code == code}
    found = {pair: found[pair] for pair in wanted if pair in found}
    progress.start("peak memory", len(wanted), len(found))
    for pair in wanted:
        if pair not in found:
            found[pair] = replace(_in_a_process(*pair, threads), code=code)
            peaks = [asdict(found[p]) for p in wanted if p in found]
            value = {"format_version": FORMAT_VERSION, "machine": machine, "peaks": peaks}
            write_files({file: json.dumps(value, indent=2).encode() + b"\n"})
        progress.update(len(found))
    progress.close()
    return {"format_version": FORMAT_VERSION, "machine": machine, "peaks": [asdict(found[pair]) for pair in wanted]}


def _stored(file: Path, machine: Mapping[str, Any]) -> list[Peak]:
    """What an earlier, perhaps interrupted, measurement on the same machine has found."""
    try:
        value = json.loads(file.read_text())
        if value["format_version"] != FORMAT_VERSION or value["machine"] != machine:
            return []
        return [Peak(**entry) for entry in value["peaks"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _code() -> str:
    """Hash of the package and of the methods that come with it."""
    total = hashlib.sha256()
    for package in (fractrain, baselines):
        folder = Path(package.__path__[0])
        for file in sorted(folder.rglob("*.py")):
            total.update(f"{folder.name}/{file.relative_to(folder).as_posix()}\n".encode() + file.read_bytes())
    return total.hexdigest()


def _text(settings: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in settings.items())


def page(value: Mapping[str, Any]) -> str:
    """The document as Markdown: on what, the table, what the columns are."""
    machine = value["machine"]
    where = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, {machine['threads']} "
        f"thread(s), torch {machine['packages']['torch']}, fractrain {machine['fractrain']}"
    )
    codes = Counter(entry["code"][:12] for entry in value["peaks"])
    where += "; hash of its code " + ", ".join(f"{code} ({count} lines)" for code, count in codes.most_common())
    table = markdown(Peak(**entry) for entry in value["peaks"])
    return f"# Peak memory of training steps\n\nMeasured on the CPU: {where}.\n\n{table}\n\n{__doc__ or ''}"


def markdown(peaks: Iterable[Peak]) -> str:
    """A table: one line per pair, ratios to FP32 of the same model."""
    from tabulate import tabulate

    peaks = list(peaks)
    plain = {p.model: p for p in peaks if p.method == "fp32"}
    lines = []
    for p in peaks:
        base = plain.get(p.model)
        name = f"{p.method} ({p.variant})" if p.variant else p.method
        sizes = []
        for field in ("kept", "tensors", "peak"):
            value, other = getattr(p, field), getattr(base, field, 0)
            sizes += [f"{value / 2**20:.0f}", f"{value / other:.2f}" if other else "–"]
        lines.append([p.model, p.dataset, p.batch, name, *(["–"] * 6 if p.missing else sizes), p.missing])
    head = ["model", "shape of", "batch", "method"]
    head += [text for name in ("kept", "tensors", "process") for text in (f"{name} MiB", "x FP32")]
    if any(p.missing for p in peaks):
        head.append("why not")
    else:
        lines = [line[:-1] for line in lines]
    return tabulate(lines, headers=head, tablefmt="github", disable_numparse=True)


def _in_a_process(model: str, method: str, variant: str, threads: int) -> Peak:
    job = {"model": model, "method": method, "variant": variant, "threads": threads}
    return Peak(**in_process(__name__, job))


def run_here(model: str, method: str, variant: str = "", threads: int = 1) -> Peak:
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
        settings = {**paper_settings(method, model, dataset), **(VARIANTS[method] if variant else {})}
        config = RunConfig.create(
            method=method, model=model, dataset=dataset, profile="paper", settings=settings,
            recipe={"batch_size": batch},
        )  # fmt: skip
        base = resident("VmRSS")
        loop = TrainingLoop(config, Site(device=str(device)), known)
    except ConfigError as error:
        return Peak(model, method, dataset, batch, variant, missing=str(error))
    for _ in range(STEPS):
        loop.advance()
    peak = resident("VmHWM") - base
    tensors = _peak_of_tensors(loop.advance)
    with keeping(loop.model) as kept:
        x, y = loop.stream.batch(0, 0)
        outcome = loop.task.step(loop.model, x, y)  # the graph, and with it what is kept, lives until here
    del outcome
    return Peak(model, method, dataset, batch, variant, sum(kept.values()), tensors, peak)


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
