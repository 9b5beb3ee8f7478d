"""The options that say which run is meant, shared by the verbs that make a configuration of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import choice_option, options, profile_option

if TYPE_CHECKING:
    from fractrain.engine.config import RunConfig

SETTINGS = ("standard", "adaptation", "fine-tuning")
SOURCE_KEYS = "source."


class _NotAnOption(click.Option):
    """An option of other programs: refused with what to write here instead."""

    def __init__(self, name: str, instead: str) -> None:
        super().__init__([name], hidden=True, expose_value=False, callback=self._refuse)
        self.instead = instead

    def _refuse(self, ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None:
            raise click.UsageError(f"no option {self.opts[0]}: {self.instead.format(value=value)}", ctx)


def _hint(name: str, instead: str) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        function.__dict__.setdefault("__click_params__", []).append(_NotAnOption(name, instead))
        return function

    return add


_LENGTH = "the length is counted in steps, --set recipe.iterations=N; `fractrain config show` tells all of a recipe"


def run_options(required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options from which :func:`chosen_config` makes a configuration.

    Args:
        required: method, model and data set must be given.
    """
    return options(
        click.option("--method", required=required, metavar="NAME", help="See `fractrain list methods`."),
        click.option("--model", required=required, metavar="NAME", help="See `fractrain list models`."),
        click.option("--dataset", required=required, metavar="NAME", help="See `fractrain list datasets`."),
        profile_option(None),
        choice_option(
            "--setting", of=SETTINGS, default="standard",
            help="adaptation, fine-tuning: go on from a run on the other half of classes or images (made if missing).",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        click.option(
            "--set", "sets", multiple=True, metavar="KEY=VALUE",
            help="A setting of the method, or recipe.KEY=VALUE (source.KEY=VALUE: of the source run); may be repeated. "
            "`fractrain config show` lists them all.",
        ),
        choice_option(
            "--preset", of=("none", "paper"), default="none",
            help="paper: the settings the papers give for this model and data set, where they differ from the method's "
            "defaults (which are those for CIFAR's ResNets); --set goes before.",
        ),
        _hint("--epochs", _LENGTH),
        _hint("--iterations", "write --set recipe.iterations={value}"),
        _hint("--lr", "write --set recipe.lr={value}"),
        _hint("--batch-size", "write --set recipe.batch_size={value}"),
    )  # fmt: skip


def chosen_config(
    *, method: str, model: str, dataset: str, profile: str | None = None, setting: str = "standard", seed: int = 0,
    sets: Iterable[str] = (), preset: str = "none",
) -> RunConfig:  # fmt: skip
    """Return the configuration that the options describe.

    Raises:
        ConfigError: a name, key or value is wrong, or they do not go together.
    """
    from fractrain.engine.config import RunConfig, collect_sets
    from fractrain.methods.presets import paper_settings

    sets = list(sets)
    settings, recipe = collect_sets(text for text in sets if not text.startswith(SOURCE_KEYS))
    _, source = collect_sets(
        "recipe." + text.removeprefix(SOURCE_KEYS) for text in sets if text.startswith(SOURCE_KEYS)
    )
    if preset == "paper":
        settings = {**paper_settings(method, model, dataset), **settings}
    return RunConfig.create(
        method=method, model=model, dataset=dataset, profile=profile, seed=seed, settings=settings, recipe=recipe,
        setting=setting, source_recipe=source, origin="--set",
    )  # fmt: skip


def config_lines(config: RunConfig, usual: RunConfig | None) -> list[str]:
    """A configuration for people: every key with its value, and the default where it is another one.

    Args:
        usual: the same run without a changed setting or recipe; None where there is none.
    """
    values, defaults = config.model_dump(mode="json"), usual.model_dump(mode="json") if usual else {}
    names = ("method", "method_version", "model", "dataset", "setting", "profile", "seed")
    lines = [f"run {config.run_id}", *(f"  {name} = {values[name]}" for name in names)]
    for part, prefix in (("settings", ""), ("recipe", "recipe.")):
        lines.append(f"{part}  (--set {prefix}KEY=VALUE)")
        for key, value in values[part].items():
            default = defaults.get(part, {}).get(key, value)
            lines.append(f"  {key} = {_written(value)}" + (f"    (default {_written(default)})" * (default != value)))
    if config.source is not None:
        lines.append(f"starts from run {config.source.run_id}")
    return lines


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)
