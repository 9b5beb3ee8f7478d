"""Hardware models by name, and the small language in which the command line names them with settings.

``NAME``, ``NAME:PRESET`` or ``NAME:KEY=VALUE`` (``bitfusion:16x16:bus=4096``); several separated by commas. Found are
those shipped here, entry points ``fractrain.hardware`` and files given by ``--plugin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fractrain.cost.hardware.base import HardwareModel
from fractrain.util.errors import ConfigError, did_you_mean
from fractrain.util.registry import Origin, Registry
from fractrain.util.settings import configured

SHIPPED = {
    "fractrain-fitted": "fitted:FittedModel", "bit-product": "bit_product:BitProduct",
    "bit-serial": "bit_serial:BitSerial", "bitfusion": "bitfusion:BitFusion", "measured": "measured:MeasuredHardware",
    "roofline": "roofline:Roofline",
}  # fmt: skip


class HardwareRegistry(Registry[type[HardwareModel]]):
    """Lazily loaded hardware models."""

    noun, plural, classes = "hardware model", "hardware", True

    def builtin(self) -> Mapping[str, Origin]:
        """Those of this folder."""
        return {name: Origin("module", f"fractrain.cost.hardware.{where}") for name, where in SHIPPED.items()}

    def base(self) -> type:
        """The class all are derived from."""
        return HardwareModel


def names() -> list[str]:
    """Names of all hardware models that can be found now."""
    return HardwareRegistry.shared().names()


def get(name: str) -> type[HardwareModel]:
    """Class of a hardware model.

    Raises:
        ConfigError: unknown name.
        PluginError: it cannot be loaded.
    """
    return HardwareRegistry.shared().get(name)


def create(text: str) -> HardwareModel:
    """Return a hardware model with settings.

    Args:
        text: for example ``bit-product:fixed=0.5``; the last one to say something of a setting is right.

    Raises:
        ConfigError: unknown model, preset or setting, or a value of the wrong type or out of range.
        PluginError: it cannot be loaded.
    """
    name, *words = [word.strip() for word in text.split(":")]
    kind = get(name)
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            given[key] = value
        elif word in kind.presets:
            given |= kind.presets[word]
        else:
            known = [*kind.presets, *(f"{key}=..." for key in kind.Settings.model_fields)]
            raise ConfigError(
                f"hardware model {name!r} has no preset {word!r}{did_you_mean(word, kind.presets)}; "
                f"after a colon it takes {', '.join(known) or 'nothing'}"
            )
    return configure(kind, given)


def configure(kind: type[HardwareModel], given: Mapping[str, Any]) -> HardwareModel:
    """Return a model with settings by name; see :func:`create`."""
    return kind(configured(kind.Settings, given, f"hardware model {kind.name!r}"))


def create_all(text: str) -> list[HardwareModel]:
    """Return the hardware models of a list separated by commas.

    Raises:
        ConfigError: the list is empty or has a model twice, or as for :func:`create`.
    """
    models = [create(word) for word in text.split(",") if word.strip()]
    if not models:
        raise ConfigError(f"--hardware {text!r} names no hardware model; `fractrain list hardware` shows all")
    titles = [model.title for model in models]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise ConfigError(f"--hardware {text!r}: {twice} is named twice")
    return models
