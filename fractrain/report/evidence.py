"""Evidence: records of finished runs that are committed, and the check that every number in them follows from the rest.

``<root>/<campaign>/<run id>/`` holds a run as the store keeps it, without weights, and ``SHA256SUMS`` (read by
``sha256sum --check``, too). Each campaign's folder is a run store of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fractrain.util.errors import ConfigError, FractrainError, StoreError
from fractrain.util.files import atomic_write, storing

if TYPE_CHECKING:
    from fractrain.engine.config import RunConfig
    from fractrain.engine.store import RunRecord, RunStore

DEFAULT_ROOT: Final = Path("results/evidence")
FILES: Final = ("config.json", "environment.json", "metrics.jsonl", "ledger.json", "status.json", "summary.json")
MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
# What a summary holds that no record can show again: the weights are not kept, memory was measured, data are elsewhere.
NOT_RECOMPUTED: Final = frozenset(
    {"weights_sha256", "peak_host_bytes", "peak_gpu_bytes", "kept_bytes_per_sample", "optimizer_bytes", "data_digest",
     "trivial_accuracy", "trivial_perplexity", "replaced_images", "meters", "remarks"}
)  # fmt: skip


class EvidenceStore:
    """All committed records, whatever their campaign; offers what tables need of a run store."""

    def __init__(self, root: Path | str = DEFAULT_ROOT) -> None:
        self.root = Path(root)

    def campaigns(self) -> list[str]:
        """Names of all campaigns."""
        if not self.root.is_dir():
            return []
        with storing(self.root, "read"):
            return sorted(entry.name for entry in self.root.iterdir() if entry.is_dir())

    def folders(self) -> Iterator[Path]:
        """Yield the folder of every record, by campaign and id."""
        for campaign in self.campaigns():
            with storing(self.root / campaign, "read"):
                yield from sorted(entry for entry in (self.root / campaign).iterdir() if entry.is_dir())

    def configs(self) -> Iterator[RunConfig]:
        """Yield what was run, of every record whose configuration can be read."""
        from fractrain.engine.record import read_config

        for folder in self.folders():
            with contextlib.suppress(StoreError):
                yield read_config(folder)

    def get(self, run_id: str) -> RunRecord | None:
        """Return the record of this run, or None."""
        for store in self.stores():
            if (found := store.get(run_id)) is not None:
                return found
        return None

    def stores(self) -> list[RunStore]:
        """Each campaign as a run store."""
        from fractrain.engine.store import RunStore

        return [RunStore(self.root / campaign) for campaign in self.campaigns()]

    def add(self, record: RunRecord, campaign: str) -> Path:
        """Copy a finished run's record, without weights; return its folder.

        Raises:
            ConfigError: the campaign's name is no plain name.
            StoreError: the run is not finished, a file is missing, or another record of it is there already.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", campaign):
            raise ConfigError(f"campaign {campaign!r}: use letters, digits, '-', '_' and '.'")
        require_finished([record])
        contents = {}
        for name in files_of(record.path):
            with storing(record.path / name, "read"):
                contents[name] = (record.path / name).read_bytes()
        contents[SUMS] = _sums(contents).encode()
        folder = self.root / campaign / record.run_id
        if (folder / SUMS).exists():
            with storing(folder, "read"):
                same = (folder / SUMS).read_bytes() == contents[SUMS]
            if not same:
                raise StoreError(f"{folder} holds another record of this run: remove it first, if it is to be replaced")
            return folder
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():  # the digests last: a folder without them is not a record yet
            atomic_write(folder / name, content)
        return folder


def require_finished(records: Sequence[RunRecord]) -> None:
    """Refuse records of runs that are not finished.

    Raises:
        StoreError: one is not.
    """
    for record in records:
        if record.undamaged().status != "done":
            raise StoreError(f"run {record.run_id} has status {record.status!r}: only finished runs are evidence")


# -- verification ------------------------------------------------------------------------------------------------------


def verify(store: EvidenceStore) -> list[str]:
    """Recompute every number of every record; return one line for each difference.

    From ``metrics.jsonl`` and ``ledger.json`` follow the whole ``summary.json`` (but for :data:`NOT_RECOMPUTED`), the
    costs in it and the run id; digests say whether any file has been changed since it was added.
    """
    return [line for folder in store.folders() for line in verify_record(folder)]


def verify_record(folder: Path) -> list[str]:
    """The differences of one record."""
    from fractrain.engine.registries import Registries
    from fractrain.engine.store import RunStore
    from fractrain.engine.summary import summarize_records

    missing = [name for name in (*FILES, SUMS) if not (folder / name).is_file()]
    if missing:
        return [f"{folder}: {', '.join(missing)} is missing"]
    lines = _changed(folder)
    try:
        record = RunStore(folder.parent).get(folder.name)
        if record is None or record.summary is None:
            why = f": {record.message}" if record is not None and record.message else ""
            return [*lines, f"{folder}: not a finished run{why}"]
        metrics, ledger, said = record.metrics(), record.ledger(), record.summary
        metric = str(said.get("metric", "accuracy"))  # early records do not say it
        if not metrics:
            return [*lines, f"{folder / 'metrics.jsonl'}: no line"]
        found = summarize_records(record.config, metrics, ledger, {}, metric)
        found["cost"] = Registries().costs(ledger, found["best_test_epoch"])
    except FractrainError as error:
        return [*lines, f"{folder}: {error}"]
    except KeyError as error:
        return [*lines, f"{folder / 'metrics.jsonl'}: a line lacks {error}"]
    return lines + [f"{folder / 'summary.json'}: {line}" for line in _differences(said, found)]


def _differences(said: Mapping[str, Any], found: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in said.items():
        name = f"{path}{key}"
        if name in NOT_RECOMPUTED:
            continue
        if isinstance(value, Mapping):
            yield from _differences(value, found.get(key, {}), f"{name}.")
        elif key not in found:
            if value not in (None, "", False):  # a cost that later releases do not have: nothing was said
                yield f"{name} is {value!r}, which cannot be recomputed"
        elif not _same(value, found[key]):
            yield f"{name} is {value!r}, recomputed {found[key]!r}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-12)  # sums of integers weighted by fractions: last bits may differ
    return bool(a == b)


def files_of(folder: Path) -> list[str]:
    """Names of the files of a record; those of early releases have no manifest."""
    return [*FILES, *([MANIFEST] if (folder / MANIFEST).exists() else [])]


def _sums(contents: Mapping[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())


def _changed(folder: Path) -> list[str]:
    """Files that are not what was added."""
    with storing(folder, "read"):
        said = (folder / SUMS).read_text().splitlines()
        found = _sums({name: (folder / name).read_bytes() for name in files_of(folder)}).splitlines()
    if len(said) != len(found):
        return [f"{folder / SUMS}: {len(said)} lines instead of {len(found)}"]
    return [f"{folder / a.split()[-1]}: changed since it was added" for a, b in zip(found, said, strict=True) if a != b]
