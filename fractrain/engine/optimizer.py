"""The optimizer of a recipe."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fractrain.engine.recipes import Recipe


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe: SGD with momentum, the same with Nesterov's correction, Adam or AdamW."""
    parameters = list(parameters)
    if recipe.optimizer in ("sgd", "nesterov"):
        return torch.optim.SGD(
            parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
            nesterov=recipe.optimizer == "nesterov", foreach=True,
        )  # fmt: skip
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, foreach=True)


def clip_gradients(parameters: Iterable[nn.Parameter], recipe: Recipe) -> None:
    """Scale all gradients down so that their common norm is at most ``recipe.clip_norm`` (0: leave them)."""
    if recipe.clip_norm:
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm, foreach=True)
