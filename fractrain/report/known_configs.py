"""Configurations that an earlier report made, kept beside the run store's index.

To make one, the method's module must be imported, and torch with it: that takes longer than a table. What is made
follows from the sources of this package alone, as long as method, model and data set are its own. So the file
``<root>/.configs.json`` holds the digest of those sources and is good for no others. It is a cache and nothing else:
it may be deleted, and a store that cannot be written works without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from fractrain.data.registry import DatasetRegistry
from fractrain.engine.config import RunConfig
from fractrain.engine.record_files import canonical
from fractrain.methods.registry import MethodRegistry, baselines_folder
from fractrain.models.registry import ModelRegistry
from fractrain.report.sources import MakeConfig, NotInRelease, Sources
from fractrain.report.spec import RunRequest
from fractrain.util.errors import ConfigError, StoreError
from fractrain.util.files import atomic_write

NAME: Final = ".configs.json"

_log = logging.getLogger(__name__)


@contextmanager
def with_known(sources: Sources, root: Path) -> Iterator[Sources]:
    """Sources that make no configuration known under ``root``; what they make in the block is known after it."""
    known = KnownConfigs(root / NAME, sources.make_config)
    yield replace(sources, make_config=known.make)
    known.save()


class KnownConfigs:
    """The file of configurations, and how to make one that it lacks.

    Args:
        path: the file; one of other sources, or that cannot be read, counts as empty.
    """

    def __init__(self, path: Path, make: MakeConfig) -> None:
        self._path, self._make, self._sources = path, make, sources_digest()
        self._found = _load(path, self._sources)
        self._changed = False
        self._methods, self._models = set(MethodRegistry().builtin()), set(ModelRegistry().builtin())
        self._datasets = set(DatasetRegistry().builtin())

    def make(self, request: RunRequest, seed: int) -> RunConfig:
        """The configuration of a run.

        Raises:
            FractrainError: whatever making one raises.
        """
        own = request.method in self._methods and request.model in self._models and request.dataset in self._datasets
        if not own:
            return self._make(request, seed)
        key = f"{seed} {canonical(request.model_dump(mode='json')).decode()}"
        if key not in self._found:
            self._found[key] = self._made(request, seed)
            self._changed = True
        found = self._found[key]
        if found.startswith("{"):
            return RunConfig.from_json(found, str(self._path))
        raise ConfigError(found)

    def _made(self, request: RunRequest, seed: int) -> str:
        """A configuration as JSON, or why parts that are there do not go together."""
        try:
            return self._make(request, seed).model_dump_json()
        except NotInRelease:
            raise
        except ConfigError as error:
            return str(error)

    def save(self) -> None:
        """Write the file where anything was added."""
        if not self._changed:
            return
        try:
            atomic_write(self._path, canonical({"sources": self._sources, "configs": self._found}))
        except StoreError as error:  # a store that may only be read, or a full disk: slower, not wrong
            _log.debug("no configurations kept: %s", error)


def sources_digest() -> str:
    """SHA-256 of everything that a configuration of shipped parts follows from: the package's code."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for path in sorted({*package.rglob("*.py"), *baselines_folder().glob("*.py")}):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _load(path: Path, sources: str) -> dict[str, str]:
    try:
        read = json.loads(path.read_bytes())
        if read["sources"] != sources:
            return {}
        return {str(key): str(value) for key, value in read["configs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
