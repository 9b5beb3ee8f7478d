"""The parts of a data set that adaptation and fine-tuning use: what the source run sees, and what comes afterwards.

The FracTrain paper's exact splits are not available to us; these are ours, and functions of the run's seed alone.

* *Adaptation*: the classes are divided into two halves. The source run trains and is tested on the first half, the
  adaptation on the second. In both, the classes are numbered anew from 0 in ascending order, so both tasks have half as
  many classes as the data set.
* *Fine-tuning*: the training images are divided into two halves with the same class balance. The source run trains on
  the first half, the fine-tuning on the second. Validation and test part, and all classes, are common to both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fractrain.util.errors import ConfigError

if TYPE_CHECKING:
    from fractrain.data.images import ImageData, IntArray, Split
    from fractrain.data.info import DatasetInfo

ADAPTATION, FINE_TUNING = "adaptation", "fine-tuning"
SOURCE = "-source"  # the source run's setting is called ``adaptation-source`` or ``fine-tuning-source``


def unsuitable_reason(info: DatasetInfo, setting: str) -> str | None:
    """Return why a data set cannot be divided for a setting, as a clause; None where it can."""
    if setting == "standard":
        return None
    if info.kind != "image" or not info.access.in_memory:
        return "only image data sets that are held in memory are divided (cifar10, cifar100 and the embedded digits)"
    if setting.startswith(ADAPTATION) and info.classes % 2:
        return f"{info.classes} classes have no halves"
    return None


def part_info(info: DatasetInfo, setting: str) -> DatasetInfo:
    """Return what is known of the part that a run of this setting uses: classes and sizes are those of the part.

    Raises:
        ConfigError: the data set cannot be divided.
    """
    if reason := unsuitable_reason(info, setting):
        raise ConfigError(f"{info.name} cannot be used for {setting}: {reason}")
    if setting == "standard":
        return info
    if setting.startswith(FINE_TUNING):
        return replace(info, train_size=info.train_size // 2)
    return replace(info, classes=info.classes // 2, train_size=info.train_size // 2, test_size=info.test_size // 2)


def part_data(data: ImageData, setting: str, seed: int) -> ImageData:
    """Return the part of a loaded data set that a run of this setting uses, as a copy.

    Args:
        setting: ``standard`` (then ``data`` is returned), or one of the four others.
        seed: the run's seed: source and target run have the same, so that their parts are complementary.

    Raises:
        ConfigError: the data set cannot be divided.
    """
    info = part_info(data.info, setting)
    if setting == "standard":
        return data
    second = not setting.endswith(SOURCE)
    if setting.startswith(FINE_TUNING):
        return replace(data, info=info, train=_half_of_images(data, seed)[second])
    chosen = half_of_classes(data.info, seed)[second]
    val = None if data.val is None else _of_classes(data.val, chosen)
    return replace(data, info=info, train=_of_classes(data.train, chosen), test=_of_classes(data.test, chosen), val=val)


def half_of_classes(info: DatasetInfo, seed: int) -> tuple[IntArray, IntArray]:
    """Return the classes of the source run and those of the adaptation (int64, ascending, disjoint, complete)."""
    import numpy as np

    from fractrain.data.images import permutation
    from fractrain.util.seeds import derive_seed

    order = permutation(info.classes, derive_seed(seed, ADAPTATION, info.name))
    return np.sort(order[: info.classes // 2]), np.sort(order[info.classes // 2 :])


def _half_of_images(data: ImageData, seed: int) -> tuple[Split, Split]:
    from fractrain.data.images import stratified
    from fractrain.util.seeds import derive_seed

    labels = data.train.labels.numpy()
    first, second = stratified(labels, len(labels) // 2, derive_seed(seed, FINE_TUNING, data.info.name))
    return data.train.take(first), data.train.take(second)


def _of_classes(split: Split, classes: IntArray) -> Split:
    """The images of ``classes`` (ascending) in their order, their labels the places in ``classes``."""
    import numpy as np
    import torch

    from fractrain.data.images import Split

    labels = split.labels.numpy()
    kept = split.take(np.flatnonzero(np.isin(labels, classes)))
    return Split(kept.images, torch.from_numpy(np.searchsorted(classes, kept.labels.numpy()).astype(np.int64)))
