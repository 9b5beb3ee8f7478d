"""A run's trained weights in a file of their own; see :mod:`fractrain.methods.export`."""

from __future__ import annotations

from pathlib import Path

import torch

from fractrain.engine.registries import Registries
from fractrain.engine.restored import restored
from fractrain.engine.store import RunRecord
from fractrain.methods.export import FileFormat, refuse_existing, write
from fractrain.methods.export_onnx import INSTEAD
from fractrain.util.errors import ConfigError

SAMPLES = 8  # on which an ONNX graph is compared


def export(record: RunRecord, file: Path, format: FileFormat = "torch", force: bool = False) -> Path:
    """Write a run's weights; with them, as ``run``, its id, status, configuration and best result.

    Args:
        record: the run; of one that is not done, the last checkpoint counts.
        format: of the file; see :func:`fractrain.methods.export.write`.

    Returns:
        ``file``.

    Raises:
        CheckpointError: the run has no checkpoint, or it does not fit the installed code.
        ConfigError: the file is there, the method keeps no counterpart of some of the plain model's tensors, or ONNX
            cannot express what evaluation computes.
        MachineError: a package that the format needs is not installed.
        StoreError: the file cannot be written.
    """
    refuse_existing(file, force)
    run = {
        "id": record.run_id, "status": record.status, "config": record.config.model_dump(mode="json"),
        "summary": record.summary or {},
    }  # fmt: skip
    return write(file, format, restored(record), {"run": run}, lambda: _images(record))


def _images(record: RunRecord) -> torch.Tensor:
    """Random inputs of a run's model, float32 ``[SAMPLES, C, H, W]``."""
    known = Registries().for_setting(record.config.setting, record.config.seed)
    shape = tuple(known.dataset_info(record.config.dataset).shape)
    if len(shape) != 3:
        raise ConfigError(f"format onnx-qdq of a run takes models of images, not {record.config.model}{INSTEAD}")
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
