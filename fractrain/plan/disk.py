"""How much disk a data set takes: what is there, what is still to come, what is in the way while it is put in place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fractrain.data import registry
from fractrain.data.info import DatasetInfo
from fractrain.data.status import DataStatus


@dataclass(frozen=True)
class DiskNeed:
    """What one data set takes.

    Attributes:
        where: folder that was searched, or where else it comes from.
        ready: nothing has to be fetched (a text may still have to be prepared, see ``to_come``).
        there: bytes of its files that are there.
        to_come: bytes that will be written and stay.
        passing: bytes beside them while it is put in place: the archive, until it is unpacked.
        note: what else there is to know, one clause; empty when there is nothing.
    """

    name: str
    where: str
    ready: bool
    there: int
    to_come: int
    passing: int = 0
    note: str = ""


def disk_need(name: str, data_dir: str | Path | None = None) -> DiskNeed:
    """Look for a data set as ``fractrain data status`` does and say what it takes.

    Args:
        data_dir: where the files are; None means ``FRACTRAIN_DATA``, else ``./data``.

    Raises:
        ConfigError: unknown name.
    """
    entry, found = registry.info(name), registry.status(name, data_dir)
    if entry.embedded:
        return DiskNeed(name, found.looked_in, found.ok, 0, 0, note="" if found.ok else found.message)
    if entry.kind == "text":
        return _text(entry, found, data_dir)
    if entry.read_while_training:
        return _photos(entry, found)
    there = sum(file.bytes for file in found.files if file.state == "ok")
    missing = entry.disk_bytes - there
    return DiskNeed(name, found.looked_in, found.ok, there, missing, 0 if found.ok else entry.bytes)


def _photos(entry: DatasetInfo, found: DataStatus) -> DiskNeed:
    """JPEG files do not get smaller in an archive: unpacked they take what it takes, beside it."""
    if found.ok:
        note = "" if found.bytes else "streamed, nothing is stored"
        return DiskNeed(entry.name, found.looked_in, True, found.bytes, 0, note=note)
    absent = not Path(found.looked_in).is_dir()
    note = "" if absent else f"what is there is not counted: {found.message}"
    return DiskNeed(entry.name, found.looked_in, False, 0, entry.bytes, entry.bytes, note)


def _text(entry: DatasetInfo, found: DataStatus, data_dir: str | Path | None) -> DiskNeed:
    """A text and its prepared form (numbers of words; the list of the words, some MB, is left out)."""
    from fractrain.data.text import locate
    from fractrain.data.text_cache import CACHE_VARIABLE, RECORD
    from fractrain.data.vocabulary import number_type

    words = entry.train_size + entry.val_size + entry.test_size
    prepared = words * np.dtype(number_type(entry.classes)).itemsize
    files, _ = locate(entry, data_dir)
    if files is None:
        note = "the download stays in the cache of the package datasets, which unpacks it there"
        return DiskNeed(entry.name, found.looked_in, False, 0, entry.bytes + prepared, note=note)
    if isinstance(files, Path):
        return DiskNeed(entry.name, found.looked_in, True, found.bytes, 0)
    root = Path(os.environ.get(CACHE_VARIABLE) or files["train"].paths[0].parent).expanduser()
    # To know which of several is this text's it would have to be read; there is more than one only after a change.
    folders = [record.parent for record in root.glob(f"tokens-{entry.name}-*/{RECORD}")]
    stored = sum(path.stat().st_size for folder in folders[:1] for path in folder.iterdir())
    return DiskNeed(
        entry.name, found.looked_in, True, found.bytes + stored, 0 if folders else prepared,
        note="" if folders else "to come: its prepared form",
    )  # fmt: skip
