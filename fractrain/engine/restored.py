"""The model of a stored run, built anew with the weights of its last checkpoint, and those weights in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fractrain.cost.ledger import Ledger
from fractrain.engine import checkpoint
from fractrain.engine.registries import Registries
from fractrain.engine.store import RunRecord
from fractrain.methods.base import MethodContext
from fractrain.methods.export import FileFormat, Prepared, refuse_existing, write
from fractrain.methods.export_onnx import INSTEAD
from fractrain.methods.plain import PlainForm
from fractrain.util.digests import state_sha256
from fractrain.util.errors import CheckpointError, ConfigError


def restored(record: RunRecord) -> Prepared:
    """Build a run's model anew and give it the weights of the last checkpoint; no data is needed.

    Args:
        record: the run; of one that is not done, the last checkpoint counts.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, does not fit the installed code, or, of a finished run,
            does not hold the weights whose digest its summary has.
        StoreError: the record is damaged.
    """
    config = record.undamaged().config
    state = checkpoint.load(record.path / checkpoint.NAME, record.run_id)
    if state is None:
        raise CheckpointError(
            f"run {record.run_id} has no checkpoint in {record.path}: only runs trained here keep their weights"
        )
    final = (record.summary or {}).get("weights_sha256")
    if final is not None and state_sha256(state["model"]) != final:
        raise CheckpointError(f"{record.path / checkpoint.NAME} does not hold the final weights of {record.run_id}")
    known = Registries().for_setting(config.setting, config.seed)
    plain = known.model(config.model, config.dataset, config.seed)
    blocks = list(getattr(plain, "gateable_blocks", list)())
    lines = state["lines"]
    weights: Any = known.block_weights(plain, config.dataset, blocks)
    context = MethodContext(
        seed=config.seed, blocks=blocks, ledger=Ledger(), batch_size=config.recipe.batch_size,
        steps_per_epoch=lines[0]["iteration"] if lines else config.recipe.iterations,
        total_steps=config.recipe.iterations, **weights,
    )  # fmt: skip
    method, form = known.method(config.method, config.settings), PlainForm(plain)
    model = method.prepare(plain, context)
    form.settle(model)
    try:
        model.load_state_dict(state["model"])
        method.load_state_dict(state["method"])
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"run {record.run_id}: the checkpoint does not fit the installed code ({reason})"
        ) from error
    return Prepared(model.eval(), method, form)


# -- a file of its own -------------------------------------------------------------------------------------------------


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
