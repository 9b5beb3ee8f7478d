"""Methods by name: found in folders, in installed packages (entry points) and in files given by path; imported late.

A method's registry name is the name of its file. Searched, in this order: FracTrain's own (this folder),
``baselines/``, the entry point group ``fractrain.methods`` of installed packages, and the files named in the
environment variable ``FRACTRAIN_PLUGINS`` (separated like ``PATH``; the command line's ``--plugin`` adds to it).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fractrain.util.errors import ConfigError, PluginError, did_you_mean

if TYPE_CHECKING:
    from fractrain.methods.base import Method

GROUP = "fractrain.methods"
PLUGIN_VARIABLE = "FRACTRAIN_PLUGINS"
OWN = ("pfq", "dfq", "fractrain")
FULL_PRECISION = "fp32"  # the yardstick, and what models are trained with before another method goes on with them


@dataclass(frozen=True)
class Origin:
    """Where a method comes from: a module of this package, a file, or an entry point ``package.module:Class``."""

    kind: str
    target: str

    def __str__(self) -> str:
        """For messages."""
        return self.target


def baselines_folder() -> Path:
    """The folder with the baselines: shipped inside the package in a wheel, beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "baselines"
    return inside if inside.is_dir() else package.parent / "baselines"


@dataclass
class MethodRegistry:
    """Lazily loaded methods.

    Attributes:
        origins: where each name comes from.
        problems: what was wrong with plugins that were left out (a clash of names), one line each.
    """

    origins: dict[str, Origin] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _loaded: dict[str, type[Method]] = field(default_factory=dict)

    @classmethod
    def discover(cls, plugins: Iterable[str] | None = None) -> MethodRegistry:
        """Search all sources without importing any method.

        Args:
            plugins: paths of plugin files; None reads the environment variable.
        """
        registry = cls()
        for name in OWN:
            registry.add(name, Origin("module", f"fractrain.methods.{name}"))
        for path in sorted(baselines_folder().glob("*.py")):
            if not path.stem.startswith("_"):
                registry.add(path.stem, Origin("file", str(path)))
        for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name):
            registry.add(point.name, Origin("entry point", point.value))
        if plugins is None:
            plugins = [p for p in os.environ.get(PLUGIN_VARIABLE, "").split(os.pathsep) if p]
        for plugin in plugins:
            registry.add(Path(plugin).stem, Origin("file", str(Path(plugin).resolve())))
        return registry

    def add(self, name: str, origin: Origin) -> None:
        """Register a source; the first one with a name keeps it, and the clash is noted in ``problems``."""
        known = self.origins.setdefault(name, origin)
        if known != origin:
            self.problems.append(f"method {name!r} of {origin} is left out: {known} has that name")

    def names(self) -> list[str]:
        """All names, FracTrain's own last in the order of the papers."""
        return sorted(self.origins, key=lambda n: (OWN.index(n) if n in OWN else -1, n))

    def get(self, name: str) -> type[Method]:
        """Import and return a method's class.

        Raises:
            ConfigError: unknown name.
            PluginError: the file cannot be imported or holds no method of that name; says file and line.
        """
        if name not in self.origins:
            raise ConfigError(
                f"unknown method {name!r}{did_you_mean(name, self.origins)}; `fractrain list methods` shows all"
            )
        if name not in self._loaded:
            self._loaded[name] = self._load(name, self.origins[name])
        return self._loaded[name]

    def _load(self, name: str, origin: Origin) -> type[Method]:
        from fractrain.methods.base import Method

        try:
            module, attribute = _import(name, origin)
        except Exception as problem:
            raise PluginError(f"method {name!r} ({_line_of(origin, problem)}): {_one_line(problem)}") from problem
        if attribute:
            found = [getattr(module, attribute, None)]
        else:
            found = [
                v for v in vars(module).values()
                if isinstance(v, type) and issubclass(v, Method) and v.__module__ == module.__name__
                and not v.__name__.startswith("_")
            ]  # fmt: skip
        matching = [c for c in found if isinstance(c, type) and issubclass(c, Method) and c.name == name]
        if len(matching) != 1:
            raise PluginError(
                f"method {name!r} ({origin}): expected one subclass of fractrain.methods.base.Method with "
                f"name = {name!r}, found {_classes(module) or 'no class'}"
            )
        return matching[0]

    def create(self, name: str, settings: Mapping[str, Any] | None = None) -> Method:
        """Return a method with validated settings.

        Raises:
            ConfigError: unknown method or setting, or a value of the wrong type; one line.
        """
        import pydantic

        cls = self.get(name)
        given = dict(settings or {})
        for key in given:
            if key not in cls.Settings.model_fields:
                known = list(cls.Settings.model_fields)
                raise ConfigError(
                    f"method {name!r} has no setting {key!r}{did_you_mean(key, known)}; it has: "
                    f"{', '.join(known) or 'none'}"
                )
        try:
            return cls(cls.Settings(**given))
        except pydantic.ValidationError as problem:
            first = problem.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            detail = f"{where} = {first['input']!r}: " if where else ""
            raise ConfigError(f"method {name!r}: setting {detail}{first['msg']}") from problem


def _import(name: str, origin: Origin) -> tuple[ModuleType, str]:
    if origin.kind == "file":
        return _import_file(name, Path(origin.target)), ""
    module, _, attribute = origin.target.partition(":")
    return importlib.import_module(module), attribute


def _import_file(name: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError("no such file")
    full = f"fractrain_plugins.{name}"
    spec = importlib.util.spec_from_file_location(full, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module  # pydantic and pickling look the module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full]
        raise
    return module


def _line_of(origin: Origin, problem: BaseException) -> str:
    """``file:line`` of the plugin's own frame nearest to the problem."""
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}:{problem.lineno}"
    frames = traceback.extract_tb(problem.__traceback__)
    if origin.kind == "file":
        own = [f for f in frames if f.filename == origin.target]
        return f"{origin.target}:{own[-1].lineno}" if own else origin.target
    foreign = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    return f"{origin.target}, {foreign[-1].filename}:{foreign[-1].lineno}" if foreign else origin.target


def _classes(module: ModuleType) -> str:
    """The classes that a module defines, each with its line and what makes it a method or not."""
    from fractrain.methods.base import Method

    told = []
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__:
            what = f"name = {cls.name!r}" if issubclass(cls, Method) else "not a Method"
            try:
                line = f" at line {inspect.getsourcelines(cls)[1]}"
            except OSError:  # a class made without a class statement
                line = ""
            told.append(f"{cls.__name__}{line} ({what})")
    return ", ".join(told)


def _one_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"


@lru_cache(maxsize=8)
def _shared(plugins: str) -> MethodRegistry:
    """One registry per set of plugins: a method's class stays the same object for the life of the process."""
    return MethodRegistry.discover([p for p in plugins.split(os.pathsep) if p])


def shared() -> MethodRegistry:
    """The registry of everything that can be found now."""
    return _shared(os.environ.get(PLUGIN_VARIABLE, ""))


def names() -> list[str]:
    """Names of all methods that can be found now."""
    return shared().names()


def get(name: str) -> type[Method]:
    """Class of a method; see :meth:`MethodRegistry.get`."""
    return shared().get(name)


def create(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """A method with validated settings; see :meth:`MethodRegistry.create`."""
    return shared().create(name, settings)
