"""A run as a value: what is trained on what, how, and an id that is a hash of everything that can change the result."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import Field, JsonValue

from fractrain.data.transfer_splits import unsuitable_reason
from fractrain.engine.length import Profile, check_profile
from fractrain.engine.recipes import (
    SETTINGS,
    SOURCE_OF,
    Recipe,
    Setting,
    default_profile,
    recipe_values,
    transfer_recipe,
    with_length,
)
from fractrain.engine.registries import Registries
from fractrain.util.errors import ConfigError, did_you_mean
from fractrain.util.schema import parse_json
from fractrain.util.settings import added_at_default, replaced_at_default

FORMAT_VERSION: Final = 1
_LONGEST: Final = 40  # of a name in a run id: names of models and data from elsewhere may be paths; the end is kept
# What records of earlier releases, which do not say so themselves, hold of settings that are no part of the id.
_EARLIER: Final[Mapping[str, Any]] = {"gate_state": None, "depthwise_bits": [8, 16], "forward": "all"}


class RunConfig(pydantic.BaseModel):
    """Everything that can change the result of one training run; make one with :meth:`create`.

    Attributes:
        method: registry name of the method.
        settings: the method's settings, validated and complete: a default spelled out gives the same id.
        method_version: the method's ``version``; raised by its author when results change.
        model, dataset: registry names.
        model_version: the model's ``version``, as for the method.
        dataset_id: stands for ``dataset`` in the id, and wherever the run is shown to others, where that is a place on
            this machine; empty: it is none, or the run is of a release that had no such name.
        setting: ``standard``: from scratch on the whole data set; ``adaptation`` or ``fine-tuning``: from the final
            weights of ``source`` on the second part of the data; ``adaptation-source`` or ``fine-tuning-source``: from
            scratch on the first part.
        profile: ``smoke``, ``short``, ``paper`` or ``1/n``: how much of the paper's protocol, see
            :mod:`fractrain.engine.length`.
        seed: all randomness derives from it.
        recipe: length and optimizer settings.
        source: the run whose final weights this one starts from; None: from scratch.
        outside_id: names of settings that are no part of the id: they came after runs had been recorded and have their
            defaults (:mod:`fractrain.util.settings`).
        former_settings: what the id goes on holding of settings that others have taken the place of.
        format_version: version of this record.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str
    settings: dict[str, JsonValue]
    method_version: int
    model: str
    model_version: Annotated[int, Field(ge=1)] = 1
    dataset: str
    dataset_id: str = ""
    setting: Setting = "standard"
    profile: Profile
    seed: Annotated[int, Field(ge=0)]
    recipe: Recipe
    source: RunConfig | None = None
    outside_id: tuple[str, ...] = ()
    former_settings: dict[str, JsonValue] = {}
    format_version: Literal[1] = FORMAT_VERSION

    @pydantic.model_validator(mode="after")
    def _source_fits(self) -> RunConfig:
        wanted = SOURCE_OF.get(self.setting)
        if (self.source.setting if self.source else None) != wanted:
            needed = f"a source run of {wanted!r}" if wanted else "no source"
            raise ValueError(f"setting {self.setting!r} needs {needed}")
        return self

    @classmethod
    def create(
        cls, *, method: str, model: str, dataset: str, profile: str | None = None, seed: int = 0,
        settings: Mapping[str, Any] | None = None, recipe: Mapping[str, Any] | None = None, setting: str = "standard",
        source_recipe: Mapping[str, Any] | None = None, origin: str = "settings", registries: Registries | None = None,
    ) -> RunConfig:  # fmt: skip
        """Resolve and validate a run.

        Args:
            profile: None means ``smoke`` for an embedded data set and ``paper`` for a real one.
            settings: the method's settings that differ from its defaults.
            recipe: values that differ from the recipe of data set and profile. Another number of ``iterations`` scales
                the milestones and the warm-up unless they are given too.
            setting: see the class. ``adaptation`` and ``fine-tuning`` bring their source run with them: full precision,
                the same model, data set, profile and seed.
            source_recipe: as ``recipe``, for the source run.
            origin: where settings and recipe came from (``--set``, a file), for error messages.
            registries: where the names are looked up.

        Raises:
            ConfigError: an unknown name or key, a wrong type, or an impossible combination.
        """
        known = registries or Registries()
        kind = known.method_class(method)
        info = known.dataset_info(dataset)
        _must_fit(known, method, model, dataset, setting)
        profile = check_profile(profile or default_profile(info.embedded))
        values = recipe_values(info, profile)
        source = None
        if setting in SOURCE_OF:
            values = transfer_recipe(values)
            source = cls.create(
                method=known.full_precision(), model=model, dataset=dataset, profile=profile, seed=seed,
                recipe=source_recipe, setting=SOURCE_OF[setting], origin=f"{origin}: source run", registries=registries,
            )  # fmt: skip
        elif source_recipe:
            raise ConfigError(f"{origin}: a recipe for the source run, but setting {setting!r} has none")
        recipe_value = merge_recipe(values, recipe or {}, origin)
        resolved = _resolved(kind.Settings, settings or {}, f"{origin}: {method}")
        try:
            return cls.model_validate(
                {"method": method, "settings": resolved, "method_version": kind.version, "model": model,
                 "model_version": known.model_version(model), "dataset": dataset,
                 "dataset_id": known.dataset_id(dataset), "setting": setting, "profile": profile, "seed": seed,
                 "recipe": recipe_value, "source": source, "outside_id": added_at_default(kind.Settings, resolved),
                 "former_settings": replaced_at_default(kind.Settings, resolved)}
            )  # fmt: skip
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, origin, cls.model_fields)) from error

    @classmethod
    def from_json(cls, text: str | bytes, origin: str) -> RunConfig:
        """Read a config that :meth:`to_json` wrote.

        Raises:
            ConfigError: not JSON, another format version, or not a run config.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"{origin}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{origin}: not a run config")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"{origin}: run config of format {reprlib.repr(version)}, this release reads {FORMAT_VERSION}"
            )
        _complete_earlier(values)
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, origin, cls.model_fields)) from error

    def to_json(self) -> str:
        """Return the config as indented JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @property
    def public_dataset(self) -> str:
        """The data set's name, without a place on this machine where the release knew how to."""
        return self.dataset_id or self.dataset

    @cached_property
    def run_id(self) -> str:
        """Readable prefix plus 12 hex digits of the SHA-256 over the canonical JSON form."""
        values = self.model_dump(mode="json", exclude={"source", "dataset_id", "outside_id", "former_settings"})
        values["dataset"] = self.public_dataset
        if self.source is not None:  # runs from scratch keep the ids they had before there were others
            values["source"] = self.source.run_id
        for part, names in ("settings", self.outside_id), ("recipe", added_at_default(Recipe, values["recipe"])):
            values[part] = {key: value for key, value in values[part].items() if key not in names}
        values["settings"] |= self.former_settings
        if values["model_version"] == 1:
            del values["model_version"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
        prefix = (re.sub(r"[^A-Za-z0-9_.]+", "_", n)[-_LONGEST:] for n in (self.method, self.model, values["dataset"]))
        return f"{'-'.join(prefix)}-s{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def __hash__(self) -> int:
        return hash(self.run_id)


def _complete_earlier(record: dict[str, Any]) -> None:
    """Give a record of an earlier release, and its source run's, the ``outside_id`` that it lacks."""
    settings = record.get("settings")
    if "outside_id" not in record and isinstance(settings, dict):
        known = (key for key in sorted(_EARLIER) if key in settings)
        record["outside_id"] = [key for key in known if settings[key] == _EARLIER[key]]
    if isinstance(record.get("source"), dict):
        _complete_earlier(record["source"])


def group_id(config: RunConfig) -> str:
    """Id that runs share which differ in the seed alone: runs of one group may be averaged over seeds."""
    return _of_seed_0(config).run_id.replace("-s0-", "-")


def _of_seed_0(config: RunConfig) -> RunConfig:
    fields = {name: getattr(config, name) for name in RunConfig.model_fields}  # a copy would keep the id it had
    source = _of_seed_0(config.source) if config.source else None
    return RunConfig.model_construct(**{**fields, "seed": 0, "source": source})


def merge_recipe(values: Mapping[str, Any], changes: Mapping[str, Any], origin: str) -> Recipe:
    """Return the recipe ``values`` with ``changes``; milestones and warm-up follow the number of iterations.

    Raises:
        ConfigError: unknown key or wrong type in ``changes``.
    """
    try:
        recipe = Recipe.model_validate({**values, **changes})
        if "iterations" in changes:
            scaled = with_length(dict(values), recipe.iterations)
            recipe = Recipe.model_validate({**scaled, **changes})
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error, f"{origin}: recipe", Recipe.model_fields)) from error
    return recipe


