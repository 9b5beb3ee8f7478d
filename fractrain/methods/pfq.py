"""PFQ, progressive fractional quantization: precision grows in stages along training (FracTrain, section 3.1).

The loss-change indicator says when the next stage begins (FracTrain, Algorithm 1 and its code).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from fractrain.layers.convert import convert_body, quant_layers
from fractrain.methods.base import (
    LAYERS_INERT,
    KeptLayers,
    Layers,
    Method,
    MethodContext,
    MethodSettings,
    Variation,
    check_pairs,
)
from fractrain.methods.depthwise import (
    DEPTHWISE_BITS,
    DEPTHWISE_INERT,
    DepthwiseBits,
    depthwise_precision,
    is_depthwise,
)
from fractrain.numerics.precision import Precision, fractrain_precision
from fractrain.util.errors import ConfigError
from fractrain.util.settings import instead_of


class LossIndicator:
    """Watches the loss of the last epochs and reports turning points.

    An epoch is a turning point when the window is full and every normalised difference to its newest loss is at most
    the threshold: ``|L_i - L_newest| / scale <= threshold``. ``scale`` is the mean of the first epochs' losses (up to
    ``scale_epochs``), frozen afterwards. At a turning point the stage rises and the window is emptied; the threshold
    shrinks by ``decay`` at every turning point but the last.

    Args:
        threshold: epsilon of the paper.
        decay: alpha of the paper.
        stages: number of stages (turning points + 1).
        window: losses compared (authors: 5).
        scale_epochs: epochs that set the scale (authors: 10).
    """

    def __init__(
        self, threshold: float, decay: float, stages: int = 4, window: int = 5, scale_epochs: int = 10
    ) -> None:
        self.threshold = threshold
        self.decay = decay
        self.turning_points = stages - 1
        self.window = window
        self.scale_epochs = scale_epochs
        self.stage = 0
        self._recent: list[float] = []
        self._first: list[float] = []

    def update(self, loss: float) -> bool:
        """Take the loss of a finished epoch; return whether it is a turning point (the stage has then risen)."""
        if len(self._first) < self.scale_epochs:
            self._first.append(loss)
        if self.stage >= self.turning_points:
            return False
        self._recent = [*self._recent, loss][-self.window :]
        if len(self._recent) < self.window or not all(change <= self.threshold for change in self.changes()):
            return False
        self.stage += 1
        self._recent = []
        if self.stage < self.turning_points:
            self.threshold *= self.decay
        return True

    def changes(self) -> Sequence[float]:
        """Normalised differences of the window's older losses to its newest; nan (no turning point) at scale 0."""
        scale = sum(self._first) / len(self._first) or math.nan
        return [abs(v - self._recent[-1]) / scale for v in self._recent[:-1]]

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "threshold": self.threshold, "stage": self.stage, "recent": list(self._recent), "first": list(self._first),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self.threshold, self.stage = state["threshold"], state["stage"]
        self._recent, self._first = list(state["recent"]), list(state["first"])


