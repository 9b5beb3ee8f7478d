"""Methods by name: found in folders, in installed packages (entry points) and in files given by path; imported late.

A method's registry name is the name of its file. Shipped are FracTrain's own (this folder) and ``baselines/``; where
else methods are found, see :mod:`fractrain.util.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fractrain.util.registry import Origin, Registry

if TYPE_CHECKING:
    from fractrain.methods.base import Method

OWN = ("pfq", "dfq", "fractrain")
FULL_PRECISION = "fp32"  # the yardstick, and what models are trained with before another method goes on with them


def baselines_folder() -> Path:
    """The folder with the baselines: shipped inside the package in a wheel, beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "baselines"
    return inside if inside.is_dir() else package.parent / "baselines"


class MethodRegistry(Registry["type[Method]"]):
    """Lazily loaded methods."""

    noun, plural, classes = "method", "methods", True

    def builtin(self) -> Mapping[str, Origin]:
        """FracTrain's own and the baselines."""
        found = {name: Origin("module", f"fractrain.methods.{name}") for name in OWN}
        for path in sorted(baselines_folder().glob("*.py")):
            if not path.stem.startswith("_"):
                found[path.stem] = Origin("file", str(path))
        return found

    def base(self) -> type:
        """Imports torch."""
        from fractrain.methods.base import Method

        return Method

    def names(self) -> list[str]:
        """All names, FracTrain's own last in the order of the papers."""
        return sorted(self.origins, key=lambda n: (OWN.index(n) if n in OWN else -1, n))

    def create(self, name: str, settings: Mapping[str, Any] | None = None) -> Method:
        """Return a method with validated settings.

        Raises:
            ConfigError: unknown method or setting, or a value of the wrong type; one line.
        """
        from fractrain.util.settings import configured  # imports pydantic

        cls = self.get(name)
        return cls(configured(cls.Settings, settings or {}, f"method {name!r}", cls.Settings.removed))


def names() -> list[str]:
    """Names of all methods that can be found now."""
    return MethodRegistry.shared().names()


def get(name: str) -> type[Method]:
    """Class of a method; see :meth:`MethodRegistry.get`."""
    return MethodRegistry.shared().get(name)


def create(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """A method with validated settings; see :meth:`MethodRegistry.create`."""
    return MethodRegistry.shared().create(name, settings)