def explain(error: pydantic.ValidationError, origin: str, known: Iterable[str] = ()) -> str:
    """Fold pydantic's several lines into one.

    Args:
        origin: where the values came from, for example ``--set`` or a file's path.
        known: the keys there are, for "did you mean".
    """
    known = list(known)
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = did_you_mean(key, known)
            parts.append(f"unknown key {key!r}{near}; known: {', '.join(known) or 'none'}")
        elif item["type"] == "missing":
            parts.append(f"key {key!r} is missing")
        else:
            reason = " ".join(item["msg"].split())
            if item["type"] == "tuple_type":
                reason = "expected a list, for example 4,5 or [4]"
            got = f", got {reprlib.repr(item['input'])}"
            if item["type"] == "value_error":  # a check of ours, whose words say what it got
                reason = str(item.get("ctx", {}).get("error", reason))
                given = item["input"] if isinstance(item["input"], dict) else {key: None}
                got = "" if ", got " in reason and any(name in reason for name in given) else got
            where = f"{key}: " if key and not reason.startswith(key) else ""
            parts.append(f"{where}{reason[:1].lower()}{reason[1:]}{got}")
    return f"{origin}: {'; '.join(parts)}"


def parse_set(text: str) -> tuple[str, str, Any]:
    """Read one ``--set`` argument.

    Args:
        text: ``key=value`` for the method's settings, ``recipe.key=value`` for the recipe; dots make nested settings.
            The value is JSON (``0.1``, ``true``, ``[3,4,6,8]``), a list with commas (``3,4,6,8``), or plain text.

    Returns:
        ``("settings" or "recipe", key, value)``.

    Raises:
        ConfigError: there is no ``=`` or no key.
    """
    path, equals, raw = text.partition("=")
    path = path.strip()
    target, dot, key = path.partition(".")
    if not equals or not path or (dot and not key):
        raise ConfigError(f"--set {text!r}: expected KEY=VALUE, for example --set recipe.iterations=1000")
    if target == "recipe" and not dot:
        raise ConfigError(f"--set {text!r}: name the key, for example --set recipe.iterations=1000")
    value = _parse_value(raw.strip())
    return ("recipe", key, value) if target == "recipe" else ("settings", path, value)


