"""What ``fractrain data status|fetch|verify NAME`` do; each returns a plain record for the command line to print."""

from __future__ import annotations

import importlib.util
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fractrain.data import registry
from fractrain.data.files import FileStatus, check_file
from fractrain.data.registry import DatasetInfo
from fractrain.util.errors import DataError

MIRROR_VARIABLE = "FRACTRAIN_DATA_MIRROR"


@dataclass(frozen=True)
class DataStatus:
    """What is known of a data set on this machine.

    Attributes:
        name: registry name.
        title: one line for people.
        embedded: comes with an installed package.
        looked_in: folder that was searched, or the package of an embedded set.
        chosen_by: what chose it: ``--data-dir``, ``FRACTRAIN_DATA``, ``default`` or ``embedded``.
        ok: complete, and nothing wrong was found. CIFAR's files were compared with their checksums; images in folders
            and rows were counted by :func:`status` and decoded by :func:`verify` only; of a text, :func:`status` read
            the parts with a known checksum, the others (state ``unchecked``) are read by :func:`verify` only.
        bytes: size of the files found.
        download_bytes: size of the download that would be needed (0 when ok or embedded).
        files: one record per file (empty for embedded sets).
        message: what was found, one line.
        advice: what to do, one line; empty when there is nothing to do.
        digest: SHA-256 of the arrays, set by :func:`verify`.
        train_size, test_size: images counted by :func:`verify`.
    """

    name: str
    title: str
    embedded: bool
    looked_in: str
    chosen_by: str
    ok: bool
    bytes: int
    download_bytes: int
    files: tuple[FileStatus, ...]
    message: str
    advice: str
    digest: str | None = None
    train_size: int | None = None
    test_size: int | None = None

    @property
    def state(self) -> str:
        """``ready``; ``unchecked`` (complete, but there are files that nobody has read); ``not ready``."""
        if not self.ok:
            return "not ready"
        return "unchecked" if any(file.state == "unchecked" for file in self.files) else "ready"


def status(name: str, data_dir: str | Path | None = None) -> DataStatus:
    """Look for a data set; how far it is checked, see :attr:`DataStatus.ok`. Raises for an unknown name only.

    CIFAR's files are read and compared with their checksums. ImageNet's are only counted, and of the
    WikiTexts only the small parts are read: all of them would take minutes to hours.

    Raises:
        ConfigError: unknown name.
    """
    entry = registry.info(name)
    if entry.module == "imagenet":
        from fractrain.data import folder_status

        return folder_status.status(entry, data_dir)
    if entry.kind == "text":
        from fractrain.data import text_status

        return text_status.status(entry, data_dir)
    return _embedded_status(entry) if entry.embedded else _files_status(entry, data_dir)


def verify(name: str, data_dir: str | Path | None = None) -> DataStatus:
    """Check every checksum, load the data set and count its images.

    Raises:
        ConfigError: unknown name.
        DataError: missing, truncated or corrupt, or other sizes than known.
        MachineError: the package of an embedded set is missing.
    """
    if registry.info(name).module == "imagenet":
        from fractrain.data import folder_status

        return folder_status.verify(registry.info(name), data_dir)
    if registry.info(name).kind == "text":
        from fractrain.data import text_status

        return text_status.verify(registry.info(name), data_dir)
    data = registry.load(name, data_dir)
    known = (data.info.train_size, data.info.test_size)
    found = (len(data.train), len(data.test))
    if found != known:
        raise DataError(
            f"{name} has {found[0]} training and {found[1]} test images, expected {known[0]} and {known[1]}"
        )
    record = status(name, data_dir)
    message = f"{record.message}; {found[0]} training and {found[1]} test images, sha256 {data.digest}"
    values = {**vars(record), "message": message, "digest": data.digest}
    return DataStatus(**{**values, "train_size": found[0], "test_size": found[1]})


