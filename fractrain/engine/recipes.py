"""How long and with which optimizer settings a model is trained: the recipe of each data set and profile.

The CIFAR recipe is the paper's (64,000 iterations of 128 images, SGD with momentum, two drops of the learning rate;
source: the authors' training scripts). How it is scaled to a share of its length: :mod:`fractrain.engine.length`.
``smoke`` is for the embedded data sets; on a real data set it is a reduced run that only shows that everything works.

Adaptation and fine-tuning come after another run. The papers' protocols are not available to us. Ours: the source run
is full-precision training by the standard recipe on its part of the data (:mod:`fractrain.data.parts`); the run itself
starts from its final weights, with a new optimizer, half of the standard recipe's iterations and a tenth of its
learning rate. In adaptation the classifier (the model's last linear layer) starts as the seed initialises it, since the
classes are others; everything else, and in fine-tuning the classifier as well, comes from the source run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import Field

from fractrain.engine.length import share
from fractrain.util.errors import ConfigError
from fractrain.util.settings import ADDED

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


class Recipe(pydantic.BaseModel):
    """Length of training and optimizer settings.

    Attributes:
        iterations: optimizer steps.
        batch_size: images per step, or sequences of words.
        optimizer: ``sgd`` (with momentum), ``nesterov`` (the same with Nesterov's correction), ``adam`` or ``adamw``.
        lr, momentum, weight_decay, betas: its settings; ``betas`` are Adam's, ``momentum`` is the other two's.
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

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    iterations: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    optimizer: Literal["sgd", "nesterov", "adam", "adamw"] = Field(default="sgd", json_schema_extra=ADDED)
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.98), json_schema_extra=ADDED
    )
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

    @pydantic.field_validator("milestones")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("milestones must ascend")
        return value


_CIFAR: Final[dict[str, Any]] = {
    "iterations": 64_000,
    "batch_size": 128,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "milestones": [32_000, 48_000],
    "lr_decay": 0.1,
}
# 90 passes of 256 images with drops after 30 and 60, the standard that the papers follow.
_IMAGENET_PASS: Final = 5_005  # ceil(1,281,167 / 256)
_IMAGENET: Final[dict[str, Any]] = {
    **_CIFAR, "iterations": 90 * _IMAGENET_PASS, "batch_size": 256,
    "milestones": [30 * _IMAGENET_PASS, 60 * _IMAGENET_PASS],
}  # fmt: skip
# Ours, in no paper: 30 passes over the 9,469 images of the whole set.
_IMAGENETTE: Final[dict[str, Any]] = {
    **_CIFAR, "iterations": 4_440, "batch_size": 64, "lr": 0.05, "milestones": [2_220, 3_700],
}  # fmt: skip
# Ours: the papers' settings for language models are not known. Adam as for the first Transformer (Vaswani et al. 2017,
# section 5.3), 32,768 words a step (64 sequences of 512), 50,000 steps: 16 passes over the 103 million words.
_LANGUAGE: Final[dict[str, Any]] = {
    "optimizer": "adam", "betas": [0.9, 0.98], "weight_decay": 0.0, "clip_norm": 1.0, "schedule": "cosine",
    "augment": False,
}  # fmt: skip
_WIKITEXT103: Final[dict[str, Any]] = {
    **_LANGUAGE, "iterations": 50_000, "batch_size": 64, "lr": 5e-4, "warmup": 4_000, "eval_every": 2_000,
}  # fmt: skip
# Ours: 8,192 words a step (16 sequences of 512), 5,100 steps: 20 passes over the 2 million words.
_WIKITEXT2: Final[dict[str, Any]] = {
    **_LANGUAGE, "iterations": 5_100, "batch_size": 16, "lr": 5e-4, "warmup": 500, "eval_every": 255,
}  # fmt: skip
# Training images of the sets whose evaluation period is one pass; a test compares them with the data sets'.
_IMAGES: Final = {"imagenet": 1_281_167, "imagenette": 9_469, "cifar10": 50_000, "cifar100": 50_000}
_PAPER: Final[dict[str, dict[str, Any]]] = {
    "wikitext103": _WIKITEXT103,
    "wikitext2": _WIKITEXT2,
    "imagenet": _IMAGENET,
    "imagenette": _IMAGENETTE,
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
}
# Ours, tuned for minutes on two cores: 3- and 4-bit networks learn little in a few hundred steps at the paper's 0.1.
_SMOKE: Final[dict[str, Any]] = {**_CIFAR, "lr": 0.03, "zero_init_residual": True}
_EMBEDDED: Final[dict[str, dict[str, Any]]] = {
    "digits": {
        **_SMOKE, "iterations": 120, "batch_size": 64, "milestones": [90, 109], "eval_every": 15, "val_fraction": 0.1,
    },
    "docs_text": {  # 256 words a step
        **_LANGUAGE, "iterations": 100, "batch_size": 4, "lr": 1.5e-3, "warmup": 10, "eval_every": 100,
    },
    "digits32": {
        **_SMOKE, "iterations": 64, "batch_size": 32, "milestones": [48, 58], "eval_every": 16, "val_fraction": 0.1,
    },
    "digits100": {
        **_SMOKE, "iterations": 224, "batch_size": 32, "lr": 0.05, "milestones": [184, 208], "eval_every": 32,
        "val_fraction": 0.02, "augment": False,
    },
}  # fmt: skip


