"""Shapes of the layers of a run's model, from the run's configuration: what the ledger leaves out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from fractrain.cost.hardware.base import LayerShape
from fractrain.util.registry import PLUGIN_VARIABLE

if TYPE_CHECKING:
    from fractrain.engine.config import RunConfig


def run_layer_shapes(config: RunConfig) -> Mapping[str, LayerShape]:
    """Return the shapes of the plain model's layers on the run's data, by module name.

    Raises:
        ConfigError: the model or the data set is not known (any more).
        PluginError: its plugin cannot be loaded.
    """
    return _geometry(config.model, config.dataset, config.setting, os.environ.get(PLUGIN_VARIABLE, ""))


@lru_cache(maxsize=64)
def _geometry(model: str, dataset: str, setting: str, _plugins: str) -> Mapping[str, LayerShape]:
    from fractrain.engine.registries import Registries
    from fractrain.models.layer_shapes import layer_shapes

    registries = Registries().for_setting(setting, 0)
    return layer_shapes(lambda: registries.model(model, dataset, 0), tuple(registries.dataset_info(dataset).shape))
