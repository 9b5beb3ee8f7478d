"""What a run ran on: versions, machine, source revision. No host names, no user names, no paths."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fractrain


def capture(device: torch.device) -> dict[str, Any]:
    """Return the environment as JSON-able values."""
    return {
        "fractrain": fractrain.__version__,
        "git": source_revision(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "packages": packages(),
    }


def identity(run_id: str) -> dict[str, Any]:
    """Return what all processes of one run must have in common before they begin."""
    source = source_revision()
    code = f"{fractrain.__version__} {source['sha']} {source['diff_sha256']}" if source else fractrain.__version__
    return {"run": run_id, "code": code, "version of torch": torch.__version__}


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Name of the CPU as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def packages() -> dict[str, str]:
    """Version of every installed package, by name."""
    found = {str(item.metadata["Name"]).lower(): item.version for item in metadata.distributions()}
    return dict(sorted(found.items()))


def source_revision() -> dict[str, Any] | None:
    """Return ``{"sha", "dirty", "diff_sha256"}`` of the checkout the package runs from, None for an installed wheel."""
    folder = Path(fractrain.__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", Path(fractrain.__file__).name) is None:
        return None  # no git, or the package merely lies inside somebody's checkout
    sha = _git(folder, "rev-parse", "HEAD")
    if sha is None:
        return None
    diff = _git(folder, "diff", "HEAD") or b""
    digest = hashlib.sha256(diff).hexdigest() if diff else None
    return {"sha": sha.decode().strip(), "dirty": bool(diff), "diff_sha256": digest}


def _git(folder: Path, *arguments: str) -> bytes | None:
    """Return git's output, or None when it cannot answer."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
