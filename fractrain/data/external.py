"""Data sets from elsewhere by name: ``folder:DIR``, ``hf:OWNER/NAME@REV``, ``torchvision:SVHN``.

* ``folder:DIR``: photos in ``DIR/train/<class>/`` and ``DIR/val/<class>/``, as many classes as there are folders.
* ``hf:OWNER/NAME@REV``: a table on the Hugging Face hub, streamed, at a pinned revision; its image and its label column
  are found by their types, results are reported on its split ``test``, else ``validation``.
* ``torchvision:NAME``: one of :data:`TORCHVISION`, downloaded by torchvision and held in memory.

Photos are read at 224x224 pixels; ``?size=64`` behind the name says another size. Ours, since no paper says anything
about them: ImageNet's normalization, random crops and mirror images for photos, none for torchvision's, and the recipe
of CIFAR (64,000 steps of 128 images; ``fractrain.data.cifar.RECIPE``), to be changed with ``--set recipe.KEY=VALUE``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from fractrain.data.imagenet import MEAN, STD, Photos
from fractrain.data.images import ArraySource
from fractrain.data.info import DatasetInfo
from fractrain.data.parquet_data import Layout, RowData, hub_data, pinned_table
from fractrain.data.places import offline_variable, root_of
from fractrain.util.errors import ConfigError, DataError, MachineError, did_you_mean, message_line

SIZE: Final = 224
# torchvision's data sets of images of one size: classes, shape, and how its two parts are asked for.
_BY_FLAG: Final = ({"train": True}, {"train": False})
_BY_SPLIT: Final = ({"split": "train"}, {"split": "test"})
TORCHVISION: Final[dict[str, tuple[int, tuple[int, int, int], tuple[dict[str, Any], dict[str, Any]]]]] = {
    "SVHN": (10, (3, 32, 32), _BY_SPLIT), "STL10": (10, (3, 96, 96), _BY_SPLIT), "MNIST": (10, (1, 28, 28), _BY_FLAG),
    "FashionMNIST": (10, (1, 28, 28), _BY_FLAG), "KMNIST": (10, (1, 28, 28), _BY_FLAG),
    "USPS": (10, (1, 16, 16), _BY_FLAG),
}  # fmt: skip


def outside_dataset(name: str) -> DatasetInfo | None:
    """Return the data set for a name with a prefix, or None where the prefix is unknown.

    Raises:
        ConfigError: what follows the prefix makes no sense.
        DataError: there is no such folder, or the table has no images with labels.
        MachineError: the hub cannot be asked.
    """
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision":
        return _torchvision(name, rest)
    if prefix not in ("folder", "hf"):
        return None
    place, size = _split_size(name, rest)
    return _folder(name, place, size) if prefix == "folder" else _hub(name, place, size)


def _split_size(name: str, rest: str) -> tuple[str, int]:
    place, mark, text = rest.partition("?size=")
    if not place or (mark and not text.isdecimal()) or (mark and not 8 <= int(text) <= 1024):
        raise ConfigError(f"data set {name!r}: expected a place, and perhaps ?size=N with N of 8 to 1024 pixels")
    return place, int(text) if mark else SIZE


def _photos(name: str, title: str, classes: int, size: int, access: Photos, sizes: tuple[int, int]) -> DatasetInfo:
    return DatasetInfo(
        name=name, title=title, classes=classes, shape=(3, size, size), train_size=sizes[0], test_size=sizes[1],
        mean=MEAN, std=STD, augment=True, flip=True, access=access, source=title,
    )  # fmt: skip


@dataclass(frozen=True)
class NamedFolder(Photos):
    """A folder of photos given by its path."""

    path: str = ""

    def folder(self, info: DatasetInfo, data_dir: str | Path | None) -> Path:
        """The path, whatever the folder of the data sets is."""
        return Path(self.path).expanduser()

    def id_name(self, info: DatasetInfo) -> str:
        """The folder's own name and what is in it, wherever it lies: a digest over name and size of every image.

        Raises:
            DataError: it is no such folder.
        """
        data = self.load(info, None, False, 0.0, 0)
        size = f"?size={info.shape[-1]}" if info.shape[-1] != SIZE else ""
        return f"folder:{self.folder(info, None).resolve().name}-{data.digest[:8]}{size}"


def _folder(name: str, place: str, size: int) -> DatasetInfo:
    root = Path(place).expanduser() / "train"
    if not root.is_dir():
        raise DataError(f"data set {name!r}: no folder {root}; expected train/<class>/ and val/<class>/ in {place}")
    classes = sum(item.is_dir() for item in os.scandir(root))
    if not classes:
        raise DataError(f"data set {name!r}: {root} has no class folders")
    access = NamedFolder(how_to_get=f"put train/<class>/ and val/<class>/ into {place}", path=place)
    return _photos(name, f"photos of {classes} classes in {place}", classes, size, access, (0, 0))


@dataclass(frozen=True)
class HubTable(Photos):
    """A table of images on the hub, at a pinned revision."""

    revision: str = ""
    layout: Layout = field(default_factory=Layout)

    def hub(self, info: DatasetInfo) -> str:
        """``owner/name@revision``."""
        return self.revision

    def load(
        self, info: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int
    ) -> RowData:
        """Describe the table; rows are streamed while training."""
        return hub_data(info, self.revision, val_fraction, self.layout)


def _hub(name: str, place: str, size: int) -> DatasetInfo:
    repository, revision = pinned_table(f"data set {name!r}", place)
    if variable := offline_variable():
        raise MachineError(f"data set {name!r}: the hub must be asked, but {variable} is set: unset it")
    try:
        import datasets

        found = datasets.load_dataset_builder(repository, revision=revision).info
    except ImportError as error:
        raise MachineError(f"data set {name!r} needs datasets ({error}); mend with `pip install datasets`") from error
    except Exception as error:  # what fsspec and the hub's client raise
        raise MachineError(f"data set {name!r}: the hub cannot be asked: {message_line(error)}") from error
    features, splits = dict(found.features or {}), dict(found.splits or {})
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    test = next((split for split in ("test", "validation") if split in splits), "")
    if len(images) != 1 or not labels or not test or "train" not in splits:
        raise DataError(
            f"data set {name!r}: expected one column of images, one of class labels, the split train, and test or "
            f"validation; it has {', '.join(features) or 'no columns'} in {', '.join(splits) or 'no splits'}"
        )
    label = "label" if "label" in labels else labels[0]
    access = HubTable(revision=place, layout=Layout(test, images[0], label))
    sizes = int(splits["train"].num_examples), int(splits[test].num_examples)
    return _photos(name, f"{place} on the Hugging Face hub", features[label].num_classes, size, access, sizes)


@dataclass(frozen=True)
class TorchvisionArrays(ArraySource):
    """One of torchvision's data sets whose images all have one size."""

    dataset: str = ""

    def arrays(self, info: DatasetInfo, data_dir: str | Path | None, download: bool) -> Any:
        """Read both parts; torchvision checks its files."""
        from torchvision import datasets

        kind = getattr(datasets, self.dataset)
        root, parts = root_of(data_dir), []
        for arguments in TORCHVISION[self.dataset][2]:
            try:
                part = kind(str(root), **arguments, download=download)
            except (RuntimeError, OSError) as error:
                remedy = "check the network" if download else "mend with --download"
                wrong = MachineError if download else DataError
                raise wrong(f"{info.name} is not (whole) in {root}: {message_line(error)}; {remedy}") from error
            labels = part.labels if hasattr(part, "labels") else part.targets
            images = np.asarray(part.data)
            parts.append((images[:, None] if images.ndim == 3 else images, np.asarray(labels)))
        return tuple(parts)


def _torchvision(name: str, dataset: str) -> DatasetInfo:
    if dataset not in TORCHVISION:
        known = f"{did_you_mean(dataset, TORCHVISION)}; there are {', '.join(TORCHVISION)}"
        raise ConfigError(f"torchvision's data set {dataset!r} is not among those that can be used{known}")
    classes, shape, _ = TORCHVISION[dataset]
    mean, std = (0.5,) * shape[0], (0.5,) * shape[0]
    return DatasetInfo(
        name=name, title=f"torchvision.datasets.{dataset}", classes=classes, shape=shape, train_size=0, test_size=0,
        mean=mean, std=std, access=TorchvisionArrays(dataset), source=f"torchvision.datasets.{dataset}",
    )  # fmt: skip
