"""One registry for everything that can be added: found by name, its origin known, imported when it is asked for.

A subclass says what it holds: :class:`fractrain.methods.registry.MethodRegistry`,
:class:`fractrain.models.registry.ModelRegistry` and so on. Searched in this order; the first to use a name keeps it:

1. what the package ships (:meth:`Registry.builtin`);
2. entry points of installed packages, in the group ``fractrain.<plural>`` (``fractrain.models``);
3. plugin files: ``--plugin FILE`` of the command line, or the environment variable ``FRACTRAIN_PLUGINS`` (separated
   like ``PATH``). The name is the file's.

A name with a prefix, such as ``torchvision:resnet50``, is handed to :meth:`Registry.external`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar, cast

from fractrain.util.errors import ConfigError, FractrainError, PluginError, did_you_mean, typed_line

T = TypeVar("T")
R = TypeVar("R", bound="Registry[Any]")

PLUGIN_VARIABLE = "FRACTRAIN_PLUGINS"
# What can be added, with the class that makes an entry. A plugin file is looked at for a kind only if it calls or
# derives from that class; this is read from its text, so that listing imports no plugin.
MAKERS = {
    "methods": "Method", "formats": "FormatInfo", "models": "ModelInfo", "datasets": "DatasetInfo",
    "hardware": "HardwareModel",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where an entry comes from.

    Attributes:
        kind: ``module`` (of this package), ``file`` or ``entry point``.
        target: ``package.module``, ``package.module:attribute`` or a file's path.
    """

    kind: str
    target: str

    def __str__(self) -> str:
        """For messages."""
        return self.target


class Registry(Generic[T]):
    """Entries of one kind by name.

    Class attributes:
        noun: what an entry is called in messages: ``method``.
        plural: likewise for several: ``methods``; names the group of entry points and ``fractrain list``'s argument.
        classes: entries are subclasses of :meth:`base`, not instances of it.

    Attributes:
        origins: where each name comes from.
        problems: what was wrong with plugins that were left out (a name twice), one line each.
    """

    noun: ClassVar[str]
    plural: ClassVar[str]
    classes: ClassVar[bool] = False

    def __init__(self) -> None:
        self.origins: dict[str, Origin] = {}
        self.problems: list[str] = []
        self._loaded: dict[str, T] = {}

    def builtin(self) -> Mapping[str, Origin]:
        """Return what the package ships."""
        raise NotImplementedError

    def base(self) -> type:
        """Return the class that entries are instances (or subclasses) of."""
        raise NotImplementedError

    def external(self, name: str) -> T | None:
        """Return the entry for a name with a prefix (``folder:DIR``), or None where the prefix is unknown."""
        return None

    @classmethod
    def discover(cls: type[R], plugins: Iterable[str] | None = None) -> R:
        """Search all places without importing any entry.

        Args:
            plugins: paths of plugin files; None reads the environment variable.
        """
        registry = cls()
        for name, origin in registry.builtin().items():
            registry.add(name, origin)
        for point in sorted(importlib.metadata.entry_points(group=cls.group()), key=lambda p: p.name):
            registry.add(point.name, Origin("entry point", point.value))
        if plugins is None:
            plugins = [p for p in os.environ.get(PLUGIN_VARIABLE, "").split(os.pathsep) if p]
        for plugin in plugins:
            if cls.plural in kinds_in(Path(plugin)):
                registry.add(Path(plugin).stem, Origin("file", str(Path(plugin).resolve())))
        return registry

    @classmethod
    def shared(cls: type[R]) -> R:
        """Return the registry of what can be found now; the same object as long as the plugins are the same."""
        return cast("R", _shared(cast("Hashable", cls), os.environ.get(PLUGIN_VARIABLE, "")))

    @classmethod
    def group(cls) -> str:
        """Group of entry points."""
        return f"fractrain.{cls.plural}"

    def add(self, name: str, origin: Origin) -> None:
        """Register a source; the first one with a name keeps it, and the clash is noted in ``problems``."""
        known = self.origins.setdefault(name, origin)
        if known != origin:
            self.problems.append(f"{self.noun} {name!r} of {origin} is left out: {known} has that name")

    def register(self, name: str, entry: T, origin: Origin) -> None:
        """Register an entry that is there already."""
        self.add(name, origin)
        self._loaded[name] = entry

    def names(self) -> list[str]:
        """All names."""
        return sorted(self.origins)

    def get(self, name: str) -> T:
        """Import and return an entry.

        Raises:
            ConfigError: unknown name.
            PluginError: the file cannot be imported or holds no entry of that name; says file and line.
        """
        if name not in self._loaded:
            entry = self.external(name) if ":" in name and name not in self.origins else None
            self._loaded[name] = self._import(name) if entry is None else entry
        return self._loaded[name]

    def _import(self, name: str) -> T:
        if name not in self.origins:
            raise ConfigError(
                f"unknown {self.noun} {name!r}{did_you_mean(name, self.origins)}; "
                f"`fractrain list {self.plural}` shows all"
            )
        origin = self.origins[name]
        try:
            module, attribute = _import_origin(name, origin)
        except FractrainError:
            raise
        except (Exception, SystemExit) as problem:  # a script that ends itself is no plugin
            raise PluginError(f"{self.noun} {name!r} ({line_of(origin, problem)}): {typed_line(problem)}") from problem
        found = [getattr(module, attribute, None)] if attribute else self._entries(module)
        matching = [entry for entry in found if self._fits(entry) and getattr(entry, "name", None) == name]
        if len(matching) != 1:
            raise PluginError(
                f"{self.noun} {name!r} ({origin}): expected one {'subclass' if self.classes else 'instance'} of "
                f"{self.base().__module__}.{self.base().__name__} with name = {name!r}, found {self._describe(module)}"
            )
        return cast("T", matching[0])

    def _fits(self, entry: object) -> bool:
        if self.classes:
            return isinstance(entry, type) and issubclass(entry, self.base())
        return isinstance(entry, self.base()) and not isinstance(entry, type)

    def _entries(self, module: ModuleType) -> list[object]:
        """What a module offers: its own public classes, or its instances, also those in a tuple (a family)."""
        public = [value for key, value in vars(module).items() if not key.startswith("_")]
        if self.classes:
            return [v for v in public if self._fits(v) and getattr(v, "__module__", "") == module.__name__]
        flat = [item for value in public for item in (value if isinstance(value, tuple) else (value,))]
        return list({id(item): item for item in flat if self._fits(item)}.values())

    def _describe(self, module: ModuleType) -> str:
        """What a module has in place of the entry that was looked for."""
        if not self.classes:
            return ", ".join(repr(getattr(entry, "name", "")) for entry in self._entries(module)) or "none"
        told = []
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__:
                what = f"name = {getattr(kind, 'name', '')!r}" if self._fits(kind) else f"not a {self.base().__name__}"
                try:
                    line = f" at line {inspect.getsourcelines(kind)[1]}"
                except OSError:  # a class made without a class statement
                    line = ""
                told.append(f"{kind.__name__}{line} ({what})")
        return ", ".join(told) or "no class"


