"""Methods that are wrong in one way each, and one that is right."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from fractrain.layers.conv_linear import QuantLayer
from fractrain.layers.convert import convert, quant_layers
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.methods.optimizer_recipe import OptimizerRecipe
from fractrain.numerics.elements import E2M1
from fractrain.numerics.formats import Affine, Bits, PerBlock
from fractrain.numerics.grid import Grid
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import TwoLevel
from fractrain.util.errors import ConfigError


class Settings(MethodSettings):
    bits: int = Field(6, ge=2, le=8)


def precision(bits: int, form: Affine | None = None, running: float | None = 0.9) -> Precision:
    form = form or Affine()
    return Precision.of(Operand(bits, form, running), Operand(bits, form), Operand(bits, Affine(rounding="stochastic")))


class Sound(Method):
    """Six bits everywhere."""

    name = "sound"
    Settings = Settings

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        self.model = convert(model, precision(self.settings.bits), self.state)
        return self.model

    @property
    def layers(self) -> list[QuantLayer]:
        return [m for m in quant_layers(self.model) if not m.precision.is_float]


class Stuck(Sound):
    """Puts the classifier back to zero after every step."""

    name = "stuck"

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        with torch.no_grad():
            self.model.head.weight.zero_()


class Dice(Sound):
    """Draws from Python's unseeded generator."""

    name = "dice"

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        with torch.no_grad():
            self.model.head.bias.add_(random.random() * 1e-3)


class SharedState(Sound):
    """Keeps its step count in the class."""

    name = "shared"
    steps: list[int] = []

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        self.steps.clear()
        return super().convert(model, context)

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        self.steps.append(step)
        with torch.no_grad():
            self.model.head.bias.add_(1e-3 * len(self.steps))


class Forgets(Sound):
    """Changes precision by an own count that no checkpoint holds."""

    name = "forgets"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        self.steps = 0
        return super().convert(model, context)

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        self.steps += 1
        for layer in self.layers:
            layer.precision = precision(2 + self.steps % 4)


class Unrestored(Forgets):
    """Saves its count, but leaves the layers' precision as it is when it loads."""

    name = "unrestored"

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class Pickled(Sound):
    """Its state is an object of a class of its own."""

    name = "pickled"

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings}


