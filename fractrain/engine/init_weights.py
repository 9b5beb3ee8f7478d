"""The weights that a run starts from: those at the end of its source run, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fractrain.engine import checkpoint
from fractrain.engine.config import RunConfig
from fractrain.engine.store import RunStore
from fractrain.util.digests import state_sha256
from fractrain.util.errors import CheckpointError

_OF_LAYERS = ("running_low", "running_high", "running_steps")  # what every wrapped layer keeps besides the plain one


def source_weights(store: RunStore, source: RunConfig) -> dict[str, torch.Tensor]:
    """Return the model's state at the end of a finished run.

    Raises:
        CheckpointError: the run is not done, or its checkpoint is missing, damaged, of another run, or not the last.
    """
    record = store.get(source.run_id)
    if record is not None and record.status == "damaged":
        raise CheckpointError(f"source run {record.path}: {record.message}")
    if record is None or record.status != "done" or record.summary is None:
        raise CheckpointError(f"source run {source.run_id} is not done: run it first")
    path = record.path / checkpoint.NAME
    remedy = f"move {record.path} away and give the command again to train it anew"
    try:
        state = checkpoint.load(path, source.run_id)
    except CheckpointError as error:
        raise CheckpointError(f"source weights: {error}; or {remedy}") from error
    if state is None:
        raise CheckpointError(f"source run {source.run_id} is done but its weights {path} are missing: {remedy}")
    weights: dict[str, torch.Tensor] = state["model"]
    if state_sha256(weights) != record.summary["weights_sha256"]:
        raise CheckpointError(f"{path} does not hold the final weights of source run {source.run_id}: {remedy}")
    return weights


def start_from(model: nn.Module, weights: Mapping[str, torch.Tensor], source: str, new_head: bool) -> None:
    """Copy weights into a plain model, in place.

    Args:
        weights: state of the source run's model.
        new_head: the last linear layer keeps its own values.

    Raises:
        CheckpointError: the weights are of another model; nothing was copied.
    """
    own = model.state_dict()
    given = {name: value for name, value in weights.items() if name in own or not name.endswith(_OF_LAYERS)}
    if new_head:
        head = f"{head_name(model)}."
        given = {**given, **{name: value for name, value in own.items() if name.startswith(head)}}
    if wrong := _difference(own, given):
        raise CheckpointError(f"the weights of source run {source} are of another model: {wrong}")
    model.load_state_dict(given)


def head_name(model: nn.Module) -> str:
    """Return the name of a model's classifier: its last linear layer.

    Raises:
        CheckpointError: there is none.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise CheckpointError(f"{type(model).__name__} has no linear layer that could be its classifier")
    return str(names[-1])


def _difference(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str:
    """First difference in names and shapes, in a clause; empty where there is none."""
    for name, value in own.items():
        if name not in given:
            return f"they lack {name!r}"
        if given[name].shape != value.shape:
            return f"{name!r} has shape {list(given[name].shape)}, the model wants {list(value.shape)}"
    more = sorted(set(given) - set(own))
    return f"the model has no {more[0]!r}" if more else ""