def collect_sets(texts: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read all ``--set`` arguments; return (settings, recipe) for :meth:`RunConfig.create`.

    Raises:
        ConfigError: an argument cannot be read, or a key is given twice.
    """
    found: dict[str, dict[str, Any]] = {"settings": {}, "recipe": {}}
    for text in texts:
        target, path, value = parse_set(text)
        inner = found[target]
        *parents, last = path.split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {text!r}: {parent!r} already has a plain value")
        if last in inner:
            raise ConfigError(f"--set {text!r}: {path!r} is given twice")
        inner[last] = value
    return found["settings"], found["recipe"]


def _parse_value(raw: str) -> Any:
    try:
        return parse_json(raw)
    except ValueError:  # not JSON: a list with commas, or text
        if "," in raw and not raw.startswith(("[", "{", '"')):
            return [_parse_value(part.strip()) for part in raw.split(",")]
        return raw


def _resolved(kind: type[pydantic.BaseModel], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A method's settings with its defaults filled in."""
    for key in settings:  # people write --set lr=0.1
        if key not in kind.model_fields and key in Recipe.model_fields:
            raise ConfigError(f"{where}: unknown key {key!r}: it is a key of the recipe, write recipe.{key}")
    try:
        return kind.model_validate(dict(settings)).model_dump(mode="json")
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error, where, kind.model_fields)) from error


def _must_fit(known: Registries, method: str, model: str, dataset: str, setting: str) -> None:
    """Raise ConfigError where method, model, data set and setting do not go together."""
    if reason := known.mismatch(model, dataset):
        raise ConfigError(f"{model} cannot be trained on {dataset}: {reason}")
    if setting not in SETTINGS:
        raise ConfigError(f"unknown setting {setting!r}{did_you_mean(setting, SETTINGS)}; {', '.join(SETTINGS)}")
    if reason := unsuitable_reason(known.dataset_info(dataset), setting):
        raise ConfigError(f"{dataset} cannot be used for {setting}: {reason}")
    if reason := known.unsuitable_reason(method, model, dataset):
        raise ConfigError(f"{method} does not fit {model}: {reason}")
