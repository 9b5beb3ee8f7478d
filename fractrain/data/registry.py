"""The data sets by name. Imports neither torch nor torchvision until something is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fractrain.data.info import DatasetInfo
from fractrain.data.status import DataStatus
from fractrain.util.errors import FractrainError, typed_line
from fractrain.util.registry import Origin, Registry

_MODULES: Final = {
    "cifar": ("cifar10", "cifar100"), "embedded": ("digits", "digits100", "digits32"), "embedded_text": ("docs_text",),
    "imagenet": ("imagenet", "imagenette"), "text": ("wikitext103", "wikitext2"),
}  # fmt: skip


class DatasetRegistry(Registry[DatasetInfo]):
    """Lazily loaded data sets."""

    noun, plural = "data set", "datasets"

    def builtin(self) -> Mapping[str, Origin]:
        """Those of the papers, and the embedded ones."""
        return {n: Origin("module", f"fractrain.data.{module}") for module, names in _MODULES.items() for n in names}

    def base(self) -> type:
        """Entries are instances."""
        return DatasetInfo

    def external(self, name: str) -> DatasetInfo | None:
        """Folders, tables on the hub, data sets of torchvision; see :mod:`fractrain.data.external`."""
        from fractrain.data.external import outside_dataset  # imports torch

        return outside_dataset(name)


def names() -> tuple[str, ...]:
    """Return the names of all data sets, in alphabetical order."""
    return tuple(DatasetRegistry.shared().names())


def info(name: str) -> DatasetInfo:
    """Return what is known of the data set called ``name``.

    Raises:
        ConfigError: there is no such data set.
    """
    return DatasetRegistry.shared().get(name)


def load(
    name: str, data_dir: str | Path | None = None, download: bool = False, val_fraction: float = 0.0, seed: int = 0
) -> Any:
    """Load a data set, into memory unless it is read while training.

    Args:
        data_dir: where the files are; None means the variable ``FRACTRAIN_DATA``, else ``./data``. Not used by
            embedded data sets.
        download: fetch files that are missing or corrupt.
        val_fraction: part of the training images kept apart for validation, stratified; 0 means none.
        seed: the validation part is a function of this seed. Training and test parts never are.

    Raises:
        ConfigError: unknown name, or a fraction outside [0, 1).
        DataError: files are missing, truncated or corrupt.
        MachineError: a download was asked for and there is no network, or a package is missing.
    """
    entry = info(name)
    return entry.access.load(entry, data_dir, download, val_fraction, seed)


def status(name: str, data_dir: str | Path | None = None) -> DataStatus:
    """Look for a data set; how far it is checked, see :attr:`DataStatus.ok`. Raises for an unknown name only.

    CIFAR's files are read and compared with their checksums. ImageNet's are only counted, and of the WikiTexts only the
    small parts are read: all of them would take minutes to hours.

    Raises:
        ConfigError: unknown name.
    """
    entry = info(name)
    try:
        return entry.access.status(entry, data_dir)
    except Exception as error:  # whatever a broken set makes its readers raise: the others go on
        why = str(error) if isinstance(error, FractrainError) else typed_line(error)
        return entry.status_in(data_dir, message=why if why.startswith(name) else f"{name}: {why}")


def verify(name: str, data_dir: str | Path | None = None) -> DataStatus:
    """Check everything: every checksum, every image; see :meth:`DataSource.verify`. ConfigError: unknown name."""
    entry = info(name)
    return entry.access.verify(entry, data_dir)


def fetch(name: str, data_dir: str | Path | None = None) -> DataStatus:
    """Put the files of a data set in place; see :meth:`DataSource.fetch`. ConfigError: unknown name."""
    entry = info(name)
    return entry.access.fetch(entry, data_dir)