class LossClock:
    """Turns step losses into the indicator's epoch losses.

    By default an epoch is an evaluation period: the engine's mean loss is taken as it is. The authors' code sums the
    losses of a fixed number of iterations (its evaluation period: 400 in their PFQ script, 390 in their FracTrain
    script) and divides by the batches of one data pass (391), so that its epoch is not an epoch; ``period`` gives that
    behaviour.

    Args:
        indicator: what to update.
        period: iterations per epoch of the authors' clock, 0 for evaluation periods.
        divisor: what the sum is divided by on the authors' clock.
        own_mean: on evaluation periods take the mean of the steps' losses as they came in, not the engine's.
    """

    def __init__(self, indicator: LossIndicator, period: int = 0, divisor: float = 1, own_mean: bool = False) -> None:
        self.indicator = indicator
        self.period = period
        self.divisor = divisor
        self.own_mean = own_mean
        self._sum: Any = 0.0  # a tensor on the training device once steps come in: no read per step
        self._steps = 0

    def step(self, loss: Any) -> bool:
        """Take a step's loss (number or detached 0-dim tensor); True at a turning point of the authors' clock."""
        if not (self.period or self.own_mean):
            return False
        self._sum = self._sum + loss
        self._steps += 1
        return bool(self.period) and self._steps >= self.period and self.indicator.update(self._taken() / self.divisor)

    def epoch(self, mean_loss: float) -> bool:
        """Take the mean loss of a finished evaluation period; True at a turning point of that clock."""
        if self.period:
            return False
        if steps := self._steps:  # none where the engine's mean is taken, or all steps were skipped
            mean_loss = self._taken() / steps
        return self.indicator.update(mean_loss)

    def _taken(self) -> float:
        """The sum so far; a new one begins."""
        total, self._sum, self._steps = float(self._sum), 0.0, 0
        return total

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the sum keeps its type, so that a resumed clock adds up exactly as an uninterrupted one."""
        total = self._sum if isinstance(self._sum, float) else self._sum.detach().cpu()
        return {"sum": total, "steps": self._steps, "indicator": self.indicator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self._sum = state["sum"] if state["steps"] else 0.0
        self._steps = state["steps"]
        self.indicator.load_state_dict(state["indicator"])


# -- the method --------------------------------------------------------------------------------------------------------


class StageSettings(MethodSettings):
    """Settings of the loss-change indicator that moves the stages.

    What epsilon and alpha the paper's rows were made with is not known. The defaults are those of the commands that the
    authors' README gives for ResNet-74 on CIFAR-100 and ResNet-18 on ImageNet; their CIFAR scripts' own defaults are
    0.15 and 0.4, with which stages come much earlier.
    """

    removed: ClassVar[Mapping[str, str]] = {"compat": "the authors' clock is indicator_clock=authors"}

    epsilon: float = Field(
        0.05,
        gt=0,
        description="initial threshold of the indicator (paper: epsilon); 0.05 in the authors' README, 0.15 in their "
        "CIFAR scripts",
    )
    alpha: float = Field(
        0.3,
        gt=0,
        le=1,
        description="factor on the threshold at a turning point (paper: alpha); 0.3 in the authors' README, 0.4 in "
        "their CIFAR scripts",
    )
    window: int = Field(5, ge=2, description="epochs whose losses are compared")
    scale_epochs: int = Field(10, ge=1, description="first epochs, whose mean loss normalises the differences")
    indicator_clock: Literal["epochs", "authors"] | Annotated[int, Field(ge=1)] = Field(
        "epochs",
        description="what the indicator takes for an epoch: an evaluation period (epochs); or as the authors' CIFAR "
        "scripts a fixed number of iterations, 400 (PFQ) or 390 (FracTrain) of 64,000 and in proportion for other "
        "lengths, whose losses are summed and divided by a pass of 391 (authors); or one of so many equal parts of the "
        "run (a number)",
        json_schema_extra=instead_of("compat", "none"),
    )


class PFQSettings(StageSettings):
    """Settings of PFQ; stages as in the authors' CIFAR-100 command."""

    bits: tuple[int, ...] = Field((3, 4, 6, 8), description="forward bits (A and W) of the stages")
    grad_bits: tuple[int, ...] = Field((6, 6, 8, 8), description="error bits of the stages")
    running: float = Field(0.9, ge=0, lt=1, description="fraction of the old activation range kept (evaluation)")
    depthwise_bits: DepthwiseBits = DEPTHWISE_BITS
    keep: KeptLayers = ()
    layers: Layers = "convolutions"

    @model_validator(mode="after")
    def _same_length(self) -> PFQSettings:
        check_pairs(self.bits, self.grad_bits, "stage")
        return self


AUTHORS_RUN, AUTHORS_PASS = 64_000, 391  # iterations of the authors' CIFAR runs, and of one pass over the data