def default_profile(embedded: bool) -> str:
    """Return ``smoke`` for an embedded data set and ``paper`` for a real one."""
    return "smoke" if embedded else "paper"


def recipe_values(dataset: str, profile: str, embedded: bool) -> dict[str, Any]:
    """Return the recipe of one data set and profile as plain values.

    ``1/n``: iterations, milestones and warm-up of the paper's recipe divided by n; an evaluation period is one pass as
    in the paper, or a twentieth of a run of fewer than 20 passes.

    Raises:
        ConfigError: an embedded data set with a profile that claims something about the paper, no recipe known, or a
            share too small to have its evaluation periods.
    """
    if embedded:
        if profile != "smoke":
            raise ConfigError(
                f"profile {profile!r} needs a real data set, {dataset!r} is an embedded one: use --profile smoke"
            )
        return dict(_EMBEDDED.get(dataset, _EMBEDDED["digits"]))
    if dataset not in _PAPER:
        raise ConfigError(f"no recipe for data set {dataset!r} in this release: choose one of {', '.join(_PAPER)}")
    paper = _PAPER[dataset]
    if profile == "paper":
        return dict(paper)
    if profile == "smoke":  # its periods stay as long: twenty evaluations would take longer than the training
        return with_length(paper, paper["iterations"] // REAL_SMOKE)
    n = share(profile) or 1
    iterations = paper["iterations"] // n
    if iterations < PERIODS:
        raise ConfigError(f"length 1/{n} of {dataset}'s recipe is {iterations} iterations: {PERIODS} are needed")
    values = with_length(paper, iterations)
    return {**values, "eval_every": _period(dataset, values)}


def _period(dataset: str, values: Mapping[str, Any]) -> int:
    """Steps of one evaluation period of a shortened run, 0 for a pass.

    Where the paper's recipe names a period, there are as many of them as in the paper's run. Where it is a pass, a
    run of too few passes has ``PERIODS``.
    """
    paper, iterations = _PAPER[dataset], int(values["iterations"])
    if every := int(paper.get("eval_every", 0)):
        periods = -(-int(paper["iterations"]) // every)
    elif iterations * values["batch_size"] < PERIODS * _IMAGES[dataset]:
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
    return {
        **values,
        "iterations": iterations,
        "milestones": sorted(set(scaled)),
        "warmup": round(values.get("warmup", 0) * ratio),
    }


def transfer_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of an adaptation or a fine-tuning, from the standard one of data set and profile."""
    shorter = with_length(values, max(1, round(values["iterations"] * TRANSFER_LENGTH)))
    every = values.get("eval_every", 0)  # as many evaluation periods; 0 is a pass over half of the data, half as long
    periods = {"eval_every": max(1, round(every * TRANSFER_LENGTH))} if every else {}
    return {**shorter, "lr": values["lr"] * TRANSFER_LR, **periods}
