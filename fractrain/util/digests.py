"""Digests of weights: equal exactly when two models are bit-identical."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the state dict, sorted by name: equal exactly when bit-identical.

    Non-tensor state does not enter. The memory format does not matter.
    """
    return state_sha256(model.state_dict())


def state_sha256(state: Mapping[str, Any]) -> str:
    """:func:`weights_sha256` of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()
