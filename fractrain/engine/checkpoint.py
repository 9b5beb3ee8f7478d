"""Checkpoints that survive ``kill -9``, a full disk and a truncated file.

One file: a header line (JSON: format, run id, SHA-256 and length of what follows), then what ``torch.save`` wrote.
The newest and the one before are kept while the run lasts; a damaged newest one is found by its digest, moved aside,
and the one before is used. A finished run keeps its last one alone: nothing else holds its final weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from fractrain.util.errors import CheckpointError
from fractrain.util.files import atomic_write, storing
from fractrain.util.schema import parse_json

FORMAT_VERSION: Final = 1
NAME: Final = "checkpoint.pt"  # of the newest generation, in a run's folder
_MAGIC: Final = "fractrain-checkpoint"
_MAX_HEADER: Final = 4096

_log = logging.getLogger(__name__)


class _Unusable(Exception):
    """The file is not what was written, or not for this run; the text follows its name."""


def previous_path(path: Path) -> Path:
    """Name of the generation before ``path``: ``checkpoint.pt`` -> ``checkpoint.prev.pt``."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def save(path: Path, state: dict[str, Any], run_id: str, check: Callable[[], None] = lambda: None) -> None:
    """Write a checkpoint: temporary file, fsync, the newest becomes the previous one, rename.

    Args:
        path: the newest generation, ``.../checkpoint.pt``.
        state: tensors and plain values only.
        check: called when all is written and nothing replaced yet; raises where the run is another writer's by then.

    Raises:
        StoreError: the operating system refused, or ``check`` did; the newest sound generation stays.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    header = {
        "magic": _MAGIC, "format": FORMAT_VERSION, "run_id": run_id, "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip

    def keep_previous() -> None:
        check()
        if path.exists():
            path.replace(previous_path(path))

    atomic_write(path, json.dumps(header).encode() + b"\n", content, ready=keep_previous)


def keep_newest(path: Path) -> None:
    """Delete the generation before ``path``: a run that has come to its end never goes back to it.

    Raises:
        StoreError: the operating system refused.
    """
    with storing(previous_path(path), "delete"):
        previous_path(path).unlink(missing_ok=True)


def load(path: Path, run_id: str) -> dict[str, Any] | None:
    """Return the newest sound checkpoint's state on the CPU, or None when there is no checkpoint at all.

    Raises:
        CheckpointError: all generations are damaged, of another format version or of another run.
    """
    unusable: list[str] = []
    for candidate in (path, previous_path(path)):
        with storing(candidate, "read"):
            if not candidate.exists():
                continue
            content = candidate.read_bytes()
        try:
            state = _decode(content, candidate, run_id)
        except _Unusable as error:
            unusable.append(f"{candidate.name} {error}")
            continue
        if unusable:
            _log.warning("%s in %s: going on from %s", unusable[0], path.parent, candidate.name)
            with storing(path):  # or the next save would push the sound one out
                path.replace(path.with_name(f"{path.stem}.damaged{path.suffix}"))
        return state
    if unusable:
        raise CheckpointError(f"{path.parent}: {' and '.join(unusable)}; move them away to start the run again")
    return None


def _decode(content: bytes, path: Path, run_id: str) -> dict[str, Any]:
    line, newline, body = content.partition(b"\n")
    if not newline or len(line) > _MAX_HEADER:
        raise _Unusable("is damaged (no header)")
    try:
        header = parse_json(line)
    except ValueError as error:
        raise _Unusable("is damaged (unreadable header)") from error
    if not isinstance(header, dict) or header.get("magic") != _MAGIC:
        raise _Unusable("is damaged (not a checkpoint)")
    if header.get("format") != FORMAT_VERSION:
        raise _Unusable(f"has checkpoint format {header.get('format')!r}, this release reads {FORMAT_VERSION}")
    if header.get("run_id") != run_id:
        raise _Unusable(f"belongs to run {header.get('run_id')}, not to {run_id}")
    if len(body) != header.get("bytes"):
        raise _Unusable(f"is damaged ({len(body)} of {header.get('bytes')} bytes)")
    if hashlib.sha256(body).hexdigest() != header.get("sha256"):
        raise _Unusable("is damaged (wrong digest)")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # sound bytes that hold something else than tensors and plain values
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} holds objects that are not loaded for safety: {reason}") from error
    return state
