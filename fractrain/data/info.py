"""What is known of a data set without loading it, and how it is got at. Imports neither torch nor torchvision.

A data set of your own is one file: a subclass of :class:`DataSource` (or of
:class:`fractrain.data.images.ArraySource`) that loads it, and a :class:`DatasetInfo` that says what it is. See
``docs/add-a-data-set.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from fractrain.data.places import chosen_by, root_of
from fractrain.data.status import DataStatus
from fractrain.util.errors import DataError


class DataSource:
    """How data sets of one kind are looked for, fetched, checked and loaded; override :meth:`load` at least.

    Attributes:
        in_memory: all pixels are held in memory, so that a data set can be divided for adaptation and fine-tuning.
        reads_while_training: images stay on disk and are decoded batch by batch.
    """

    in_memory: ClassVar[bool] = False
    reads_while_training: ClassVar[bool] = False

    def load(
        self, info: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int
    ) -> Any:
        """Load a data set; see :func:`fractrain.data.registry.load`.

        Returns:
            an object with ``info``, ``digest``, ``train``, ``val`` (or None) and ``test``, such as
            :class:`fractrain.data.images.ImageData`; or one that brings ``train_stream`` and ``eval_stream``.
        """
        raise NotImplementedError

    def id_name(self, info: DatasetInfo) -> str:
        """Return what stands for a name that is a place on this machine in the ids of runs; empty: the name itself."""
        return ""

    def status(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Look for a data set; fast. How far it is checked, see :attr:`DataStatus.ok`."""
        return info.status_in(data_dir, ok=True, message=f"{info.name}: checked when it is loaded")

    def verify(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Check every checksum, load the data set and count its samples.

        Raises:
            DataError: missing, truncated or corrupt, or other sizes than known.
            MachineError: the package of an embedded set is missing.
        """
        data = self.load(info, data_dir, False, 0.0, 0)
        known, found = (info.train_size, info.test_size), (len(data.train), len(data.test))
        if any(k not in (0, f) for k, f in zip(known, found, strict=True)):
            raise DataError(
                f"{info.name} has {found[0]} training and {found[1]} test images, expected {known[0]} and {known[1]}"
            )
        record = self.status(info, data_dir)
        message = f"{record.message}; {found[0]} training and {found[1]} test images, sha256 {data.digest}"
        return replace(record, message=message, digest=data.digest, train_size=found[0], test_size=found[1])

    def fetch(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Put the files of a data set in place; does nothing when they are there and right, or nothing is needed.

        Raises:
            DataError: wrong checksum, or the folder cannot be written.
            MachineError: no network, or it cannot be had without a registration.
        """
        return self.status(info, data_dir)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without loading it.

    Attributes:
        classes: number of classes; of a text: words of the vocabulary, ``<eos>`` and ``<unk>`` included.
        shape: (channels, height, width) of an image; of a text: (context,), the words of a sequence.
        train_size: images (of a text: words) in the training part; 0 when a folder of the user's decides.
        test_size: images (words) in the test part, likewise.
        mean: per channel, of pixels scaled to [0, 1], used for normalization.
        std: likewise, standard deviation.
        access: how it is looked for, fetched, checked and loaded.
        augment: training images are augmented (random crop after padding with black, random flip).
        pad: pixels of padding on each side before the crop.
        flip: training images are mirrored left-right with probability 1/2.
        embedded: comes with an installed package; nothing to download.
        stands_for: the data set in whose place the smoke profile uses this one, or None.
        bytes: size of the download (0 when embedded).
        disk_bytes: size of the files in place; 0 where :func:`fractrain.plan.disk.disk_need` derives it.
        val_size: words in the validation part that a text has of its own.
        stride: words from one window of a text's evaluation to the next.
        checksums: of a text: SHA-256 of the official token file, which every form of it must come to
            (:mod:`fractrain.data.text_files`); empty where anything goes.
        usual_train_size: where ``train_size`` is 0: what it is for most, from which evaluation periods are derived.
        recipe: keys of :class:`fractrain.engine.recipes.Recipe` for the profile ``paper`` (of an embedded set:
            ``smoke``); empty means CIFAR's (of an embedded set: that of ``digits``).
    """

    name: str
    title: str
    classes: int
    shape: tuple[int, ...]
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    access: DataSource = field(metadata={"listed": False}, repr=False)
    augment: bool = False
    pad: int = 0
    flip: bool = False
    embedded: bool = False
    stands_for: str | None = None
    source: str = ""
    licence: str = ""
    bytes: int = 0
    kind: Literal["image", "text"] = "image"
    val_size: int = 0
    stride: int = 0
    checksums: tuple[str, str, str] = ("", "", "")
    disk_bytes: int = 0
    usual_train_size: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict, metadata={"listed": False}, repr=False)

    @property
    def read_while_training(self) -> bool:
        """Whether its images stay on disk and are decoded batch by batch, instead of being held in memory."""
        return self.access.reads_while_training

    def status_in(self, data_dir: str | Path | None, where: str | Path | None = None, **found: Any) -> DataStatus:
        """Return a status with what was ``found`` in ``where``, by default the folder of data sets."""
        return DataStatus(
            self.name, self.title, self.embedded, str(where or root_of(data_dir)), chosen_by(data_dir), **found
        )

    @property
    def protocol(self) -> str:
        """How results on it are measured, in one clause that belongs to every table row."""
        if self.kind == "text":
            return f"perplexity per word token, context {self.shape[0]}, stride {self.stride}"
        return "top-1 accuracy in percent"


def package_status(info: DatasetInfo, problem: str = "") -> DataStatus:
    """Return the status of a data set that comes with scikit-learn: ready, unless there is a ``problem``."""
    message = f"{info.name}: {problem or 'comes with scikit-learn, nothing to download'}"
    advice = "mend with `pip install scikit-learn`" if problem else ""
    return DataStatus(
        info.name, info.title, True, "scikit-learn", "embedded", ok=not problem, message=message, advice=advice
    )
