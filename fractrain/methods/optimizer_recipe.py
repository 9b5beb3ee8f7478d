"""What an optimizer is made of; imports no torch, for runs are planned without it."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from fractrain.util.settings import ADDED


class OptimizerRecipe(pydantic.BaseModel):
    """What an optimizer is made of.

    Attributes:
        optimizer: ``sgd`` (with momentum), ``nesterov`` (the same with Nesterov's correction), ``adam`` or ``adamw``.
        lr, momentum, weight_decay, betas: its settings; ``betas`` are Adam's, ``momentum`` is the other two's.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    optimizer: Literal["sgd", "nesterov", "adam", "adamw"] = Field(default="sgd", json_schema_extra=ADDED)
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.98), json_schema_extra=ADDED
    )
