"""What of a run is shown to others: its names, its config and its numbers, without a place on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, Final

from fractrain.engine.config import RunConfig
from fractrain.util.errors import FractrainError

PUBLIC_TEXTS: Final = frozenset({
    "run_id", "status", "method", "model", "dataset", "profile", "metric", "device", "data_digest", "weights_sha256",
    "ledger_sha256", "test_accuracy_best_protocol",
})  # fmt: skip


def run_name(config: RunConfig) -> str:
    """What distinguishes a run from its neighbours: names, length, what is not the default, seed."""
    return f"{group_name(config)} s{config.seed}"


def group_name(config: RunConfig) -> str:
    """The same for all seeds."""
    what = {key: getattr(config, key) for key in ("method", "model", "dataset", "profile", "setting")}
    try:
        length = RunConfig.create(**what).recipe.iterations
        usual = _set(RunConfig.create(**what, recipe={"iterations": config.recipe.iterations}))
        usual["recipe.iterations"] = length  # others follow it
    except FractrainError:  # of a plugin or folder that is not here: everything is named
        usual = {}
    changed = [f"{key}={value}" for key, value in _set(config).items() if usual.get(key) != value]
    return " ".join([*identity_words(config), *([] if config.setting == "standard" else [config.setting]), *changed])


def identity_words(config: RunConfig) -> list[str]:
    """Method, model, data set and length, without the place of a folder on this machine."""
    return [_without_place(str(word)) for word in (config.method, config.model, config.public_dataset, config.profile)]


def _set(config: RunConfig) -> dict[str, Any]:
    """Settings of the method, and those of the recipe as ``recipe.KEY``, without places on this machine."""
    recipe = config.recipe.model_dump(mode="json")
    found: dict[str, Any] = public_config({**config.settings, **{f"recipe.{k}": v for k, v in recipe.items()}})
    return found


def shown_config(config: RunConfig) -> dict[str, Any]:
    """Return a run's config for others, the data set by its public name."""
    values = config.model_dump(mode="json", exclude={"dataset_id", "source"})
    source = shown_config(config.source) if config.source else None
    shown: dict[str, Any] = public_config({**values, "dataset": config.public_dataset, "source": source})
    return shown


def public_config(value: Any) -> Any:
    """Return a config as plain JSON-able data, without settings that name a place on this machine."""
    if isinstance(value, Mapping):
        return {str(key): public_config(item) for key, item in value.items() if not _is_place(item)}
    if isinstance(value, list | tuple):
        return [public_config(item) for item in value if not _is_place(item)]
    return _without_place(value) if isinstance(value, str) else value


def _without_place(text: str) -> str:
    """``folder:/home/me/photos`` as ``folder:photos``; any other text as it is."""
    prefix, _, rest = text.partition(":")
    return f"{prefix}:{Path(rest).name}" if len(prefix) > 1 and _is_place(rest) else text  # C: is no prefix


def _is_place(value: Any) -> bool:
    if isinstance(value, Path):
        return True
    if not isinstance(value, str):
        return False
    home = str(Path.home())
    rooted = value.startswith("~") or Path(value).is_absolute() or PureWindowsPath(value).is_absolute()
    return rooted or (len(home) > 1 and home in _without_place(value))


def public_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a summary or of a metrics line, and those texts whose field says what they are."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key == "replaced_images":
            found[key] = len(value)  # by path
        elif isinstance(value, Mapping):
            found[key] = public_facts(value)
        elif isinstance(value, list | tuple):
            found[key] = [item for item in value if not isinstance(item, str | Mapping | list | tuple)]
        elif not isinstance(value, str):
            found[key] = value
        elif key in PUBLIC_TEXTS:
            found[key] = _without_place(value)
    return found