@lru_cache(maxsize=64)
def _shared(kind: Hashable, plugins: str) -> Registry[Any]:
    """One registry for each set of plugins: a class stays the same object for the life of the process."""
    return cast("type[Registry[Any]]", kind).discover([p for p in plugins.split(os.pathsep) if p])


def kinds_in(plugin: Path) -> set[str]:
    """Return the kinds that a plugin file holds, from its text; ``methods`` where there is no sign of any other.

    So a method that derives from another method is found, and a file that is missing or wrong is reported once.
    """
    try:
        text = plugin.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {"methods"}
    made = {kind for kind, name in MAKERS.items() if re.search(rf"\b{name}\(|\bclass \w+\([^)]*\b{name}\b", text)}
    return made or {"methods"}


def import_file(name: str, path: Path) -> ModuleType:
    """Import a Python file as ``fractrain.plugins.<name>``; one that is loaded and has not changed stays as it is.

    So its classes stay the same objects, which pickling asks for. Where the name stands for another file, or for an
    earlier text of this one, the module is called :func:`content_name`, and what is made of the earlier one lives on.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: it is not a Python file.
        Exception: whatever the file raises.
    """
    if not path.is_file():
        raise FileNotFoundError("no such file")
    for own in (name, content_name(name, path)):
        full = f"fractrain.plugins.{own}"
        known = sys.modules.get(full)
        if known is None:
            return _load(full, path)
        made_of = (getattr(known, "__file__", ""), getattr(known, "__digest__", ""))
        if made_of == (str(path.resolve()), _digest(path)):
            return known
    del sys.modules[full]  # a twin in another folder
    return _load(full, path)


def content_name(name: str, path: Path) -> str:
    """Name of a plugin's module where the plain one is taken: it says which text it is made of."""
    return f"{name}_{_digest(path)[:8]}"


def plugin_spec(full: str, path: Path) -> ModuleSpec:
    """How a plugin file is imported under a full name."""
    path = path.resolve()
    spec = importlib.util.spec_from_file_location(full, path, loader=_PluginLoader(full, str(path)))
    assert spec is not None
    return spec


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _PluginLoader(SourceFileLoader):
    """Notes in the module which text it was made of."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__digest__"] = _digest(Path(self.path))
        super().exec_module(module)


def _load(full: str, path: Path) -> ModuleType:
    if path.suffix != ".py":
        raise ImportError("not a Python file")
    spec = plugin_spec(full, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module  # pydantic and pickling look the module up by name
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full]
        raise
    return module


def line_of(origin: Origin, problem: BaseException) -> str:
    """Return ``file:line`` of the plugin's own frame nearest to the problem."""
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}:{problem.lineno}"
    frames = traceback.extract_tb(problem.__traceback__)
    if origin.kind == "file":
        own = [f for f in frames if f.filename == origin.target]
        return f"{origin.target}:{own[-1].lineno}" if own else origin.target
    foreign = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    return f"{origin.target}, {foreign[-1].filename}:{foreign[-1].lineno}" if foreign else origin.target


def _import_origin(name: str, origin: Origin) -> tuple[ModuleType, str]:
    if origin.kind == "file":
        return import_file(name, Path(origin.target)), ""
    module, _, attribute = origin.target.partition(":")
    return importlib.import_module(module), attribute
