"""The manifest of a finished run: SHA-256 of every file, written last; whoever shows a number checks it first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Final

from fractrain.engine import record_files as files
from fractrain.engine.record_files import FileDamaged, FileEntry, Manifest
from fractrain.util.files import atomic_write, storing
from fractrain.util.schema import parse_json

SEALED: Final = (files.ENVIRONMENT, *files.RESULTS, files.CHECKPOINT)


def write_manifest(folder: Path) -> None:
    """Write the manifest of the files that ``folder`` holds now, atomically.

    Raises:
        StoreError: the operating system refused.
    """
    manifest = Manifest(
        run_id=folder.name,
        config_sha256=_config_sha256(folder),
        files={name: _entry(folder / name) for name in SEALED if (folder / name).exists()},
    )
    value = manifest.model_dump(mode="json") | {"sha256": _own_sha256(manifest)}
    atomic_write(folder / files.MANIFEST, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def check_manifest(folder: Path, optional: Collection[str] = ()) -> list[FileDamaged]:
    """Compare a finished run's files with its manifest; a checkpoint that is not there is no damage.

    Args:
        folder: the run's folder, with a manifest.
        optional: names of files that are not looked at.

    Returns:
        What differs, file by file; empty if nothing does.

    Raises:
        StoreError: a file cannot be read.
    """
    try:
        manifest = files.read_manifest(folder)
    except FileDamaged as error:
        return [error]
    path = folder / files.MANIFEST
    if manifest.sha256 != _own_sha256(manifest):
        return [FileDamaged(path, "is damaged (its own SHA-256 differs)")]
    if manifest.run_id != folder.name:
        return [FileDamaged(path, f"belongs to run {manifest.run_id}")]
    found = []
    for name, entry in sorted(manifest.files.items()):
        if name in optional or (name == files.CHECKPOINT and not (folder / name).exists()):
            continue
        if name not in SEALED:
            found.append(FileDamaged(path, f"names {name!r}, which is no file of a record"))
        elif not (folder / name).exists():
            found.append(FileDamaged(folder / name, "is missing"))
        elif _entry(folder / name) != entry:
            found.append(FileDamaged(folder / name, "differs from its SHA-256 in manifest.json"))
    for name in files.RESULTS:
        if name not in manifest.files:
            found.append(FileDamaged(path, f"does not name {name}"))
    if manifest.config_sha256 != _config_sha256(folder):
        found.append(FileDamaged(folder / files.CONFIG, "differs from its SHA-256 in manifest.json"))
    return found


def _entry(path: Path) -> FileEntry:
    with storing(path, "read"), path.open("rb") as file:
        return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _own_sha256(manifest: Manifest) -> str:
    return hashlib.sha256(files.canonical(manifest.model_dump(mode="json", exclude={"sha256"}))).hexdigest()


def _config_sha256(folder: Path) -> str:
    """Digest of the config's canonical form, so that another layout of the same values is no damage."""
    content = files.read_bytes(folder / files.CONFIG)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise FileDamaged(folder / files.CONFIG, f"is damaged ({error})") from error
    return hashlib.sha256(files.canonical(value)).hexdigest()
