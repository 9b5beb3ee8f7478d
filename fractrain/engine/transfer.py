"""Adaptation and fine-tuning as settings of a run: which run comes before it, and how long it is.

The papers' protocols are not available to us. Ours: the source run is full-precision training by the standard recipe on
its part of the data (:mod:`fractrain.data.parts`); the run itself starts from its final weights, with the optimizer
anew, half of the standard recipe's iterations and a tenth of its learning rate. In adaptation the classifier (the
model's last linear layer) starts as the seed initialises it, since the classes are others; everything else, and in
fine-tuning the classifier as well, comes from the source run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from fractrain.engine.recipes import with_length

Setting = Literal["standard", "adaptation", "adaptation-source", "fine-tuning", "fine-tuning-source"]
SETTINGS: Final[tuple[Setting, ...]] = (
    "standard", "adaptation", "adaptation-source", "fine-tuning", "fine-tuning-source",
)  # fmt: skip
SOURCE_OF: Final[Mapping[str, Setting]] = {"adaptation": "adaptation-source", "fine-tuning": "fine-tuning-source"}
LENGTH: Final = 0.5
LR: Final = 0.1
NOTE: Final = (
    "Adaptation and fine-tuning follow our own protocol, the paper's is not available: classes (adaptation) or "
    "training images (fine-tuning) are divided in two halves by the seed; the model is trained on the first half in "
    "full precision by the standard recipe, then goes on with the second half by the row's method for half as many "
    "iterations at a tenth of the learning rate; in adaptation the classifier starts anew. Costs are those of the "
    "second half alone."
)


def transfer_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of an adaptation or a fine-tuning, from the standard one of data set and profile."""
    shorter = with_length(values, max(1, round(values["iterations"] * LENGTH)))
    return {**shorter, "lr": values["lr"] * LR}
