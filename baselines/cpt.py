"""cpt: cyclic precision training. The forward width swings between two bounds along a cosine, 32 times per training.

Operands as in ``static`` (the authors' quantizer is the FracTrain one): A affine per tensor and W affine per output
filter, nearest, at the width of the step; E affine per tensor, stochastic, at 8 bits in EB and GC. All convolutions;
classifier and BatchNorm in floating point.

At step t the width is ``rint(low + (high - low) / 2 * (1 - cos(pi * (t mod T) / T)))``, T = ``int(steps / cycles)``,
half to even: it rises from ``low`` to ``high`` and drops back. Steps left over when ``cycles`` does not divide the
length begin one more cycle, as in the authors' code.

Departures (ours):

* evaluation runs at ``high``. The authors' code evaluates at the width of the step at hand, which is ``high`` at the
  end of 64,000 steps, but may be any width at the end of another length; ``evaluation=current`` does that.
* a run of less than ``2 * cycles`` steps gets fewer cycles, of one step per width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import nn

from fractrain.layers.convert import convert_body, quant_layers
from fractrain.methods.base import LAYERS_INERT, KeptLayers, Layers, Method, MethodContext, MethodSettings
from fractrain.numerics.precision import Precision, fractrain_precision
from fractrain.util.errors import ConfigError

Bits = Annotated[int, Field(ge=2, le=16)]


class CPTSettings(MethodSettings):
    """Settings of cpt; defaults are the paper's example 3-8 / 8."""

    bits: tuple[Bits, Bits] = Field((3, 8), description="lowest and highest forward bits (A and W)")
    grad_bits: tuple[Bits, Bits] = Field((8, 8), description="lowest and highest error bits; equal in all results")
    cycles: int = Field(32, ge=1, description="cycles per training")
    evaluation: Literal["highest", "current"] = Field("highest", description="width in evaluation; authors: current")
    running: float = Field(0.9, ge=0, lt=1, description="fraction of the old activation range kept (evaluation)")
    keep: KeptLayers = ()
    layers: Layers = "convolutions"

    @model_validator(mode="after")
    def _ordered(self) -> CPTSettings:
        for low, high in (self.bits, self.grad_bits):
            if low > high:
                raise ValueError(f"bounds must ascend, got {low}, {high}")
        return self


def cycle_length(total_steps: int, cycles: int, widths: int = 1) -> int:
    """Steps of one cycle: ``int(total_steps / cycles)``; one per width where that leaves less than 2 steps."""
    period = total_steps // cycles
    return period if period >= 2 else min(total_steps, widths)


def cyclic_bits(step: int, period: int, low: int, high: int) -> int:
    """Width at a step (0-based) of a schedule with cycles of ``period`` steps. Source: CPT (arXiv 2101.09868)."""
    return round(low + 0.5 * (high - low) * (1 - math.cos(math.pi * (step % period) / period)))