# For the contract: a stage every second epoch, and what changes that within a few epochs.
STAGE_VARIATIONS = {
    "epsilon": Variation(1e6, given={"window": 2}), "alpha": 1e-12, "window": 2, "indicator_clock": 2,
}  # fmt: skip
STAGE_INERT = {"scale_epochs": "only scales what epsilon is compared with, and ten epochs are more than a few steps"}


def stage_clock(
    settings: StageSettings, stages: int, period: int, context: MethodContext, total: bool = False
) -> LossClock:
    """The indicator on the clock that the settings ask for.

    Args:
        settings: of the method.
        stages: number of stages.
        period: the authors' iterations per epoch.
        context: of the run, whose length the authors' clock is scaled to.
        total: the method shows the clock another loss than the task's.

    Raises:
        ConfigError: a clock that counts iterations, and the length of training is not known.
    """
    indicator = LossIndicator(settings.epsilon, settings.alpha, stages, settings.window, settings.scale_epochs)
    if settings.indicator_clock == "epochs":
        return LossClock(indicator, own_mean=total)
    if context.total_steps < 2:
        raise ConfigError(
            f"indicator_clock={settings.indicator_clock} needs the length of training: give total_steps (attach, "
            "MethodContext)"
        )
    if isinstance(settings.indicator_clock, int):
        part = max(1, round(context.total_steps / settings.indicator_clock))
        return LossClock(indicator, part, part)
    own = max(1, round(period * context.total_steps / AUTHORS_RUN))
    return LossClock(indicator, own, own * AUTHORS_PASS / period)


class PFQ(Method):
    """Progressive precision: A, W and E of all convolutions grow in four stages when the loss stops falling.

    A: affine per tensor, nearest; W: affine per filter, nearest; E: affine per tensor, stochastic. Classifier and
    BatchNorm in floating point.
    """

    name = "pfq"
    source = "Fu et al., FracTrain, NeurIPS 2020 (arXiv 2012.13113), section 3.1 and Algorithm 1; authors' train_pfq.py"
    Settings = PFQSettings
    authors_period = 400
    contract_settings = {"window": 2, "epsilon": 1e6}
    contract_variations = {**STAGE_VARIATIONS, "keep": ("stem.0",)}
    contract_inert = {**STAGE_INERT, **DEPTHWISE_INERT, **LAYERS_INERT}

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize all convolutions at the first stage; depthwise ones stay at their own widths."""
        self._clock = stage_clock(self.settings, len(self.settings.bits), self.authors_period, context)
        staged, constant = self._precision(), depthwise_precision(self.settings.depthwise_bits, self.settings.running)

        def rule(_name: str, layer: nn.Module) -> Precision:
            return constant if is_depthwise(layer) else staged

        convert_body(model, rule, self.state, self.settings.keep, self.settings.layers == "all")
        self._layers = [m for m in quant_layers(model) if not (m.precision.is_float or is_depthwise(m))]
        return model

    def _precision(self) -> Any:
        stage = self._clock.indicator.stage
        bits, grad_bits = self.settings.bits[stage], self.settings.grad_bits[stage]
        return fractrain_precision(bits, bits, grad_bits, self.settings.running)

    def _apply(self) -> None:
        precision = self._precision()
        for layer in self._layers:
            layer.precision = precision

    def step_key(self, step: int) -> Hashable | None:
        """The stage."""
        return self._clock.indicator.stage

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        """Authors' clock only."""
        if self._clock.step(loss):
            self._apply()

    def on_epoch_end(self, epoch: int, loss: float) -> None:
        """Move to the next stage at a turning point; it applies from the next step on."""
        if self._clock.epoch(loss):
            self._apply()

    def metrics(self) -> dict[str, float]:
        """Stage and widths in force."""
        stage = self._clock.indicator.stage
        return {"stage": stage, "bits": self.settings.bits[stage], "grad_bits": self.settings.grad_bits[stage]}

    def state_dict(self) -> dict[str, Any]:
        """Indicator."""
        return {"clock": self._clock.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the indicator and the layers' precision."""
        self._clock.load_state_dict(state["clock"])
        self._apply()
