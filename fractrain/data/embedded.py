"""``digits``, ``digits100`` and ``digits32``: small real data sets that need no download.

The first two keep the shape of CIFAR-10 and CIFAR-100 as tasks (10 and 100 classes, three channels, a fixed test part)
at a size that a laptop trains in a minute; ``digits32`` has images large enough for the ImageNet ResNets, which divide
height and width by 32. They are data sets of their own; a result on them says nothing about CIFAR or ImageNet.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from fractrain.data.cifar import RECIPE
from fractrain.data.images import (
    ImageData,
    IntArray,
    Split,
    hold_out,
    permutation,
    split_of,
    stratified,
    validation_count,
)
from fractrain.data.info import DatasetInfo, DataSource, package_status
from fractrain.data.status import DataStatus
from fractrain.util.errors import DataError, needed
from fractrain.util.seeds import derive_seed

# SHA-256 of pixels (uint8 0..16) and labels (uint8) of the 1,797 digits in scikit-learn's order.
_CONTENT = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
_SEED = 2020
_TEST_DIGITS = 360
_PAIRS_PER_CLASS = {"train": 60, "test": 10}

Pixels = npt.NDArray[np.uint8]

# Ours, tuned for minutes on two cores: 3- and 4-bit networks learn little in a few hundred steps at the paper's 0.1.
_SMOKE: Final[dict[str, Any]] = {
    **RECIPE, "optimizer": "adamw", "lr": 0.01, "schedule": "cosine", "milestones": [], "zero_init_residual": True,
}  # fmt: skip
SMOKE_RECIPE: Final[dict[str, Any]] = {
    **_SMOKE, "iterations": 120, "batch_size": 64, "eval_every": 15, "val_fraction": 0.1,
}  # fmt: skip
_DIGITS_SOURCE = "Optical Recognition of Handwritten Digits (Alpaydin, Kaynak 1998), test part, as in scikit-learn"
_DIGITS: dict[str, Any] = {
    "augment": True, "flip": False, "embedded": True, "bytes": 0,
    "licence": "CC BY 4.0 (UCI Machine Learning Repository)",
}  # fmt: skip

# Of the training part, rounded to four places; a test recomputes them.
_DIGITS_MEAN, _DIGITS_STD = (0.3062,) * 3, (0.3761,) * 3
_DIGITS32_MEAN, _DIGITS32_STD = (0.3063,) * 3, (0.3236,) * 3
_DIGITS100_MEAN, _DIGITS100_STD = (0.3069,) * 3, (0.3763,) * 3


class Digits(DataSource):
    """Made from scikit-learn's digits, in memory."""

    in_memory: ClassVar[bool] = True

    def load(
        self, info: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int
    ) -> ImageData:
        """Build one of the three; ``data_dir`` and ``download`` are not used."""
        pixels, labels = _read_digits()
        rest, held = stratified(labels, _TEST_DIGITS, derive_seed(_SEED, "digits", "test"))
        if info.name == "digits32":
            pixels = enlarged(pixels, 4)
        if info.name in ("digits", "digits32"):
            train, val = hold_out(info, _split(pixels[rest], labels[rest]), val_fraction, seed)
            return ImageData(info, train, _split(pixels[held], labels[held]), val)
        test = _pairs(pixels[held], labels[held], _PAIRS_PER_CLASS["test"], derive_seed(_SEED, "digits100", "test"))
        train, val = _train_pairs(info, pixels[rest], labels[rest], val_fraction, seed)
        return ImageData(info, train, test, val)

    def status(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Whether scikit-learn is installed."""
        present = importlib.util.find_spec("sklearn") is not None
        return package_status(info, "" if present else "comes with scikit-learn, which is not installed")


DATASETS = (
    DatasetInfo(
        name="digits", title="1,797 handwritten digits of 8x8 pixels in 10 classes, from scikit-learn", classes=10,
        shape=(3, 8, 8), train_size=1_437, test_size=360, mean=_DIGITS_MEAN, std=_DIGITS_STD, pad=1,
        stands_for="cifar10", source=_DIGITS_SOURCE, access=Digits(), recipe=SMOKE_RECIPE, **_DIGITS,
    ),
    DatasetInfo(
        name="digits100",
        title="7,000 pairs of handwritten digits side by side, 8x16 pixels, in 100 classes, from scikit-learn",
        classes=100, shape=(3, 8, 16), train_size=6_000, test_size=1_000, mean=_DIGITS100_MEAN, std=_DIGITS100_STD,
        pad=1, stands_for="cifar100", source=_DIGITS_SOURCE + ", two at a time", access=Digits(),
        recipe={**_SMOKE, "iterations": 224, "batch_size": 32, "eval_every": 32, "val_fraction": 0.02,
                "augment": False},
        **_DIGITS,
    ),
    DatasetInfo(
        name="digits32", title="the 1,797 digits enlarged to 32x32 pixels, in 10 classes, from scikit-learn",
        classes=10, shape=(3, 32, 32), train_size=1_437, test_size=360, mean=_DIGITS32_MEAN, std=_DIGITS32_STD, pad=4,
        stands_for="imagenet", source=_DIGITS_SOURCE + ", enlarged four times (bilinear)", access=Digits(),
        recipe={**_SMOKE, "iterations": 64, "batch_size": 32, "eval_every": 16, "val_fraction": 0.1}, **_DIGITS,
    ),
)  # fmt: skip


def _train_pairs(
    entry: DatasetInfo, pixels: Pixels, labels: IntArray, fraction: float, seed: int
) -> tuple[Split, Split | None]:
    """Draw the training pairs, and validation pairs from digits that no training pair shows.

    Every class has the same number of pairs, so the fraction is rounded to whole pairs per class.
    """
    wanted = validation_count(entry, entry.train_size, fraction)
    pair_seed = derive_seed(_SEED, "digits100", "train")
    if wanted == 0:
        return _pairs(pixels, labels, _PAIRS_PER_CLASS["train"], pair_seed), None
    held_pairs = max(1, round(wanted / entry.classes))
    held_digits = max(20, round(fraction * len(labels)))
    kept, taken = stratified(labels, held_digits, derive_seed(seed, "validation", entry.name))
    train = _pairs(pixels[kept], labels[kept], _PAIRS_PER_CLASS["train"] - held_pairs, pair_seed)
    return train, _pairs(pixels[taken], labels[taken], held_pairs, derive_seed(pair_seed, "validation"))


def _read_digits() -> tuple[Pixels, IntArray]:
    """Return pixels (uint8 0..255, shape ``[1797, 8, 8]``) and labels (int64) as scikit-learn ships them.

    Raises:
        MachineError: scikit-learn is not installed.
        DataError: scikit-learn ships other digits than the ones results here were measured on.
    """
    with needed("the embedded digits need scikit-learn ({}); mend with `pip install scikit-learn`"):
        import sklearn
        from sklearn.datasets import load_digits
    raw, labels = load_digits(return_X_y=True)
    levels = raw.reshape(-1, 8, 8).astype(np.uint8)
    found = hashlib.sha256(levels.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if found != _CONTENT:
        raise DataError(
            f"the digits of scikit-learn {sklearn.__version__} have sha256 {found}, expected {_CONTENT}; results would "
            "not be comparable: install a scikit-learn release with the original digits"
        )
    pixels = (levels.astype(np.uint16) * 255 + 8) // 16  # 0..16 to 0..255, nearest
    return pixels.astype(np.uint8), labels.astype(np.int64)


def enlarged(pixels: Pixels, times: int) -> Pixels:
    """Enlarge grey images bilinearly, in integers: the same bytes on every machine.

    Pixels are squares with their value in the middle, as in ``torch.nn.functional.interpolate``; the edge is repeated.

    Args:
        pixels: uint8, shape ``[N, H, W]``.
        times: even factor.

    Returns:
        uint8, shape ``[N, H * times, W * times]``, rounded to nearest.
    """
    unit = 2 * times  # positions and weights in parts of this

    def along(values: IntArray, axis: int) -> IntArray:
        size = values.shape[axis]
        twice = 2 * np.arange(size * times) + 1 - times  # position in the small image, in parts of ``unit``
        below, weight = np.divmod(twice, unit)
        first, second = (np.take(values, np.clip(below + i, 0, size - 1), axis) for i in (0, 1))
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        mixed: IntArray = first * (unit - weight).reshape(shape) + second * weight.reshape(shape)
        return mixed

    total = along(along(pixels.astype(np.int64), 1), 2)
    return ((total + unit * unit // 2) // (unit * unit)).astype(np.uint8)


def _split(pixels: Pixels, labels: IntArray) -> Split:
    """Make a split of grey images ``[N, H, W]``, the grey value repeated in three channels."""
    return split_of(np.repeat(pixels[:, None], 3, axis=1), labels)


def _pairs(pixels: Pixels, labels: IntArray, per_class: int, seed: int) -> Split:
    """Put two digits side by side: ``per_class`` different pairs of each of the 100 classes 10 * left + right."""
    members = [np.flatnonzero(labels == digit) for digit in range(10)]
    chosen = []
    for label in range(100):
        left, right = members[label // 10], members[label % 10]
        pick = permutation(len(left) * len(right), derive_seed(seed, "pairs", label))[:per_class]
        row, column = np.divmod(pick, len(right))
        chosen.append(np.stack([left[row], right[column], np.full(per_class, label)]))
    # In class order a part of the set would hold a part of the classes.
    a, b, pair_labels = np.concatenate(chosen, axis=1)[:, permutation(100 * per_class, derive_seed(seed, "shuffle"))]
    return _split(np.concatenate([pixels[a], pixels[b]], axis=2), np.ascontiguousarray(pair_labels))
