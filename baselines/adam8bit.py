"""adam8bit: Adam whose two moments are kept in 8 bits (Dettmers et al., arXiv 2110.02861), by torchao.optim.

A code of the dynamic map per value and a float32 scale per 256 values, rounded to nearest; the update is computed in
float32. Moments of parameters with fewer than 4,096 values, or a number that 256 does not divide, stay in float32.
Adam or AdamW as the recipe says; where it is one of SGD, Adam at ``sgd_share`` of its learning rate (ours).

Departures: betas and weight decay are the recipe's. Weights, gradients and products stay in float32. torchao's update
runs uncompiled: the same formula, no compiler needed, slower. As in the source, the map of signed codes has no -1, so
that a first moment that stays negative ends up to 6.6 % too small (`findings/adam8bit-negative-steps.sh`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import nn

from fractrain.layers.convert import convert
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.methods.optimizer_recipe import OptimizerRecipe
from fractrain.numerics.precision import Precision
from fractrain.util.errors import needed


class Adam8bitSettings(MethodSettings):
    """Settings of adam8bit."""

    sgd_share: float = Field(0.01, gt=0, le=1, description="learning rate over the recipe's, where that is one of SGD")


class Adam8bit(Method):
    """Adam with moments in 8 bits, a scale per 256 values (torchao); weights and products in float32."""

    name = "adam8bit"
    source = "Dettmers et al., 8-bit Optimizers via Block-wise Quantization (ICLR 2022, arXiv 2110.02861); torchao 0.18"
    Settings = Adam8bitSettings
    contract_inert = {"sgd_share": "acts where the recipe's optimizer is SGD; that of the contract's data is Adam's"}
    optimizer_state = "8 bits, a float32 scale per 256 values (of fewer than 4,096 values: float32)"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Wrap layers at 32 bits."""
        return convert(model, Precision(), self.state, keep_last=False, strict=False)

    def optimizer(self, params: Iterable[nn.Parameter], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
        """Make torchao's Adam8bit or AdamW8bit.

        Raises:
            MachineError: torchao is not installed.
        """
        with needed("adam8bit needs torchao: pip install 'fractrain[adam8bit]'"):
            from torchao.optim import Adam8bit, AdamW8bit
        share = 1.0 if recipe.optimizer.startswith("adam") else self.settings.sgd_share
        kind = AdamW8bit if recipe.optimizer == "adamw" else Adam8bit
        optimizer: torch.optim.Optimizer = kind(
            params, lr=share * recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        optimizer.step = torch.compiler.set_stance("force_eager")(optimizer.step)  # type: ignore[method-assign]
        optimizer.register_step_pre_hook(_rate_as_tensor)
        optimizer.register_state_dict_post_hook(_saved)
        optimizer.register_load_state_dict_pre_hook(_loaded)
        return optimizer


def _rate_as_tensor(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Do as torchao asks: its step refuses a rate that is a number."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)


def _saved(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Take torchao's moments apart: a checkpoint has tensors and plain values alone, and loads without torchao."""
    from torchao.optim.subclass_8bit import OptimState8bit

    def parts(value: Any) -> Any:
        coded = isinstance(value, OptimState8bit)
        return {"codes": value.codes, "scale": value.scale, "signed": value.signed} if coded else value

    return _each(state, parts)


def _loaded(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Put the moments together again; code by code, for rounding them anew would change them."""
    from torchao.optim.subclass_8bit import OptimState8bit

    def whole(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        codes, scale = value["codes"], value["scale"]
        made = OptimState8bit.zeros(
            codes.shape, value["signed"], codes.numel() // scale.numel(), codes.device, torch.float32
        )
        made.codes.copy_(codes)
        made.scale.copy_(scale)
        return made

    return _each(state, whole)


def _each(state: dict[str, Any], change: Any) -> dict[str, Any]:
    kept = {number: {name: change(v) for name, v in values.items()} for number, values in state["state"].items()}
    return {**state, "state": kept}