class HalfOptimized(Sound):
    """Its optimizer has all parameters but one."""

    name = "half"

    def optimizer(self, params: Iterable[nn.Parameter], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
        return super().optimizer(list(params)[:-1], recipe)


class KeepsToItself(Sound):
    """Counts updates outside of what is saved."""

    name = "keeps"

    def optimizer(self, params: Iterable[nn.Parameter], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
        optimizer = super().optimizer(params, recipe)
        self.updates = 0
        optimizer.register_step_post_hook(self.count)
        return optimizer

    def count(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.updates += 1
        with torch.no_grad():
            self.model.head.bias.add_(1e-3 * self.updates * optimizer.param_groups[0]["lr"])


class RollsDice(Sound):
    """Its optimizer moves the classifier by torch's generator."""

    name = "rolls"

    def optimizer(self, params: Iterable[nn.Parameter], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
        optimizer = super().optimizer(params, recipe)
        optimizer.register_step_post_hook(self.roll)
        return optimizer

    def roll(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            self.model.head.bias.add_(torch.rand(()) * optimizer.param_groups[0]["lr"])


class OwnRate(Sound):
    """Has a learning rate of its own that no schedule changes."""

    name = "rate"

    def optimizer(self, params: Iterable[nn.Parameter], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
        optimizer = super().optimizer(params, recipe)
        optimizer.register_step_pre_hook(lambda made, *_: made.param_groups[0].update(lr=0.01))
        return optimizer


class Unbounded(Sound):
    """Takes any width and clips it in silence."""

    name = "unbounded"

    class Settings(MethodSettings):
        bits: int = 6

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        return convert(model, precision(min(max(self.settings.bits, 2), 8)), self.state)


class LateError(Sound):
    """Finds a wrong setting only in convert, and as a ValueError."""

    name = "late"

    class Settings(MethodSettings):
        bits: int = 6

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        if not 2 <= self.settings.bits <= 8:
            raise ValueError("bits")
        return super().convert(model, context)


class Dead(Sound):
    """Declares a setting that it does not use."""

    name = "dead"

    class Settings(Settings):
        momentum: float = Field(0.9, ge=0, lt=1)

    def metrics(self) -> dict[str, float]:
        return {"momentum": self.settings.momentum}  # to repeat a setting is not to use it


class ExcusedDead(Dead):
    """The same, and its author says why."""

    name = "excused"
    contract_inert = {"momentum": "acts after a thousand steps"}


class BareExcuse(Dead):
    """The same, without the reason."""

    name = "bare"
    contract_inert = {"momentum": " "}


@dataclass(frozen=True)
class Wide(Affine):
    """Twice the points that its width allows."""

    def _grid(self, lo: torch.Tensor, hi: torch.Tensor, bits: Bits) -> Grid:
        return super()._grid(lo, hi, bits + 1)


class TooManyPoints(Sound):
    """Says six bits, takes seven."""

    name = "wide"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        return convert(model, precision(self.settings.bits, Wide()), self.state)


class FloatErrors(Sound):
    """Says that E is quantized, and multiplies it in float."""

    name = "float_errors"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        super().convert(model, context)
        for layer in self.layers:
            layer.error_operand = lambda g, op, name, *more: (g, None)
        return model


class NotStochastic(Sound):
    """Says that E is rounded stochastically, and rounds to nearest."""

    name = "nearest"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        super().convert(model, context)
        for layer in self.layers:
            layer._noise = lambda op, tensor, x: None
        return model


class Saturates(Sound):
    """Rounds errors stochastically to NVFP4, whose scales leave no room for their own rounding."""

    name = "saturates"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        super().convert(model, context)
        fmt = Scaled(PerBlock(1, 16), "stochastic", element=E2M1, scale=TwoLevel())
        for layer in self.layers:
            layer.precision = replace(layer.precision, eb_e=Operand.of(fmt))
        return model


class OtherLayers(Sound):
    """Leaves the classifier to torch, so that the ledger does not see it."""

    name = "other_layers"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        head = model.head
        super().convert(model, context)
        model.head = head
        return model


class FloatEvaluation(Sound):
    """Evaluates with float weights."""

    name = "float_evaluation"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        super().convert(model, context)
        for layer in self.layers:
            layer.quantized_weight = self._weight(layer, layer.quantized_weight)
        return model

    @staticmethod
    def _weight(layer: QuantLayer, real: Any) -> Any:
        return lambda op, name="fw_w": real(op, name) if layer.training else layer.weight.detach()


class Backwards(Sound):
    """More bits are fewer."""

    name = "backwards"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        return convert(model, precision(10 - self.settings.bits), self.state)


class NoLedger(Sound):
    """Switches the ledger off."""

    name = "no_ledger"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        context.ledger.enabled = False
        return super().convert(model, context)


class OneModel(Sound):
    """Crashes on any model but one."""

    name = "one_model"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        if len(list(model.gateable_blocks())) != 18:
            raise IndexError("block 18")
        return super().convert(model, context)


class PoliteOneModel(Sound):
    """Refuses any model but one, and says why."""

    name = "polite"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        if len(list(model.gateable_blocks())) != 18:
            raise ConfigError("polite needs 18 blocks")
        return super().convert(model, context)


class Seeds(Sound):
    """Seeds torch's global generator."""

    name = "seeds"

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        torch.manual_seed(context.seed)
        return super().convert(model, context)


class Environment(Sound):
    """Sets an environment variable."""

    name = "environment"

    def on_step_start(self, step: int) -> None:
        super().on_step_start(step)
        os.environ["FRACTRAIN_TEST_LEFTOVER"] = str(step)


class Patches(Sound):
    """Replaces a function of torch."""

    name = "patches"

    def on_step_start(self, step: int) -> None:
        super().on_step_start(step)
        real = F.relu
        F.relu = lambda *args, **more: real(*args, **more)
