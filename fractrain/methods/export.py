"""A trained model's weights in a file of their own, for people who go on without this package.

The weights have the names that they have in the plain model, so that it loads them as they are. With them goes what one
needs to quantize them again: the method's precision card, every layer's formats and widths, and the ranges of the
activations that training has measured. Gates stay behind.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

import fractrain
from fractrain.layers.convert import quant_layers
from fractrain.methods.base import Method
from fractrain.methods.card import declared_precisions, precision_card
from fractrain.methods.export_onnx import onnx_graph
from fractrain.methods.plain import PlainForm
from fractrain.util.errors import ConfigError, needed
from fractrain.util.files import atomic_write, storing

FileFormat = Literal["torch", "safetensors", "onnx-qdq"]
SUFFIXES: Final[dict[FileFormat, str]] = {"torch": ".pt", "safetensors": ".safetensors", "onnx-qdq": ".onnx"}
KEY: Final = "fractrain"  # of the metadata, a JSON text in all formats


@dataclass(frozen=True)
class Prepared:
    """A model that a method has made of a plain one.

    Attributes:
        model: the low-precision model, in evaluation mode, on the CPU.
        method: the method.
        plain: where the plain model's tensors are in it.
    """

    model: nn.Module
    method: Method
    plain: PlainForm


def refuse_existing(file: Path, force: bool) -> None:
    """Refuse to replace a file unasked.

    Raises:
        ConfigError: it is there, and ``force`` is false.
    """
    if file.exists() and not force:
        raise ConfigError(f"{file} is there already: give --force (force=True) to replace it, or another name")


def write(
    file: Path, format: FileFormat, found: Prepared, origin: Mapping[str, Any], examples: Callable[[], Any]
) -> Path:
    """Write a model's weights, and in ``onnx-qdq`` what it computes in evaluation.

    ``torch``: ``{"weights": state dict, "fractrain": JSON text}``, which ``torch.load(file, weights_only=True)`` reads.
    ``safetensors``: the weights, and the JSON text as metadata of that name.
    ``onnx-qdq``: the whole network, operands rounded as in evaluation, and the same metadata; see
    :mod:`fractrain.methods.export_onnx`.

    Args:
        file: where to.
        format: of the file.
        found: the model; with ``onnx-qdq`` the plain model is put back in its place.
        origin: where the weights come from, as plain values for JSON.
        examples: gives inputs for ``onnx-qdq``, as :func:`onnx_graph` takes them.

    Returns:
        ``file``.

    Raises:
        ConfigError: an unknown format, the method keeps no counterpart of some of the plain model's tensors, or ONNX
            cannot express what evaluation computes.
        MachineError: a package that the format needs is not installed.
        StoreError: the file cannot be written.
    """
    if format not in SUFFIXES:
        raise ConfigError(f"unknown format {format!r} of an export; there are {', '.join(SUFFIXES)}")
    state = found.plain.state_dict(found.model)
    weights = copy.copy(state)  # with its versions
    weights.update({name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in state.items()})
    about = json.dumps(described(found, origin))
    if format == "onnx-qdq":
        content = onnx_graph(found.model, found.plain, found.method.name, examples(), {KEY: about})
    else:
        content = _safetensors(weights, about) if format == "safetensors" else _torch(weights, about)
    with storing(file.parent, "make"):
        file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, content)
    return file


def described(found: Prepared, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What goes with the weights, as plain values for JSON.

    Returns:
        ``origin``, and: ``card`` (of the method with these settings), ``layers`` (formats and widths of the six
        operands; several where a gate chooses) and ``ranges`` (buffers that the plain model does not have, by name).
    """
    precisions = {layer: declared() for layer, declared in declared_precisions(found.model).items()}
    settings = found.method.settings.model_dump()
    return {
        "fractrain": fractrain.__version__, **origin,
        "card": precision_card(type(found.method), settings).as_dict(),
        "layers": {
            layer.site: [{n: o.describe() for n, o in p.operands().items()} for p in precisions[layer]]
            for layer in quant_layers(found.model)
        },
        "ranges": _ranges(found, [layer for layer, of in precisions.items() if all(p.is_float for p in of)]),
    }  # fmt: skip


def _ranges(found: Prepared, floats: Sequence[nn.Module]) -> dict[str, Any]:
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
    with needed("format safetensors needs safetensors: pip install 'fractrain[export]'"):
        from safetensors.torch import save
    return save(weights, {KEY: about})