def fetch(name: str, data_dir: str | Path | None = None) -> DataStatus:
    """Put the files of a data set in place; does nothing when they are there and right.

    The archive is taken from the folder if someone put it there, else downloaded: from ``FRACTRAIN_DATA_MIRROR`` (a
    folder address with the same file names, if set), then from the address that torchvision knows. Files are replaced
    one by one, each only after its checksum was right, so an interrupted call leaves nothing half-written.

    Raises:
        ConfigError: unknown name.
        DataError: wrong checksum, or the folder cannot be written.
        MachineError: no network.
    """
    entry = registry.info(name)
    if entry.module == "imagenet":
        from fractrain.data import folder_status

        return folder_status.fetch(entry, data_dir)
    if entry.kind == "text":
        from fractrain.data import text_status

        return text_status.fetch(entry, data_dir)
    if entry.embedded:
        return _embedded_status(entry)
    from fractrain.data.cifar import find_root
    from fractrain.data.download import cannot_write

    root = find_root(name, data_dir)
    found = _files_status(entry, data_dir)
    if found.ok:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if not _files_status(entry, data_dir).ok:  # another process may have fetched them while we waited
                _fetch_archive(name, root)
    except OSError as error:
        raise cannot_write(root, error) from error
    return _files_status(entry, data_dir)


def _fetch_archive(name: str, root: Path) -> None:
    """Download the archive unless a right one lies in ``root``, and unpack it."""
    from fractrain.data.cifar import torchvision_class
    from fractrain.data.download import download

    source = torchvision_class(name)
    archive = root / source.filename
    brought = check_file(archive, source.tgz_md5).state == "ok"
    if not brought:
        mirror = os.environ.get(MIRROR_VARIABLE)
        urls = [f"{mirror.rstrip('/')}/{source.filename}"] if mirror else []
        by_hand = f"put {source.filename} (md5 {source.tgz_md5}) into {root} by hand"
        download([*urls, source.url], archive, source.tgz_md5, by_hand)
    _unpack(name, archive, root)
    if not brought:
        archive.unlink()


def _unpack(name: str, archive: Path, root: Path) -> None:
    """Take the known files out of the archive; nothing else in it is touched."""
    from fractrain.data.cifar import expected_files, torchvision_class

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


def _files_status(entry: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
    from fractrain.data.cifar import DATA_VARIABLE, check_files, find_root, how_to_mend

    root = find_root(entry.name, data_dir)
    chosen_by = "--data-dir" if data_dir else DATA_VARIABLE if os.environ.get(DATA_VARIABLE) else "default"
    checks = list(check_files(entry.name, root))
    bad = [check for check in checks if check.state != "ok"]
    if not bad:
        message = f"{entry.name}: {len(checks)} files in {root}, all checksums right"
    elif all(check.state == "missing" for check in checks):
        message = f"{entry.name}: not in {root}"
    else:
        message = f"{entry.name}: {len(bad)} of {len(checks)} files are bad; {bad[0].problem}"
    return DataStatus(
        name=entry.name,
        title=entry.title,
        embedded=False,
        looked_in=str(root),
        chosen_by=chosen_by,
        ok=not bad,
        bytes=sum(check.bytes for check in checks),
        download_bytes=entry.bytes if bad else 0,
        files=tuple(checks),
        message=message,
        advice=how_to_mend(entry.name, root) if bad else "",
    )


def _embedded_status(entry: DatasetInfo) -> DataStatus:
    present = importlib.util.find_spec("sklearn") is not None
    return DataStatus(
        name=entry.name,
        title=entry.title,
        embedded=True,
        looked_in="scikit-learn",
        chosen_by="embedded",
        ok=present,
        bytes=0,
        download_bytes=0,
        files=(),
        message=f"{entry.name}: comes with scikit-learn, nothing to download"
        if present
        else f"{entry.name}: comes with scikit-learn, which is not installed",
        advice="" if present else "mend with `pip install scikit-learn`",
    )
