"""CIFAR-10 and CIFAR-100 from the authors' files: found, checked, fetched, loaded through torchvision."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from fractrain.data.download import download, writing
from fractrain.data.images import ArraySource
from fractrain.data.info import DatasetInfo
from fractrain.data.places import mirrored, root_of, what_is_there
from fractrain.data.status import DataStatus, FileStatus, check_file
from fractrain.util.errors import DataError

# The papers': 64,000 iterations of 128 images, two drops of the learning rate; from the authors' training scripts.
RECIPE: Final[dict[str, Any]] = {
    "iterations": 64_000, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
    "milestones": [32_000, 48_000], "lr_decay": 0.1,
}  # fmt: skip

_CIFAR: Final[dict[str, Any]] = {
    "shape": (3, 32, 32), "train_size": 50_000, "test_size": 10_000, "augment": True, "pad": 4, "flip": True,
    # FracTrain, DFQ and CPT all use these for CIFAR-10 and CIFAR-100 alike.
    "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010),
    "source": "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    "licence": "none stated by the authors", "recipe": RECIPE,
}  # fmt: skip


class Cifar(ArraySource):
    """The authors' archive, from torchvision's address or a mirror."""

    def arrays(self, info: DatasetInfo, data_dir: str | Path | None, download: bool) -> Any:
        """Read both parts."""
        if download:
            self.fetch(info, data_dir)
        root = find_root(info.name, data_dir)
        return _read(info.name, root, train=True), _read(info.name, root, train=False)

    def status(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Read the files and compare them with their checksums (180 MB)."""
        root = find_root(info.name, data_dir)
        checks = list(check_files(info.name, root))
        bad = [check for check in checks if check.state != "ok"]
        if not bad:
            message = f"{info.name}: {len(checks)} files in {root}, all checksums right"
        elif all(check.state == "missing" for check in checks):
            message = f"{info.name}: not in {root}{_remedy(info.name, root)}"
        else:
            message = f"{info.name}: {len(bad)} of {len(checks)} files are bad; {bad[0].problem}"
        return info.status_in(
            data_dir, root, ok=not bad, bytes=sum(check.bytes for check in checks),
            download_bytes=info.bytes if bad else 0, files=tuple(checks), message=message,
            advice=how_to_mend(info.name, root) if bad else "",
        )  # fmt: skip

    def fetch(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Put the files in place; see :meth:`DataSource.fetch`.

        The archive is taken from the folder if someone put it there, else downloaded: from ``FRACTRAIN_DATA_MIRROR`` (a
        folder address with the same file names, if set), then from the address that torchvision knows. Files are
        replaced one by one, each only after its checksum was right: an interrupted call leaves nothing half-written.
        """
        root, found = find_root(info.name, data_dir), self.status(info, data_dir)
        if found.ok:
            return found
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{info.name}.lock"):
                if not self.status(info, data_dir).ok:  # another process may have fetched them while we waited
                    _fetch_archive(info.name, root)
        return self.status(info, data_dir)


DATASETS = (
    DatasetInfo(
        name="cifar10", title="CIFAR-10: 60,000 colour photos in 10 classes", classes=10, access=Cifar(),
        bytes=170_498_071, disk_bytes=186_214_026, **_CIFAR,
    ),
    DatasetInfo(
        name="cifar100", title="CIFAR-100: 60,000 colour photos in 100 classes", classes=100, access=Cifar(),
        bytes=169_001_437, disk_bytes=186_301_098, **_CIFAR,
    ),
)  # fmt: skip


def torchvision_class(name: str) -> Any:
    """Return torchvision's class for ``name``; it carries the address, file names and checksums."""
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def find_root(name: str, data_dir: str | Path | None) -> Path:
    """Return the folder that holds (or should hold) the data set's own folder, which is accepted in its place."""
    root = root_of(data_dir)
    return root.resolve().parent if root.resolve().name == torchvision_class(name).base_folder else root


def expected_files(name: str) -> list[tuple[str, str]]:
    """Return (file name, MD5) of every file in the data set's folder."""
    source = torchvision_class(name)
    listed = [(file, md5) for file, md5 in source.train_list + source.test_list]
    return [*listed, (source.meta["filename"], source.meta["md5"])]


def check_files(name: str, root: Path) -> Iterator[FileStatus]:
    """Check every file of the data set below ``root`` (reads them all, about 180 MB)."""
    folder = root / torchvision_class(name).base_folder
    for file, expected in expected_files(name):
        yield check_file(folder / file, expected)


def _remedy(name: str, root: Path) -> str:
    """What lies where the data set should be."""
    source = torchvision_class(name)
    folder, first, number = source.base_folder, source.train_list[0][0], name.removeprefix("cifar")
    return what_is_there(
        root,
        {
            f"cifar-{number}*bin*": "{} is the binary version, this reads the one for Python",
            f"{name}/*.parquet": "{} is a table, this reads the authors' files for Python",
            f"{folder}/{folder}/{first}": f"{{}} lies one folder too deep: give {root / folder} as --data-dir",
            f"*/{folder}/{first}": f"{{}} lies one folder deeper: give its {folder}/.. as --data-dir",
            first: f"{{}} lies one folder too high: move the files into {root / folder}",
            "*.parquet": "{} is a table, this reads the authors' files for Python",
        },
    )


def how_to_mend(name: str, root: Path) -> str:
    """Return the command that puts the files in place."""
    return f"mend with `fractrain data fetch {name} --data-dir {root}`"


def raise_for_files(name: str, root: Path) -> None:
    """Raise a DataError that names what is wrong with the data set below ``root``; return if nothing is."""
    folder = root / torchvision_class(name).base_folder
    if not folder.exists():
        there = _remedy(name, root)
        raise DataError(f"{name} is not in {root}: there is no folder {folder}{there}; {how_to_mend(name, root)}")
    bad = [check for check in check_files(name, root) if check.state != "ok"]
    if bad:
        more = f" (and {len(bad) - 1} more bad files)" if len(bad) > 1 else ""
        raise DataError(f"{name}: {bad[0].problem}{more}; {how_to_mend(name, root)}")


def _read(name: str, root: Path, train: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Read one part through torchvision, which compares the checksums before it opens a file."""
    try:
        part = torchvision_class(name)(root=str(root), train=train, download=False)
    except (RuntimeError, OSError) as error:
        raise_for_files(name, root)
        raise DataError(f"{name}: torchvision cannot read {root}: {error}; {how_to_mend(name, root)}") from error
    return part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)


def _fetch_archive(name: str, root: Path) -> None:
    """Download the archive unless a right one lies in ``root``, and unpack it."""
    source = torchvision_class(name)
    archive = root / source.filename
    brought = check_file(archive, source.tgz_md5).state == "ok"
    if not brought:
        by_hand = f"put {source.filename} (md5 {source.tgz_md5}) into {root} by hand"
        download(mirrored(source.filename, source.url), archive, source.tgz_md5, by_hand)
    _unpack(name, archive, root)
    if not brought:
        archive.unlink()


def _unpack(name: str, archive: Path, root: Path) -> None:
    """Take the known files out of the archive; nothing else in it is touched."""
    folder = root / torchvision_class(name).base_folder
    folder.mkdir(exist_ok=True)
    try:
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch:
            for file, md5 in expected_files(name):
                member = tar.extractfile(f"{folder.name}/{file}")
                if member is None:
                    raise DataError(f"{archive}: {folder.name}/{file} is not a file")
                draft = Path(scratch) / file
                with open(draft, "wb") as out:
                    while chunk := member.read(1 << 20):
                        out.write(chunk)
                    out.flush()
                    os.fsync(out.fileno())
                check = check_file(draft, md5)
                if check.state != "ok":
                    raise DataError(f"{archive}: {check.problem}")
                os.replace(draft, folder / file)
    except (tarfile.TarError, KeyError) as error:
        raise DataError(f"{archive} is not the archive of {name}: {error}; delete it and fetch again") from error
