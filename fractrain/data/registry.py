"""The data sets known by name. Imports neither torch nor torchvision until something is loaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fractrain.util.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from fractrain.data.images import ImageData


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without loading it.

    Attributes:
        name: registry name.
        title: one line for people.
        classes: number of classes; of a text: words of the vocabulary, ``<eos>`` and ``<unk>`` included.
        shape: (channels, height, width) of an image; of a text: (context,), the words of a sequence.
        train_size: images (of a text: words) in the training part; 0 when a folder of the user's decides.
        test_size: images (words) in the test part, likewise.
        mean: per channel, of pixels scaled to [0, 1], used for normalization.
        std: likewise, standard deviation.
        augment: training images are augmented (random crop after padding with black, random flip).
        pad: pixels of padding on each side before the crop.
        flip: training images are mirrored left-right with probability 1/2.
        embedded: comes with an installed package; nothing to download.
        stands_for: the data set in whose place the smoke profile uses this one, or None.
        source: where it comes from.
        licence: under what terms.
        bytes: size of the download (0 when embedded).
        disk_bytes: size of the files in place; 0 where :func:`fractrain.plan.disk.disk_need` derives it.
        module: module below ``fractrain.data`` that loads it; empty means ``embedded`` or ``cifar``.
        kind: ``image`` or ``text``.
        val_size: words in the validation part that a text has of its own.
        stride: words from one window of a text's evaluation to the next.
        unknowns: of a text: ``<unk>`` in the training, validation and test part; 0 where that is not known.
        checksums: likewise SHA-256 of the official token file, which every form of it must come to
            (:mod:`fractrain.data.text_official`); empty where anything goes.
    """

    name: str
    title: str
    classes: int
    shape: tuple[int, ...]
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool
    pad: int
    flip: bool
    embedded: bool
    stands_for: str | None
    source: str
    licence: str
    bytes: int
    module: str = ""
    kind: Literal["image", "text"] = "image"
    val_size: int = 0
    stride: int = 0
    unknowns: tuple[int, int, int] = (0, 0, 0)
    checksums: tuple[str, str, str] = ("", "", "")
    disk_bytes: int = 0

    @property
    def read_while_training(self) -> bool:
        """Whether its images stay on disk and are decoded batch by batch, instead of being held in memory."""
        return self.module == "imagenet"

    @property
    def protocol(self) -> str:
        """How results on it are measured, in one clause that belongs to every table row."""
        if self.kind == "text":
            return f"perplexity per word token, context {self.shape[0]}, stride {self.stride}"
        return "top-1 accuracy in percent"


_CIFAR_SOURCE = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
_DIGITS_SOURCE = "Optical Recognition of Handwritten Digits (Alpaydin, Kaynak 1998), test part, as in scikit-learn"
_DIGITS: dict[str, Any] = {
    "augment": True, "flip": False, "embedded": True, "bytes": 0,
    "licence": "CC BY 4.0 (UCI Machine Learning Repository)",
}  # fmt: skip

# FracTrain, DFQ and CPT all use these for CIFAR-10 and CIFAR-100 alike.
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)

# Of the training part, rounded to four places; a test recomputes them.
_DIGITS_MEAN, _DIGITS_STD = (0.3062,) * 3, (0.3761,) * 3
_DIGITS32_MEAN, _DIGITS32_STD = (0.3063,) * 3, (0.3236,) * 3
_DIGITS100_MEAN, _DIGITS100_STD = (0.3069,) * 3, (0.3763,) * 3

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_TEXT: dict[str, Any] = {"mean": (), "std": (), "augment": False, "pad": 0, "flip": False, "kind": "text"}
_WIKITEXT: dict[str, Any] = {
    **_TEXT, "shape": (512,), "stride": 512, "val_size": 217_646, "test_size": 245_569, "embedded": False,
    "stands_for": None, "source": "Merity et al., Pointer Sentinel Mixture Models, ICLR 2017",
    "licence": "CC BY-SA 3.0 (Wikipedia)", "module": "text",
}  # fmt: skip

