"""ImageNet, imagenette, and any folder of photos in their layout: listed, checked, decoded while training.

``imagenet`` is a folder in torchvision's layout, parquet files, or a data set on the Hugging Face hub; ``imagenette``
is a folder.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from filelock import FileLock

from fractrain.data.cifar import RECIPE
from fractrain.data.info import DatasetInfo, DataSource
from fractrain.data.places import mirrored, root_of
from fractrain.data.status import DataStatus
from fractrain.util.errors import DataError, FractrainError, MachineError

if TYPE_CHECKING:
    from fractrain.data.folder import FolderSplit
    from fractrain.data.folder_data import FolderData
    from fractrain.data.parquet import ParquetSplit
    from fractrain.data.parquet_data import RowData

HUB_VARIABLE: Final = "FRACTRAIN_IMAGENET"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LICENCE: Final = "non-commercial research and education only (image-net.org)"
_SHOWN: Final = 3
# 90 passes of 256 images with drops after 30 and 60, the standard that the papers follow.
_PASS: Final = 5_005  # ceil(1,281,167 / 256)


@dataclass(frozen=True)
class Photos(DataSource):
    """A folder ``train/<class>/<image>``, ``val/<class>/<image>``, or rows of a table; nothing is decoded at first.

    Attributes:
        hub_variable: environment variable that names a data set on the hub (``owner/name@revision``) to be streamed.
        how_to_get: how to get it where it cannot be fetched.
        url, md5: of the archive that is fetched; empty where there is none.
    """

    hub_variable: str = ""
    how_to_get: str = ""
    url: str = ""
    md5: str = ""

    in_memory: ClassVar[bool] = False
    reads_while_training: ClassVar[bool] = True

    def hub(self, info: DatasetInfo) -> str:
        """Return the hub's data set that is to be streamed, or an empty string."""
        return os.environ.get(self.hub_variable, "") if self.hub_variable else ""

    def folder(self, info: DatasetInfo, data_dir: str | Path | None) -> Path:
        """Return the folder that holds (or should hold) the data set.

        It is called like the data set and lies in the folder of data sets; itself is accepted in place of that one.
        """
        root = root_of(data_dir)
        return root if root.resolve().name == info.name else root / info.name

    def how_to_mend(self, info: DatasetInfo) -> str:
        """Return how to get the data set, in one clause."""
        return self.how_to_get or f"mend with `fractrain data fetch {info.name}`"

    def load(
        self, info: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int
    ) -> FolderData | RowData:
        """List the data set; images are read while training."""
        from fractrain.data.folder_data import read_folder
        from fractrain.data.parquet_data import hub_data, parquet_data, parquet_files

        if download:
            self.fetch(info, data_dir)
        folder = self.folder(info, data_dir)
        if hub := self.hub(info):
            return hub_data(info, hub, val_fraction)
        if parquet_files(folder):
            return parquet_data(info, folder, val_fraction)
        if not folder.is_dir():
            mend = self.how_to_mend(info)
            raise DataError(f"{info.name} is not in {folder.parent}: there is no folder {folder}; {mend}")
        return read_folder(info, folder, val_fraction, seed)

    def status(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """List the data set's files and compare their number with what is known; nothing is decoded."""
        from fractrain.data.batches import BAD_VARIABLE
        from fractrain.data.folder_data import FolderData

        folder, hub = self.folder(info, data_dir), self.hub(info)
        base = info.status_in(data_dir, hub or folder, download_bytes=info.bytes)
        base = replace(base, chosen_by=self.hub_variable) if hub else base
        try:
            data = self.load(info, data_dir, False, 0.0, 0)
        except FractrainError as error:
            absent = not hub and not folder.is_dir()
            message = f"{info.name}: not in {folder}" if absent else str(error)
            return replace(base, message=message, advice=self.how_to_mend(info) if absent else "")
        if isinstance(data, FolderData):
            images = f"{len(data.train):,} + {len(data.test):,} images of {len(data.train.classes):,} classes"
            found = f"{images} in {folder}{_ignored(data)}"
            size = sum(int(part.sizes.sum()) for part in (data.train, data.test))
        elif hub:
            found, size = f"streamed from {hub} on the hub", 0
        else:
            found = f"{len(data.train):,} + {len(data.test):,} rows in parquet files in {folder}"
            size = sum(path.stat().st_size for part in (data.train, data.test) for path in part.files)
        policy = os.environ.get(BAD_VARIABLE) or "stop"
        message = (
            f"{info.name}: {found}; not decoded yet; at a bad image a run will {policy} ({BAD_VARIABLE}=stop|skip)"
        )
        return replace(base, ok=True, bytes=size, download_bytes=0, message=message)

    def verify(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Decode every image.

        Raises:
            DataError: missing, incomplete, or images that cannot be decoded (the first ones are named).
        """
        from tqdm import tqdm

        from fractrain.data.batches import BAD_VARIABLE
        from fractrain.data.decode import BadImage, decode

        data = self.load(info, data_dir, False, 0.0, 0)
        total = len(data.train) + len(data.test)
        bad = []
        images = (item for part in (data.train, data.test) for item in _images(part))
        for name, encoded in tqdm(images, total=total, unit="image", desc=f"verify {info.name}", disable=None):
            try:
                decode(encoded)
            except BadImage as problem:
                bad.append(f"{name} ({problem})")
        if bad:
            more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            raise DataError(
                f"{info.name}: {len(bad)} of {total:,} images cannot be decoded: {', '.join(bad[:_SHOWN])}{more}; mend "
                f"them, or train with {BAD_VARIABLE}=skip"
            )
        record = self.status(info, data_dir)
        message = f"{info.name}: {len(data.train):,} + {len(data.test):,} images in {record.looked_in}, all decoded"
        message = f"{message}; digest of names and sizes {data.digest}"
        sizes = len(data.train), len(data.test)
        return replace(record, message=message, digest=data.digest, train_size=sizes[0], test_size=sizes[1])

    def fetch(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Download the archive and unpack it into its folder; does nothing when it is there."""
        from fractrain.data.download import writing

        found = self.status(info, data_dir)
        if found.ok:
            return found
        folder = self.folder(info, data_dir)
        if not self.url:
            raise MachineError(f"{found.message}; {self.how_to_mend(info)}")
        if folder.exists():  # not ours to replace
            raise DataError(f"{found.message}; remove {folder} to have it fetched again")
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f".{info.name}.lock"):
                if not folder.exists():  # another process may have fetched it while we waited
                    self._fetch_archive(info, folder)
        return self.status(info, data_dir)

    def _fetch_archive(self, info: DatasetInfo, folder: Path) -> None:
        """Download and unpack the archive; the folder appears whole or not at all."""
        from fractrain.data.download import download
        from fractrain.data.folder_data import read_folder

        archive = folder.parent / self.url.rsplit("/", 1)[1]
        by_hand = f"unpack {archive.name} (md5 {self.md5}) so that {folder}/train exists"
        download(mirrored(archive.name, self.url), archive, self.md5, by_hand)
        try:
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{info.name}-") as scratch:
                with tarfile.open(archive) as tar:
                    tar.extractall(scratch, filter="data")
                unpacked = Path(scratch) / archive.stem
                read_folder(info, unpacked)  # raises unless it is what it should be
                shutil.move(unpacked, folder)
        except tarfile.TarError as error:
            raise DataError(f"{archive} is no whole archive: {error}; delete it and fetch again") from error
        archive.unlink()


_PHOTOS: Final[dict[str, Any]] = {"mean": MEAN, "std": STD, "augment": True, "flip": True, "licence": LICENCE}

DATASETS = (
    DatasetInfo(
        name="imagenet", title="ImageNet (ILSVRC 2012): 1.28 million photos in 1,000 classes", classes=1_000,
        shape=(3, 224, 224), train_size=1_281_167, test_size=50_000,
        source="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
        bytes=154_642_401_280,  # ILSVRC2012_img_train.tar 147,897,477,120 and ILSVRC2012_img_val.tar 6,744,924,160
        access=Photos(
            hub_variable=HUB_VARIABLE,
            how_to_get="ImageNet cannot be fetched for you: register at image-net.org, unpack ILSVRC2012 into "
            f"train/<class>/ and val/<class>/; or take the parquet files, or set {HUB_VARIABLE}=owner/name@revision to "
            "stream it",
        ),
        recipe={**RECIPE, "iterations": 90 * _PASS, "batch_size": 256, "milestones": [30 * _PASS, 60 * _PASS]},
        **_PHOTOS,
    ),
    DatasetInfo(
        name="imagenette", title="a small real set: a sample of ten ImageNet classes, at 128x128 pixels", classes=10,
        shape=(3, 128, 128), train_size=0, test_size=0, usual_train_size=9_469,  # as many as the folder has
        source="fast.ai, imagenette: a subset of ImageNet's photos (any folder in its layout will do)",
        bytes=99_003_388,
        # The smallest of the three that fast.ai offers; address and checksum as torchvision.datasets.Imagenette knows.
        access=Photos(
            url="https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
            md5="e793b78cc4c9e9a4ccc0c1155377a412",
        ),
        # Ours, in no paper: 30 passes over the 9,469 images of the whole set.
        recipe={**RECIPE, "iterations": 4_440, "batch_size": 64, "lr": 0.05, "milestones": [2_220, 3_700]},
        **_PHOTOS,
    ),
)  # fmt: skip


def _images(part: FolderSplit | ParquetSplit) -> Iterator[tuple[str, bytes]]:
    """Yield (name, encoded image) of a whole part."""
    from fractrain.data.parquet import ParquetSplit

    if isinstance(part, ParquetSplit):
        for name, encoded, _ in part.in_order():
            yield name, encoded
        return
    for index in range(len(part)):
        path = part.path(index)
        try:
            yield str(path), path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _ignored(data: FolderData) -> str:
    count = data.train.ignored + data.test.ignored
    return f" ({count} other files ignored)" if count else ""
