"""How long and with which optimizer settings a model is trained: the recipe of each data set and profile.

The CIFAR recipe is the paper's (64,000 iterations of 128 images, SGD with momentum, two drops of the learning rate;
source: the authors' training scripts). How it is scaled to a share of its length: :mod:`fractrain.engine.length`.
``smoke`` is for the embedded data sets; on a real data set it is a reduced run that only shows that everything works.

Adaptation and fine-tuning come after another run. The papers' protocols are not available to us. Ours: the source run
is full-precision training by the standard recipe on its part of the data (:mod:`fractrain.data.transfer_splits`); the
run itself starts from its final weights, with a new optimizer, half of the standard recipe's iterations and a tenth of
its learning rate. In adaptation the classifier (the model's last linear layer) starts as the seed initialises it, since
the classes are others; everything else, and in fine-tuning the classifier as well, comes from the source run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

import pydantic
from pydantic import Field

from fractrain.data.cifar import RECIPE
from fractrain.data.embedded import SMOKE_RECIPE
from fractrain.data.info import DatasetInfo
from fractrain.engine.length import length_divisor
from fractrain.methods.optimizer_recipe import OptimizerRecipe
from fractrain.util.errors import ConfigError
from fractrain.util.settings import ADDED, check_sizes

REAL_SMOKE: Final = 160  # smoke on real data: 400 iterations, about one CIFAR epoch
# Evaluation periods that a run of 1/n of the paper's length has at least: methods that watch the loss from period to
# period (PFQ, FracTrain) need five for each of their three changes of precision.
PERIODS: Final = 20


Setting = Literal["standard", "adaptation", "adaptation-source", "fine-tuning", "fine-tuning-source"]
SETTINGS: Final[tuple[Setting, ...]] = (
    "standard", "adaptation", "adaptation-source", "fine-tuning", "fine-tuning-source",
)  # fmt: skip
SOURCE_OF: Final[Mapping[str, Setting]] = {"adaptation": "adaptation-source", "fine-tuning": "fine-tuning-source"}
TRANSFER_LENGTH: Final = 0.5
TRANSFER_LR: Final = 0.1
TRANSFER_NOTE: Final = (
    "Adaptation and fine-tuning follow our own protocol, the paper's is not available: classes (adaptation) or "
    "training images (fine-tuning) are divided in two halves by the seed; the model is trained on the first half in "
    "full precision by the standard recipe, then goes on with the second half by the row's method for half as many "
    "iterations at a tenth of the learning rate; in adaptation the classifier starts anew. Costs are those of the "
    "second half alone."
)


class Recipe(OptimizerRecipe):
    """Length of training, beside the settings of the optimizer.

    Attributes:
        iterations: optimizer steps.
        batch_size: images per step, or sequences of words.
        clip_norm: gradients are scaled down to this common norm, 0 for never.
        schedule: ``steps`` (drops at ``milestones``), ``cosine`` (to zero at the end) or ``inverse_sqrt`` (with the
            inverse square root of the step after the warm-up), each after ``warmup``.
        milestones: steps from which on the learning rate is multiplied by ``lr_decay`` once more.
        warmup: steps of linear warm-up, 0 for none.
        eval_every: steps of one evaluation period, the engine's "epoch"; 0 means one pass over the training set.
        val_fraction: part of the training set held back for validation; 0 means no validation split.
        augment: random crop and flip, where the data set has them.
        zero_init_residual: start the last BatchNorm of every residual block at zero, so that a deep network begins as a
            shallow one (Goyal et al. 2017, section 5.1); not in the papers' recipes, for short runs only.
        sync_ranges: on several processes: ranges of activations and errors are those of the global batch.
        sync_batch_norm: on several processes: BatchNorm's statistics are those of the global batch.
        deterministic: ask the GPU for deterministic algorithms only (a CPU run is always deterministic).
    """

    iterations: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    clip_norm: float = Field(default=0.0, ge=0, json_schema_extra=ADDED)
    schedule: Literal["steps", "cosine", "inverse_sqrt"] = Field(default="steps", json_schema_extra=ADDED)
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    lr_decay: Annotated[float, Field(gt=0)] = 0.1
    warmup: Annotated[int, Field(ge=0)] = 0
    eval_every: Annotated[int, Field(ge=0)] = 0
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: bool = True
    deterministic: bool = False
    zero_init_residual: bool = Field(default=False, json_schema_extra=ADDED)
    sync_ranges: bool = Field(default=True, json_schema_extra=ADDED)
    sync_batch_norm: bool = Field(default=True, json_schema_extra=ADDED)

    @pydantic.model_validator(mode="after")
    def _of_sense(self) -> Self:
        check_sizes(self)
        return self

    @pydantic.field_validator("milestones")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("milestones must ascend")
        return value


def default_profile(embedded: bool) -> str:
    """Return ``smoke`` for an embedded data set and ``paper`` for a real one."""
    return "smoke" if embedded else "paper"


def recipe_values(info: DatasetInfo, profile: str) -> dict[str, Any]:
    """Return the recipe of one data set and profile as plain values.

    A data set that has none gets that of CIFAR; an embedded one, that of ``digits``. ``1/n``: iterations, milestones
    and warm-up of the paper's recipe divided by n; an evaluation period is one pass as in the paper, or a twentieth of
    a run of fewer than 20 passes.

    Raises:
        ConfigError: an embedded data set with a profile that claims something about the paper, or a share too small to
            have its evaluation periods.
    """
    own = dict(info.recipe or (SMOKE_RECIPE if info.embedded else RECIPE))
    if info.embedded:
        if profile != "smoke":
            raise ConfigError(
                f"profile {profile!r} needs a real data set, {info.name!r} is an embedded one: use --profile smoke"
            )
        return own
    if profile == "paper":
        return own
    if profile == "smoke":  # its periods stay as long: twenty evaluations would take longer than the training
        return with_length(own, own["iterations"] // REAL_SMOKE)
    n = length_divisor(profile) or 1
    iterations = own["iterations"] // n
    if iterations < PERIODS:
        raise ConfigError(f"length 1/{n} of {info.name}'s recipe is {iterations} iterations: {PERIODS} are needed")
    values = with_length(own, iterations)
    return {**values, "eval_every": _period(info, own, values)}


def _period(info: DatasetInfo, paper: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """Steps of one evaluation period of a shortened run, 0 for a pass.

    Where the paper's recipe names a period, there are as many of them as in the paper's run. Where it is a pass, a
    run of too few passes has ``PERIODS``.
    """
    iterations = int(values["iterations"])
    if every := int(paper.get("eval_every", 0)):
        periods = -(-int(paper["iterations"]) // every)
    elif iterations * values["batch_size"] < PERIODS * (info.train_size or info.usual_train_size):
        periods = PERIODS
    else:
        return 0
    whole = -(-iterations // periods)  # rounded up, so that no last period of a few steps is left over,
    return whole if -(-iterations // whole) >= periods else max(1, iterations // periods)  # unless that makes fewer


def with_length(values: dict[str, Any], iterations: int) -> dict[str, Any]:
    """Return ``values`` for another number of iterations, milestones and warm-up scaled in proportion.

    ``eval_every`` stays: what one evaluation period is does not depend on how many there are.
    """
    ratio = iterations / values["iterations"]
    scaled = [max(1, round(m * ratio)) for m in values.get("milestones", [])]
    warmup = round(values.get("warmup", 0) * ratio)
    return {**values, "iterations": iterations, "milestones": sorted(set(scaled)), "warmup": warmup}


def transfer_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of an adaptation or a fine-tuning, from the standard one of data set and profile."""
    shorter = with_length(values, max(1, round(values["iterations"] * TRANSFER_LENGTH)))
    every = values.get("eval_every", 0)  # as many evaluation periods; 0 is a pass over half of the data, half as long
    periods = {"eval_every": max(1, round(every * TRANSFER_LENGTH))} if every else {}
    return {**shorter, "lr": values["lr"] * TRANSFER_LR, **periods}