_INFOS = (
    DatasetInfo(
        name="cifar10",
        title="CIFAR-10: 60,000 colour photos in 10 classes",
        classes=10,
        shape=(3, 32, 32),
        train_size=50_000,
        test_size=10_000,
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        augment=True,
        pad=4,
        flip=True,
        embedded=False,
        stands_for=None,
        source=_CIFAR_SOURCE,
        licence="none stated by the authors",
        bytes=170_498_071,
        disk_bytes=186_214_026,
    ),
    DatasetInfo(
        name="cifar100",
        title="CIFAR-100: 60,000 colour photos in 100 classes",
        classes=100,
        shape=(3, 32, 32),
        train_size=50_000,
        test_size=10_000,
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        augment=True,
        pad=4,
        flip=True,
        embedded=False,
        stands_for=None,
        source=_CIFAR_SOURCE,
        licence="none stated by the authors",
        bytes=169_001_437,
        disk_bytes=186_301_098,
    ),
    DatasetInfo(
        name="digits",
        title="1,797 handwritten digits of 8x8 pixels in 10 classes, from scikit-learn",
        classes=10,
        shape=(3, 8, 8),
        train_size=1_437,
        test_size=360,
        mean=_DIGITS_MEAN,
        std=_DIGITS_STD,
        pad=1,
        stands_for="cifar10",
        source=_DIGITS_SOURCE,
        **_DIGITS,
    ),
    DatasetInfo(
        name="digits100",
        title="7,000 pairs of handwritten digits side by side, 8x16 pixels, in 100 classes, from scikit-learn",
        classes=100,
        shape=(3, 8, 16),
        train_size=6_000,
        test_size=1_000,
        mean=_DIGITS100_MEAN,
        std=_DIGITS100_STD,
        pad=1,
        stands_for="cifar100",
        source=_DIGITS_SOURCE + ", two at a time",
        **_DIGITS,
    ),
    DatasetInfo(
        name="digits32",
        title="the 1,797 digits enlarged to 32x32 pixels, in 10 classes, from scikit-learn",
        classes=10,
        shape=(3, 32, 32),
        train_size=1_437,
        test_size=360,
        mean=_DIGITS32_MEAN,
        std=_DIGITS32_STD,
        pad=4,
        stands_for="imagenet",
        source=_DIGITS_SOURCE + ", enlarged four times (bilinear)",
        **_DIGITS,
    ),
    DatasetInfo(
        name="imagenet",
        title="ImageNet (ILSVRC 2012): 1.28 million photos in 1,000 classes",
        classes=1_000,
        shape=(3, 224, 224),
        train_size=1_281_167,
        test_size=50_000,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        augment=True,
        pad=0,
        flip=True,
        embedded=False,
        stands_for=None,
        source="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
        licence="non-commercial research and education only (image-net.org)",
        bytes=154_642_401_280,  # ILSVRC2012_img_train.tar 147,897,477,120 and ILSVRC2012_img_val.tar 6,744,924,160
        module="imagenet",
    ),
    DatasetInfo(
        name="imagenette",
        title="a small real set: a sample of ten ImageNet classes, at 128x128 pixels",
        classes=10,
        shape=(3, 128, 128),
        train_size=0,  # as many as the folder has
        test_size=0,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        augment=True,
        pad=0,
        flip=True,
        embedded=False,
        stands_for=None,
        source="fast.ai, imagenette: a subset of ImageNet's photos (any folder in its layout will do)",
        licence="non-commercial research and education only (image-net.org)",
        bytes=99_003_388,
        module="imagenet",
    ),
    DatasetInfo(
        name="wikitext103",
        title="WikiText-103: 28,475 articles of the English Wikipedia, 103 million words",
        classes=267_735,
        train_size=103_227_021,
        bytes=313_093_838,
        unknowns=(0, 1_657, 2_492),
        checksums=(
            "",
            "9aee9f52d6e77de6c7751fc5e7c44287db3ec0eaf15477098acc6b93c1c4250b",
            "56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9",
        ),
        **_WIKITEXT,
    ),
    DatasetInfo(
        name="wikitext2",
        title="WikiText-2: 600 articles of the English Wikipedia, 2 million words",
        classes=33_278,
        train_size=2_088_628,
        bytes=7_371_282,
        unknowns=(54_625, 11_718, 15_218),
        checksums=(
            "",  # whoever has its articles in another order has the same vocabulary and may train
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        ),
        **_WIKITEXT,
    ),
    DatasetInfo(
        name="docs_text",
        title="English prose: the documentation strings inside scikit-learn, lower case, 4,000 words",
        classes=4_000,
        shape=(64,),
        train_size=245_230,
        val_size=9_765,
        test_size=11_896,
        stride=64,
        embedded=True,
        stands_for="wikitext103",
        source="documentation strings of scikit-learn 1.9.1",
        licence="BSD 3-Clause",
        bytes=0,
        module="embedded_text",
        **_TEXT,
    ),
)


def names() -> tuple[str, ...]:
    """Return the names of all data sets, in alphabetical order."""
    return tuple(sorted(entry.name for entry in _INFOS))


def info(name: str) -> DatasetInfo:
    """Return what is known of the data set called ``name``.

    Raises:
        ConfigError: there is no such data set.
    """
    for entry in _INFOS:
        if entry.name == name:
            return entry
    raise ConfigError(f"unknown data set {name!r}{did_you_mean(name, names())}; known: {', '.join(names())}")


def load(
    name: str,
    data_dir: str | Path | None = None,
    download: bool = False,
    val_fraction: float = 0.0,
    seed: int = 0,
) -> ImageData:
    """Load a data set into memory.

    Args:
        name: registry name.
        data_dir: where the files are; None means the variable ``FRACTRAIN_DATA``, else ``./data``. Not used by
            embedded data sets.
        download: fetch files that are missing or corrupt.
        val_fraction: part of the training images kept apart for validation, stratified; 0 means none.
        seed: the validation part is a function of this seed. Training and test parts never are.

    Raises:
        ConfigError: unknown name, or a fraction outside [0, 1).
        DataError: files are missing, truncated or corrupt.
        MachineError: a download was asked for and there is no network, or a package is missing.
    """
    entry = info(name)
    module = importlib.import_module(f"fractrain.data.{entry.module or ('embedded' if entry.embedded else 'cifar')}")
    return cast("ImageData", module.load(entry, data_dir, download, val_fraction, seed))