class CPT(Method):
    """Cyclic precision: A and W swing between 3 and 8 bits, 32 cosine cycles per training; E stays at 8 bits."""

    name = "cpt"
    source = "Fu et al., CPT, ICLR 2021 (arXiv 2101.09868); authors' code"
    Settings = CPTSettings
    contract_settings = {"cycles": 2}
    contract_inert = LAYERS_INERT
    contract_variations = {"bits": (4, 6), "grad_bits": (6, 6), "cycles": 3, "keep": ("stem.0",)}

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """Quantize all convolutions; their width is set at the start of a step and before every forward pass."""
        s: CPTSettings = self.settings
        widths = max(high - low for low, high in (s.bits, s.grad_bits)) + 1
        self.period = cycle_length(context.total_steps, s.cycles, widths)
        self._held: int | None = None
        self._precisions: dict[tuple[int, int], Precision] = {}
        model = convert_body(model, self._precision(*self.widths(0)), self.state, s.keep, s.layers == "all")
        model.register_forward_pre_hook(self._set_widths)  # evaluation has no step that starts
        self._model = model
        return model

    def on_step_start(self, step: int) -> None:
        """Set the widths of the step.

        Raises:
            ConfigError: the length of training was not given.
        """
        if step and self.context.total_steps < 2:
            raise ConfigError("cpt's schedule needs the length of training: give total_steps (attach, MethodContext)")
        super().on_step_start(step)
        self._set_widths(self._model)

    def step_key(self, step: int) -> Hashable | None:
        """The widths of the step."""
        return self.widths(step)

    def widths(self, step: int) -> tuple[int, int]:
        """Forward and error width of a training step, a pure function of the step."""
        s: CPTSettings = self.settings
        forward = cyclic_bits(step, self.period, *s.bits) if self._held is None else self._held
        return forward, cyclic_bits(step, self.period, *s.grad_bits)

    def hold(self, bits: int | None) -> None:
        """Train at this forward width until told otherwise (None: by the schedule); for the precision range test."""
        self._held = bits

    def _precision(self, bits: int, grad_bits: int) -> Precision:
        key = (bits, grad_bits)
        if key not in self._precisions:  # one object per width: the ledger recognises it
            self._precisions[key] = fractrain_precision(bits, bits, grad_bits, self.settings.running)
        return self._precisions[key]

    def _set_widths(self, model: nn.Module, _inputs: Any = None) -> None:
        s: CPTSettings = self.settings
        highest = not model.training and s.evaluation == "highest"
        precision = self._precision(*((s.bits[1], s.grad_bits[1]) if highest else self.widths(self.state.step)))
        for layer in quant_layers(model):
            if not layer.precision.is_float and layer.precision is not precision:
                layer.precision = precision

    def metrics(self) -> dict[str, float]:
        """Widths of the last step, and steps per cycle."""
        bits, grad_bits = self.widths(self.state.step)
        return {"bits": bits, "grad_bits": grad_bits, "cycle_steps": self.period}

    def state_dict(self) -> dict[str, Any]:
        """The step: evaluation may come before the next one."""
        return {"step": self.state.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, the widths of that step included."""
        self.state.step = state["step"]
        self._set_widths(self._model)


@dataclass(frozen=True)
class RangeTest:
    """Outcome of the precision range test.

    Attributes:
        low: lowest width at which training moves, the schedule's lower bound.
        gains: rise of the training accuracy (0..1) seen at each width tried, ascending.
    """

    low: int
    gains: dict[int, float]


def precision_range_test(
    hold: Callable[[int], None], step: Callable[[], float], *, widths: Sequence[int] = tuple(range(2, 9)),
    steps: int = 100, window: int = 20, threshold: float = 0.01,
) -> RangeTest:  # fmt: skip
    """Find the lower bound of the cycle in the first steps of a training, as CPT's precision range test does.

    Training begins at the lowest width, which then rises; the first width at which the training accuracy rises by more
    than a threshold ("the training can partially converge") is the bound. The upper bound is the width of the static
    training that CPT is to replace. The sources readable to us give no more than that: how the rise is measured (mean
    of the last ``window`` steps at a width minus the mean of its first ``window``), and all default values, are ours.

    Args:
        hold: sets the forward width, for example :meth:`CPT.hold`.
        step: makes one training step and returns its training accuracy (0..1). The model is not reset between widths.
        widths: widths to try, ascending.
        steps: steps per width.
        window: steps whose accuracy is averaged.
        threshold: least rise.

    Raises:
        ConfigError: no width passes, or the numbers do not make sense.
    """
    if not widths or list(widths) != sorted(set(widths)) or not 1 <= window <= steps // 2:
        raise ConfigError(
            f"precision range test: widths must ascend and two windows fit into the steps of one width, got "
            f"widths={list(widths)}, steps={steps}, window={window}"
        )
    gains: dict[int, float] = {}
    for bits in widths:
        hold(bits)
        accuracies = [step() for _ in range(steps)]
        gains[bits] = (sum(accuracies[-window:]) - sum(accuracies[:window])) / window
        if gains[bits] > threshold:
            return RangeTest(bits, gains)
    raise ConfigError(
        f"precision range test: training accuracy rose by at most {max(gains.values()):.3f} at {min(widths)} to "
        f"{max(widths)} bits; more steps per width, a larger learning rate or a lower threshold may help"
    )
