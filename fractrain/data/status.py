"""What is found of a data set on this machine, file by file; one file compared with the checksum it should have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class FileStatus:
    """What was found of one file.

    Attributes:
        state: ``ok``; ``missing``; ``wrong`` (the checksum differs: truncated or changed); ``unreadable``;
            ``unchecked`` (it is there, nobody has read it); ``differs`` (a text that is not the official one).
        expected: MD5 it should have (of a text: SHA-256, see :mod:`fractrain.data.text_files`); empty where none is
            known.
        found: the checksum it has, or None.
        bytes: its size (0 when missing or unreadable).
        reason: the system's message when unreadable.
    """

    path: str
    state: Literal["ok", "missing", "wrong", "unreadable", "unchecked", "differs"]
    expected: str
    found: str | None
    bytes: int
    reason: str = ""

    @property
    def problem(self) -> str:
        """What is wrong with a file that is not ``ok``, in a few words."""
        if self.state == "unchecked":
            return f"{self.path} was not read"
        if self.state == "differs":
            return f"{self.path} differs from the official file: sha256 of its text {self.found}, not {self.expected}"
        if self.state == "missing":
            return f"{self.path} is missing (expected md5 {self.expected})"
        if self.state == "unreadable":
            return f"{self.path} cannot be read: {self.reason}"
        return f"{self.path} is truncated or changed: md5 {self.found} of {self.bytes} bytes, expected {self.expected}"


@dataclass(frozen=True)
class DataStatus:
    """What is known of a data set on this machine.

    Attributes:
        embedded: comes with an installed package.
        looked_in: folder that was searched, or the package of an embedded set.
        chosen_by: what chose it: ``--data-dir``, ``FRACTRAIN_DATA``, ``default`` or ``embedded``.
        ok: complete, and nothing wrong was found. CIFAR's files were compared with their checksums; images in folders
            and rows were counted by ``status`` and decoded by ``verify`` only; of a text, ``status`` read the parts
            with a known checksum, the others (state ``unchecked``) are read by ``verify`` only.
        bytes: size of the files found.
        download_bytes: size of the download that would be needed (0 when ok or embedded).
        files: one record per file (empty for embedded sets).
        message: what was found, one line.
        advice: what to do, one line; empty when there is nothing to do.
        digest: SHA-256 of the arrays, set by ``verify``.
        train_size, test_size: images counted by ``verify``.
    """

    name: str
    title: str
    embedded: bool
    looked_in: str
    chosen_by: str
    ok: bool = False
    bytes: int = 0
    download_bytes: int = 0
    files: tuple[FileStatus, ...] = ()
    message: str = ""
    advice: str = ""
    digest: str | None = None
    train_size: int | None = None
    test_size: int | None = None

    @property
    def state(self) -> str:
        """``ready``; ``unchecked`` (complete, but there are files that nobody has read); ``not ready``."""
        if not self.ok:
            return "not ready"
        return "unchecked" if any(file.state == "unchecked" for file in self.files) else "ready"


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, as a hex string. It guards against damage, not against intent.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_file(path: Path, expected: str) -> FileStatus:
    """Compare one file with the MD5 it should have."""
    try:
        size = path.stat().st_size
        found = md5_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return FileStatus(str(path), "missing", expected, None, 0)
    except OSError as error:
        return FileStatus(str(path), "unreadable", expected, None, 0, error.strerror or str(error))
    return FileStatus(str(path), "ok" if found == expected else "wrong", expected, found, size)
