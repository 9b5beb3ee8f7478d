"""``fractrain data status|fetch|verify`` for ImageNet and for folders of images."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from filelock import FileLock
from tqdm import tqdm

from fractrain.data.batches import BAD_VARIABLE
from fractrain.data.cifar import DATA_VARIABLE
from fractrain.data.decode import BadImage, decode
from fractrain.data.folder import FolderData, FolderPart, read_folder
from fractrain.data.imagenet import find_folder, how_to_mend, hub_name, load
from fractrain.data.manage import MIRROR_VARIABLE, DataStatus
from fractrain.data.registry import DatasetInfo
from fractrain.data.rows import RowPart
from fractrain.util.errors import DataError, FractrainError, MachineError

# The smallest of the three that fast.ai offers; address and checksum as torchvision.datasets.Imagenette knows them.
IMAGENETTE_URL: Final = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
IMAGENETTE_MD5: Final = "e793b78cc4c9e9a4ccc0c1155377a412"
_SHOWN: Final = 3


def status(entry: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
    """List the data set's files and compare their number with what is known; nothing is decoded."""
    folder = find_folder(entry.name, data_dir)
    hub = hub_name(entry)
    chosen_by = "--data-dir" if data_dir else DATA_VARIABLE if os.environ.get(DATA_VARIABLE) else "default"
    base = DataStatus(
        name=entry.name,
        title=entry.title,
        embedded=False,
        looked_in=hub or str(folder),
        chosen_by="FRACTRAIN_IMAGENET" if hub else chosen_by,
        ok=False,
        bytes=0,
        download_bytes=entry.bytes,
        files=(),
        message="",
        advice="",
    )
    try:
        data = load(entry, data_dir, False, 0.0, 0)
    except FractrainError as error:
        absent = not hub and not folder.is_dir()
        message = f"{entry.name}: not in {folder}" if absent else str(error)
        return replace(base, message=message, advice=how_to_mend(entry) if absent else "")
    if isinstance(data, FolderData):
        found = f"{_counts(data)} in {folder}{_ignored(data)}"
        size = sum(int(part.sizes.sum()) for part in (data.train, data.test))
    elif hub:
        found, size = f"streamed from {hub} on the hub", 0
    else:
        found = f"{len(data.train):,} + {len(data.test):,} rows in parquet files in {folder}"
        size = sum(path.stat().st_size for part in (data.train, data.test) for path in part.files)
    policy = os.environ.get(BAD_VARIABLE) or "stop"
    message = f"{entry.name}: {found}; not decoded yet; at a bad image a run will {policy} ({BAD_VARIABLE}=stop|skip)"
    return replace(base, ok=True, bytes=size, download_bytes=0, message=message)


def verify(entry: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
    """Decode every image.

    Raises:
        DataError: missing, incomplete, or images that cannot be decoded (the first ones are named).
    """
    data = load(entry, data_dir, False, 0.0, 0)
    total = len(data.train) + len(data.test)
    bad = []
    images = (item for part in (data.train, data.test) for item in _images(part))
    for name, encoded in tqdm(images, total=total, unit="image", desc=f"verify {entry.name}", disable=None):
        try:
            decode(encoded)
        except BadImage as problem:
            bad.append(f"{name} ({problem})")
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{entry.name}: {len(bad)} of {total:,} images cannot be decoded: {', '.join(bad[:_SHOWN])}{more}; mend "
            f"them, or train with {BAD_VARIABLE}=skip"
        )
    record = status(entry, data_dir)
    message = f"{entry.name}: {len(data.train):,} + {len(data.test):,} images in {record.looked_in}, all decoded"
    return replace(
        record,
        message=f"{message}; digest of names and sizes {data.digest}",
        digest=data.digest,
        train_size=len(data.train),
        test_size=len(data.test),
    )


def fetch(entry: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
    """Download ``imagenette`` into its folder; does nothing when it is there.

    Raises:
        MachineError: the data set cannot be had without a registration, or there is no network.
        DataError: the archive is damaged, or the folder cannot be written.
    """
    from fractrain.data.download import cannot_write

    found = status(entry, data_dir)
    if found.ok:
        return found
    folder = find_folder(entry.name, data_dir)
    if entry.name == "imagenet":
        raise MachineError(f"{found.message}; {how_to_mend(entry)}")
    if folder.exists():  # not ours to replace
        raise DataError(f"{found.message}; remove {folder} to have it fetched anew")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{entry.name}.lock"):
            if not folder.exists():  # another process may have fetched it while we waited
                _fetch_archive(entry, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return status(entry, data_dir)


def _fetch_archive(entry: DatasetInfo, folder: Path) -> None:
    """Download and unpack the archive; the folder appears whole or not at all."""
    from fractrain.data.download import download

    archive = folder.parent / IMAGENETTE_URL.rsplit("/", 1)[1]
    mirror = os.environ.get(MIRROR_VARIABLE)
    urls = [f"{mirror.rstrip('/')}/{archive.name}"] if mirror else []
    by_hand = f"unpack {archive.name} (md5 {IMAGENETTE_MD5}) so that {folder}/train exists"
    download([*urls, IMAGENETTE_URL], archive, IMAGENETTE_MD5, by_hand)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{entry.name}-") as scratch:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            unpacked = Path(scratch) / archive.stem
            read_folder(entry, unpacked)  # raises unless it is what it should be
            shutil.move(unpacked, folder)
    except tarfile.TarError as error:
        raise DataError(f"{archive} is no whole archive: {error}; delete it and fetch again") from error
    archive.unlink()


def _images(part: FolderPart | RowPart) -> Iterator[tuple[str, bytes]]:
    """Yield (name, encoded image) of a whole part."""
    if isinstance(part, RowPart):
        for name, encoded, _ in part.in_order():
            yield name, encoded
        return
    for index in range(len(part)):
        path = part.path(index)
        try:
            yield str(path), path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _counts(data: FolderData) -> str:
    return f"{len(data.train):,} + {len(data.test):,} images of {len(data.train.classes):,} classes"


def _ignored(data: FolderData) -> str:
    count = data.train.ignored + data.test.ignored
    return f" ({count} other files ignored)" if count else ""
