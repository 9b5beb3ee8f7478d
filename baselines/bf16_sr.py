"""bf16_sr: weights in bfloat16, rounded stochastically after every update (Zamirai et al., arXiv 2010.06192).

The recipe's optimizer computes the update in float32 from weights that are bfloat16 numbers; then every parameter
(BatchNorm's too) is rounded to a neighbour in bfloat16, so that its mean is what the update asked for. Nearest rounding
would lose every update smaller than half the distance of two numbers, 1/512 to 1/256 of the weight.

Departures: operands of the products, gradients and the optimizer's state stay in float32 (source: bfloat16 as well).
Weights are simulated: they have values of bfloat16 and lie in float32 tensors, which saves no memory here. The noise
is a function of seed, step and parameter, so that processes of one run and a resumed run round alike
(torchao.optim's ``bf16_stochastic_round`` draws from the global generator, and has no SGD).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fractrain.layers.convert import convert
from fractrain.methods.base import Method, MethodContext
from fractrain.methods.optimizer_recipe import OptimizerRecipe
from fractrain.numerics.precision import Precision
from fractrain.numerics.stochastic_rounding import round_to_bfloat16_


class BF16StochasticRounding(Method):
    """Weights in bfloat16, rounded stochastically after every update; products and optimizer state in float32."""

    name = "bf16_sr"
    source = "Zamirai et al., Revisiting BFloat16 Training (arXiv 2010.06192), stochastic rounding of weight updates"
    master_weights = "bfloat16, stochastic"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Round the first weights, to nearest; wrap layers at 32 bits."""
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.bfloat16())
        return convert(model, Precision(), self.state, keep_last=False, strict=False)

    def optimizer(self, params: Iterable[nn.Parameter], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
        """Make the recipe's optimizer, which rounds the weights after its step."""
        optimizer = super().optimizer(params, recipe)
        optimizer.register_step_post_hook(self._round)
        return optimizer

    @torch.no_grad()
    def _round(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        for number, p in enumerate(moved):
            if p.grad is not None and p.dtype is torch.float32:  # a model in bfloat16 has rounded already, to nearest
                round_to_bfloat16_(p, self.state.noise(f"parameter.{number}"))
