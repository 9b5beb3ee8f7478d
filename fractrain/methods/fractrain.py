"""FracTrain: DFQ whose target cost rises in PFQ's stages (FracTrain, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from fractrain.methods.base import MethodContext, Variation
from fractrain.methods.dfq import DFQ, DFQSettings
from fractrain.methods.pfq import STAGE_INERT, STAGE_VARIATIONS, StageSettings, stage_clock
from fractrain.util.settings import ADDED


class FracTrainSettings(DFQSettings, StageSettings):
    """Settings of FracTrain; defaults are the authors' for CIFAR (targets 1.5 / 2 / 2.5 / 3 %)."""

    removed: ClassVar[Mapping[str, str]] = {
        "compat": "what it switched is indicator_clock=authors, indicator_loss=total, cp_batch=nominal, forward=authors"
    }

    target_cp: float = Field(1.5, gt=0, description="target cp of the first stage, percent")
    target_step: float = Field(0.5, ge=0, description="rise of the target at each turning point, percent")
    stages: int = Field(4, ge=1, description="number of stages")
    sharp: bool = Field(True, description="force -1 / +1 without a weak band (authors' CIFAR rule)")
    running: float = Field(0.1, ge=0, lt=1, description="fraction of the old activation range kept (authors' default)")
    indicator_loss: Literal["task", "total"] = Field(
        "task",
        description="what the indicator watches: the task's loss, or the authors' sum with the cost term",
        json_schema_extra=ADDED,
    )


class FracTrain(DFQ):
    """DFQ whose target cp follows PFQ's stages: cheap training first, more precision when the loss stops falling.

    Operands as in DFQ. Stage i has target ``target_cp + i * target_step``; turning points come from the loss-change
    indicator.
    """

    name = "fractrain"
    source = "Fu et al., FracTrain, NeurIPS 2020 (arXiv 2012.13113), section 3.3; authors' train_frac.py"
    Settings = FracTrainSettings
    authors_period = 390
    contract_settings = {"window": 2, "epsilon": 1e6, "target_cp": 0.5, "target_step": 1.2}
    contract_variations = {
        **STAGE_VARIATIONS,
        **DFQ.contract_variations,
        "stages": 1,
        "relax": Variation(100.0, given={"sharp": False}),
        "sharp": Variation(False, given={"relax": 100.0}),
    }
    contract_inert = {
        **STAGE_INERT,
        **DFQ.contract_inert,
        "indicator_loss": "with the epsilon of the contract every loss is a turning point",
    }

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        """As DFQ, with the indicator."""
        s: FracTrainSettings = self.settings
        self._clock = stage_clock(s, s.stages, self.authors_period, context, s.indicator_loss == "total")
        return super().convert(model, context)

    def target(self) -> float:
        """Target cp of the stage in force."""
        return float(self.settings.target_cp + self._clock.indicator.stage * self.settings.target_step)

    def targets(self) -> tuple[float, ...]:
        """Those of all stages."""
        s = self.settings
        return tuple(s.target_cp + stage * s.target_step for stage in range(s.stages))

    def force(self, cp: torch.Tensor) -> torch.Tensor:
        """-1 below the target, +1 from it on; or DFQ's rule."""
        return torch.where(cp < self.target(), -1.0, 1.0) if self.settings.sharp else super().force(cp)

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        """Hand the loss that the indicator watches to its clock."""
        super().on_step_end(step, loss, extra)
        watched = loss if extra is None or self.settings.indicator_loss == "task" else loss + extra
        self._clock.step(watched)

    def on_epoch_end(self, epoch: int, loss: float) -> None:
        """The indicator's clock, where it ticks with evaluation periods."""
        self._clock.epoch(loss)

    def metrics(self) -> dict[str, float]:
        """As DFQ, and the stage."""
        return {"stage": self._clock.indicator.stage, **super().metrics()}

    def state_dict(self) -> dict[str, Any]:
        """As DFQ, and the indicator."""
        return {**super().state_dict(), "clock": self._clock.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        super().load_state_dict(state)
        self._clock.load_state_dict(state["clock"])
