"""Number formats by name: :mod:`fractrain.numerics.catalog`, entry points ``fractrain.formats`` and plugin files."""

from __future__ import annotations

from collections.abc import Mapping

from fractrain.numerics.catalog import FORMATS
from fractrain.numerics.formats import Format
from fractrain.numerics.info import FormatInfo
from fractrain.util.errors import ConfigError
from fractrain.util.registry import Origin, Registry


class FormatRegistry(Registry[FormatInfo]):
    """Lazily loaded number formats."""

    noun, plural = "number format", "formats"

    def builtin(self) -> Mapping[str, Origin]:
        """Those of the catalog."""
        return {info.name: Origin("module", "fractrain.numerics.catalog") for info in FORMATS}

    def base(self) -> type:
        """Entries are instances."""
        return FormatInfo


def number_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        ConfigError: there is none, or it has no width of its own.
        PluginError: it cannot be loaded.
    """
    made = FormatRegistry.shared().get(name).make()
    if made.bits is None:
        raise ConfigError(f"number format {name!r} has no width: let the property `bits` of its class return one")
    return made
