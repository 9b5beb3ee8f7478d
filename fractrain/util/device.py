"""Which device a run uses, and whether it is asked to be deterministic."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from fractrain.util.errors import MachineError


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        MachineError: the name is no device, or there is no such GPU.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MachineError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise MachineError(f"--device {name}: not supported; use auto, cpu, cuda or cuda:0")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise MachineError(f"--device {name}: torch finds no GPU here; use --device cpu, or see `fractrain doctor`")
        index = device.index or 0
        if index >= torch.cuda.device_count():
            raise MachineError(f"--device {name}: there are only {torch.cuda.device_count()} GPUs, counted from 0")
        return torch.device("cuda", index)
    return device


@contextlib.contextmanager
def determinism(enabled: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms inside the block, and put everything back afterwards."""
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    torch.use_deterministic_algorithms(True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        debugging.fill_uninitialized_memory = fill
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
