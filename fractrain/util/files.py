"""Writing files so that a reader never sees half of one, and saying in one line why it could not be written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fractrain.util.errors import DiskError, StoreError

_HINTS = {
    errno.ENOSPC: "the disk is full: free some space, then give the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space, then give the same command again",
    errno.EACCES: "no permission: make the folder writable, or set FRACTRAIN_RESULTS to another one",
    errno.EPERM: "no permission: make the folder writable, or set FRACTRAIN_RESULTS to another one",
    errno.EROFS: "the file system is read-only: set FRACTRAIN_RESULTS to a writable folder",
    errno.ENOTDIR: "a file is in the way of a folder: move it, or set FRACTRAIN_RESULTS to another folder",
    errno.EEXIST: "a file is in the way of a folder: move it, or set FRACTRAIN_RESULTS to another folder",
}
_HINTS |= dict.fromkeys(
    (errno.ENOSYS, errno.ENOLCK),
    "its file system has no locks: mount it with them (Lustre: -o flock), or set FRACTRAIN_RESULTS to another folder",
)
_RUN_TIME = (errno.ENOSPC, errno.EDQUOT)  # nothing was wrong when the run began
_ABSOLUTE = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:[\\/]|/)(?:[^\s/\\:'\"]+[/\\])+")
_VANISHED = "its folder has vanished: something else deletes there; give the same command again"


@contextlib.contextmanager
def storing(path: Path, action: str = "write") -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a one-line :class:`StoreError` that names ``path`` and the remedy."""
    try:
        yield
    except OSError as error:
        vanished = error.errno in (errno.ENOENT, errno.ESTALE) and action == "write"
        reason = _VANISHED if vanished else _HINTS.get(error.errno or 0, error.strerror or str(error))
        kind = DiskError if vanished or error.errno in _RUN_TIME else StoreError
        raise kind(f"cannot {action} {path}: {reason}") from error


def atomic_write(path: Path, *content: bytes | memoryview, ready: Callable[[], None] = lambda: None) -> None:
    """Write ``content`` to ``path``: temporary file in the same folder, fsync, rename, fsync of the folder.

    ``ready`` is called when all is written and nothing replaced yet; what it raises leaves the old content.

    Raises:
        StoreError: the operating system refused; the old content, if any, is untouched and no temporary file stays.
    """
    temporary = temporary_name(path)
    with storing(path):
        try:
            with temporary.open("wb") as file:
                file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
            ready()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_files(contents: Mapping[Path, bytes]) -> list[Path]:
    """Write several files, each at once or not at all, and make their folders; return their paths.

    Raises:
        StoreError: a folder cannot be written.
    """
    for path, content in contents.items():
        with storing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    return list(contents)


def try_folder(folder: Path) -> None:
    """Make a folder if it is not there, and write into it, before work begins whose results go there.

    Raises:
        StoreError: that cannot be; one line.
    """
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tried = temporary_name(folder / "tried")
        tried.touch()
        tried.unlink()


def nearest_folder(path: Path) -> Path:
    """Return ``path`` or the nearest folder above it that exists."""
    path = path.absolute()
    return next((p for p in (path, *path.parents) if p.is_dir()), Path(path.anchor))


def append_line(path: Path, line: str) -> None:
    """Append one line and bring it to the disk. A line cut off by a crash is repaired by :func:`drop_torn_line`."""
    with storing(path), path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def drop_torn_line(path: Path) -> None:
    """Cut off what follows the last newline: the rest of a line whose writer died while it wrote."""
    with storing(path):
        if not path.exists():
            return
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


def temporary_name(path: Path) -> Path:
    """Name of the temporary file that becomes ``path``; hidden, in the same folder, one per process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sync_folder(folder: Path) -> None:
    """Bring a rename inside ``folder`` to the disk, where the platform can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_folders(text: str) -> str:
    """Return a message for a record that others may read: of absolute paths the last part alone."""
    for place in (Path.cwd(), Path.home()):  # whose names may hold blanks
        if place != Path(place.anchor):
            text = text.replace(f"{place}{os.sep}", "")
    return _ABSOLUTE.sub("", text)
