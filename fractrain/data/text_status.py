"""``fractrain data status|fetch|verify`` for texts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fractrain.data.cifar import DATA_VARIABLE
from fractrain.data.files import FileStatus
from fractrain.data.manage import DataStatus
from fractrain.data.registry import DatasetInfo
from fractrain.data.text import how_to_mend, hub_cache, hub_texts, locate, root_of
from fractrain.data.text_files import TextFiles
from fractrain.data.text_official import expected_sha256, official_sha256
from fractrain.util.errors import DataError, FractrainError


def status(entry: DatasetInfo, data_dir: str | Path | None = None) -> DataStatus:
    """Look for a text.

    Parts of which the official file's checksum is known, which are small, are read and compared with it; the others are
    ``unchecked``.
    """
    if entry.embedded:
        return _embedded(entry)
    found, missing = locate(entry, data_dir)
    if found is None:
        return _record(entry, data_dir, message=missing, advice=how_to_mend(entry, data_dir))
    if isinstance(found, Path):
        files = tuple(_unchecked(path) for path in found.glob("*.npy"))
        return _record(
            entry, data_dir, found, files, f"{entry.name}: from the hub, prepared in {found}{_unread(entry)}"
        )
    files = tuple(file for part, text in found.items() for file in _compared(entry, part, text))
    where = next(iter(found.values())).paths[0].parent
    bad = [file for file in files if file.state in ("differs", "unreadable")]
    if bad:
        message = f"{entry.name}: {bad[0].reason or bad[0].problem}"
        advice = f"put the official files into {where}, or delete these and run `fractrain data fetch {entry.name}`"
        return _record(entry, data_dir, where, files, message, advice, ok=False)
    return _record(entry, data_dir, where, files, f"{entry.name}: {len(files)} files in {where}{_unread(entry)}")


def verify(entry: DatasetInfo, data_dir: str | Path | None = None) -> DataStatus:
    """Read the whole text: count words and tokens, compare with what is known and with the prepared form.

    Raises:
        DataError: missing, damaged or of another release.
        MachineError: the package of the embedded text is missing.
    """
    from fractrain.data import registry, text_cache

    data = registry.load(entry.name, data_dir)
    folder = getattr(data, "folder", None)
    if folder is not None and (problem := text_cache.check(entry, text_cache.read(entry, folder))):
        raise DataError(f"{entry.name}: {problem}")
    train, val, test = len(data.train), len(data.val or ()), len(data.test)
    info = data.info
    if (train, val, test) != (entry.train_size, entry.val_size, entry.test_size):
        raise DataError(
            f"{entry.name} has {train:,} + {val:,} + {test:,} tokens, expected {entry.train_size:,} + "
            f"{entry.val_size:,} + {entry.test_size:,}: another release of its source"
        )
    found = status(entry, data_dir)
    files = tuple(replace(file, state="ok") for file in found.files)
    message = (
        f"{found.message.removesuffix(_unread(entry))}; {train:,} training, {val:,} validation and {test:,} test "
        f"tokens, {info.classes:,} words, sha256 {data.digest}"
    )
    return replace(found, files=files, message=message, digest=data.digest, train_size=train, test_size=test)


def fetch(entry: DatasetInfo, data_dir: str | Path | None = None) -> DataStatus:
    """Put a text in place: from the hub, at a fixed revision, prepared; does nothing when it is there.

    A connection that breaks is taken up again, a few times, by the hub's client. After a call that was
    interrupted, whole files are still in its cache and not downloaded again; a file that was begun is.

    Raises:
        DataError: the folder cannot be written.
        MachineError: no network, or a variable says that this machine is offline.
    """
    from fractrain.data.text_cache import prepare

    if not entry.embedded and locate(entry, data_dir)[0] is None:
        prepare(entry, hub_texts(entry), hub_cache(entry, data_dir))
    return status(entry, data_dir)


def _unchecked(path: Path) -> FileStatus:
    return FileStatus(str(path), "unchecked", "", None, path.stat().st_size)


def _compared(entry: DatasetInfo, part: str, text: TextFiles) -> tuple[FileStatus, ...]:
    """The files of a part, compared with the official one where its checksum is known."""
    files = tuple(_unchecked(path) for path in text.paths)
    expected = expected_sha256(entry, part)
    if not expected:
        return files
    try:
        digest = official_sha256(text.blocks())
    except FractrainError as error:
        return tuple(replace(file, state="unreadable", expected=expected, reason=str(error)) for file in files)
    state: Literal["ok", "differs"] = "ok" if digest == expected else "differs"
    return tuple(replace(file, state=state, expected=expected, found=digest) for file in files)


def _unread(entry: DatasetInfo) -> str:
    return f"; not read yet; `fractrain data verify {entry.name}` reads them"


def _embedded(entry: DatasetInfo) -> DataStatus:
    from fractrain.data.embedded_text import package_folder

    try:
        package_folder()
        problem = ""
    except FractrainError as error:
        problem = str(error)
    return DataStatus(
        name=entry.name, title=entry.title, embedded=True, looked_in="scikit-learn", chosen_by="embedded",
        ok=not problem, bytes=0, download_bytes=0, files=(),
        message=f"{entry.name}: {problem or 'comes with scikit-learn, nothing to download'}",
        advice="mend with `pip install scikit-learn`" if problem else "",
    )  # fmt: skip


def _record(
    entry: DatasetInfo,
    data_dir: str | Path | None,
    where: Path | None = None,
    files: Iterable[FileStatus] = (),
    message: str = "",
    advice: str = "",
    ok: bool = True,
) -> DataStatus:
    files = tuple(sorted(files, key=lambda file: file.path))
    chosen = "--data-dir" if data_dir else DATA_VARIABLE if os.environ.get(DATA_VARIABLE) else "default"
    return DataStatus(
        name=entry.name, title=entry.title, embedded=False, looked_in=str(where or root_of(data_dir)),
        chosen_by=chosen, ok=ok and where is not None, bytes=sum(file.bytes for file in files),
        download_bytes=0 if where else entry.bytes, files=files, message=message, advice=advice,
    )  # fmt: skip
