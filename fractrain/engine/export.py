"""A run's trained weights in a file of their own, for people who go on without this package.

The weights have the names that they have in the plain model, so that it loads them as they are. With them goes what one
needs to quantize them again: the method's precision card, every layer's formats and widths, and the ranges of the
activations that training has measured. Gates stay in the checkpoint.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

import fractrain
from fractrain.engine.export_onnx import onnx_graph
from fractrain.engine.restored import Restored, restored
from fractrain.engine.store import RunRecord
from fractrain.layers.convert import quant_layers
from fractrain.methods.card import declared_precisions, precision_card
from fractrain.util.errors import ConfigError, MachineError
from fractrain.util.files import atomic_write, storing

FileFormat = Literal["torch", "safetensors", "onnx-qdq"]
SUFFIXES: Final[dict[FileFormat, str]] = {"torch": ".pt", "safetensors": ".safetensors", "onnx-qdq": ".onnx"}
KEY: Final = "fractrain"  # of the metadata, a JSON text in all formats


def export(record: RunRecord, file: Path, format: FileFormat = "torch", force: bool = False) -> Path:
    """Write a run's weights.

    ``torch``: ``{"weights": state dict, "fractrain": JSON text}``, which ``torch.load(file, weights_only=True)`` reads.
    ``safetensors``: the weights, and the JSON text as metadata of that name.
    ``onnx-qdq``: the whole network, operands rounded as in evaluation, and the same metadata; see
    :mod:`fractrain.engine.export_onnx`.

    Args:
        record: the run; of one that is not done, the last checkpoint counts.
        file: where to.
        format: of the file.
        force: replace a file that is there.

    Returns:
        ``file``.

    Raises:
        CheckpointError: the run has no checkpoint, or it does not fit the installed code.
        ConfigError: the file is there, the method keeps no counterpart of some of the plain model's tensors, or ONNX
            cannot express what evaluation computes.
        MachineError: a package that the format needs is not installed.
        StoreError: the file cannot be written.
    """
    if file.exists() and not force:
        raise ConfigError(f"{file} is there already: give --force to replace it, or another --out")
    found = restored(record)
    state = found.plain.state_dict(found.model)
    weights = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    about = json.dumps(described(record, found))
    if format == "onnx-qdq":
        content = onnx_graph(record, found, {KEY: about})
    else:
        content = _safetensors(weights, about) if format == "safetensors" else _torch(weights, about)
    with storing(file.parent, "make"):
        file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, content)
    return file


def described(record: RunRecord, found: Restored) -> dict[str, Any]:
    """What goes with the weights, as plain values for JSON.

    Returns:
        ``run`` (id, status, configuration, best result), ``card`` (of the method with these settings), ``layers``
        (formats and widths of the six operands; several where a gate chooses) and ``ranges`` (buffers that the plain
        model does not have, by name).
    """
    config = record.config
    precisions = {layer: declared() for layer, declared in declared_precisions(found.model).items()}
    return {
        "fractrain": fractrain.__version__,
        "run": {
            "id": record.run_id, "status": record.status, "config": config.model_dump(mode="json"),
            "summary": record.summary or {},
        },
        "card": precision_card(type(found.method), config.settings).as_dict(),
        "layers": {
            layer.site: [{n: o.describe() for n, o in p.operands().items()} for p in precisions[layer]]
            for layer in quant_layers(found.model)
        },
        "ranges": _ranges(found, [layer for layer, of in precisions.items() if all(p.is_float for p in of)]),
    }  # fmt: skip


def _ranges(found: Restored, floats: Sequence[nn.Module]) -> dict[str, Any]:
    """The buffers that the method has added, but for layers that measure nothing."""
    return {
        f"{name}.{own}".lstrip("."): buffer.tolist()
        for name, module in found.model.named_modules() if module not in floats
        for own, buffer in module.named_buffers(recurse=False)
        if f"{name}.{own}".lstrip(".") not in found.plain.places
    }  # fmt: skip


def _torch(weights: dict[str, torch.Tensor], about: str) -> bytes:
    content = io.BytesIO()
    torch.save({"weights": weights, KEY: about}, content)
    return content.getvalue()


def _safetensors(weights: dict[str, torch.Tensor], about: str) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise MachineError("--format safetensors needs safetensors: pip install 'fractrain[export]'") from error
    return save(weights, {KEY: about})
