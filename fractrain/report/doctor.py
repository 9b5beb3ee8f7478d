"""What works on this machine and what does not, with the way to mend it: the facts behind ``fractrain doctor``.

Every check is a function that returns :class:`Check` values and changes nothing: no folder is made, nothing is fetched.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from fractrain.util.errors import FractrainError, message_line
from fractrain.util.files import nearest_folder

State = Literal["works", "limited", "does not work"]
Importer = Callable[[str], ModuleType]

PYTHONS = ((3, 11), (3, 13))
LOW_DISK_GB = 2.0
OPTIONAL = {"matplotlib": "figures; install fractrain[plots]"}


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        state: ``works``, ``limited`` (usable, with a limit that is named) or ``does not work``.
        mend: how to mend it, one line; empty when there is nothing to do.
        essential: without it nothing can be trained.
    """

    name: str
    state: State
    detail: str
    mend: str = ""
    essential: bool = False


def examine(data_dir: Path | None, results: Path) -> Iterator[Check]:
    """Yield all checks, one by one, so that they can be shown while the slow ones still run.

    Args:
        data_dir: where data sets lie; None means the usual places.
        results: the run store; looked at, not made.
    """
    yield python_check(sys.version_info[:2])
    yield from package_checks()
    yield torch_check(importlib.import_module)
    yield from _device_checks()
    yield kernel_check()
    yield from data_checks(data_dir)
    yield from folder_checks(results)


def python_check(version: tuple[int, int]) -> Check:
    """Say whether this Python is one of the supported ones."""
    low, high = PYTHONS
    detail = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    supported = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
    if version < low:
        return Check("python", "does not work", detail, f"use Python {supported}", essential=True)
    if version > high:
        return Check("python", "limited", detail, f"tested with Python {supported} only")
    return Check("python", "works", detail, essential=True)


def package_checks() -> Iterator[Check]:
    """Say which packages fractrain needs are there (versions only, nothing is imported), and which optional ones."""
    needed = [name for name, optional in _requirements() if not optional]
    versions = {name: _version(name) for name in needed}
    missing = [name for name, version in versions.items() if version is None]
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        mend = f"pip install {' '.join(missing)} (or make setup)"
        yield Check("packages", "does not work", f"missing: {', '.join(missing)}; found: {found}", mend, essential=True)
    else:
        yield Check("packages", "works", found, essential=True)
    for name, use in OPTIONAL.items():
        version = _version(name)
        yield Check(name, "works", version) if version else Check(name, "limited", "not installed", f"only for {use}")


def _requirements() -> list[tuple[str, bool]]:
    """Names of the packages in fractrain's metadata, and whether each belongs to an extra."""
    found = []
    for line in importlib.metadata.requires("fractrain") or []:
        end = next((i for i, c in enumerate(line) if not (c.isalnum() or c in "-_.")), len(line))
        found.append((line[:end], "extra ==" in line))
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_check(importer: Importer) -> Check:
    """Say whether torch and torchvision belong together: a pair that does not breaks when torchvision is imported."""
    try:
        torch = importer("torch")
    except (ImportError, OSError) as error:
        return Check("torch", "does not work", message_line(error), "reinstall it: make clean setup", essential=True)
    version = str(torch.__version__)
    try:
        vision = importer("torchvision")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        mend = (
            "torch and torchvision are not a pair (for example a CPU-only torch beside a CUDA torchvision): "
            "install both from the same source, or run make clean setup"
        )
        return Check(
            "torch", "does not work", f"torch {version}, but torchvision: {message_line(error)}", mend, essential=True
        )
    return Check("torch", "works", f"torch {version} with torchvision {vision.__version__}", essential=True)


def _device_checks() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError):
        return  # said by torch_check
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    detail = f"{torch.get_num_threads()} threads of {usable} usable cores" + (
        f", OMP_NUM_THREADS={limit}" if limit else ""
    )
    yield Check("cpu", "works", detail)
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = ", ".join(f"cuda:{i} {card.name}, {card.total_memory / 2**30:.0f} GiB" for i, card in enumerate(cards))
        yield Check("gpu", "works", found)
        return
    why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no NVIDIA GPU or driver"
    yield Check("gpu", "limited", why, "smoke runs need none; the paper profile takes days without one")


def kernel_check() -> Check:
    """Say whether the fused CPU quantizers run here and give the plain path's bits."""
    try:
        from fractrain.kernels.cpu.uniform import probed
    except (ImportError, OSError) as error:
        return Check("kernels", "does not work", message_line(error), "see torch above", essential=True)
    if probed() is None:
        mend = "runs work, only slower; check that numba imports and can write its cache (NUMBA_CACHE_DIR)"
        return Check("kernels", "limited", "fused CPU quantizers are not usable, the plain path is", mend)
    return Check("kernels", "works", "fused CPU quantizers give the plain path's bits")


def data_checks(data_dir: Path | None) -> Iterator[Check]:
    """Say of every data set whether it is complete."""
    try:
        from fractrain.data import registry
    except (ImportError, OSError) as error:
        yield Check("data", "does not work", message_line(error), "see packages above")
        return
    for name in registry.names():
        try:
            found = registry.status(name, data_dir)
        except FractrainError as error:
            yield Check(f"data {name}", "does not work", str(error))
            continue
        yield Check(f"data {name}", "works" if found.ok else "limited", found.message, found.advice)


def folder_checks(results: Path) -> Iterator[Check]:
    """Say whether results can be written and how much room there is."""
    folder = nearest_folder(results)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        mend = "choose a folder you may write to: --results DIR or FRACTRAIN_RESULTS"
        yield Check("results", "does not work", f"{results}: {error.strerror}", mend, essential=True)
    else:
        yield Check("results", "works", f"{results} can be written", essential=True)
    free = shutil.disk_usage(folder).free / 1e9
    low = free < LOW_DISK_GB
    yield Check("disk", "limited" if low else "works", f"{free:.1f} GB free", "free some space" if low else "")
