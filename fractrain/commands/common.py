"""What all verbs share: options, JSON output, the clean split between stdout and stderr."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from fractrain.util.errors import did_you_mean
from fractrain.util.registry import PLUGIN_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])

PROFILES = ("smoke", "short", "paper")
KERNELS = ("auto", "reference", "fused")
RESULTS_ENV = "FRACTRAIN_RESULTS"
DEFAULT_RESULTS = "results/runs"


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Apply click options in the order in which they shall appear in ``--help``."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


class NearestChoice(click.Choice[str]):
    """A choice whose error names the nearest possibility."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value if it is one of the choices."""
        if value not in self.choices:
            hint = did_you_mean(str(value), self.choices)
            self.fail(f"{value!r} is not known{hint}; choose from {', '.join(self.choices)}", param, ctx)
        return super().convert(value, param, ctx)


class NearestGroup(click.Group):
    """A group of verbs whose error names the nearest verb."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; an unknown one is reported with the nearest known."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            verbs = self.list_commands(ctx)
            hint = did_you_mean(name, verbs) or f"; there are {', '.join(verbs)}"
            raise click.UsageError(f"no such command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


def choice_option(*names: str, of: Sequence[str], default: str, help: str | None = None) -> Callable[[F], F]:
    """An option with one of the values ``of``; an error names the nearest."""
    return click.option(*names, type=NearestChoice(of), default=default, show_default=True, help=help)


def folder_option(*names: str, help: str, default: str | None = None, **more: Any) -> Callable[[F], F]:
    """An option with a folder, there or to be made."""
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option(
        *names, type=kind, metavar="DIR", help=help, default=default, **{"show_default": default is not None, **more}
    )


json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout, everything else on stderr."
)


def profile_option(
    default: str | None, otherwise: str = "smoke for an embedded data set, else paper"
) -> Callable[[F], F]:
    """``--profile`` and ``--length``, which a command gets as one argument ``profile``.

    Args:
        default: where neither is given.
        otherwise: what holds then if ``default`` is None.
    """
    shown = default or otherwise

    def apply(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, profile: str | None, length: str | None, **others: Any) -> Any:
            from fractrain.engine.length import chosen_profile

            return function(*args, profile=chosen_profile(profile, length) or default, **others)

        return options(  # type: ignore[return-value]
            click.option(
                "--profile", type=NearestChoice(PROFILES),
                help="smoke: embedded data, minutes. short: real data, 1/8 of the paper's length. paper: the paper's "
                f"protocol.  [default: {shown}]",
            ),
            click.option(
                "--length", metavar="1/N",
                help="The paper's protocol on its data at 1/N of its iterations, its schedules in proportion "
                "(1/8: short, 1: paper).",
            ),
        )(command)  # fmt: skip

    return apply


device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1, ..."
)
kernels_option = choice_option(
    "--kernels", of=KERNELS, default="auto",
    help="Plain torch, compiled, or compiled where a check passes. All round alike and share run ids; compiled "
    "kernels may multiply integer codes, whose sums are exact: weights then differ in the last bits.",
)  # fmt: skip
graphs_option = choice_option(
    "--graphs", of=("auto", "off"), default="auto",
    help="On a GPU: record a training step as a CUDA graph and replay it, where method and a check allow it.",
)  # fmt: skip
data_option = folder_option("--data-dir", help="Where the data sets lie.  [default: $FRACTRAIN_DATA, else ./data]")
download_option = click.option("--download", is_flag=True, help="Fetch data sets that are not there.")
results_option = folder_option(
    "--results", envvar=RESULTS_ENV, default=DEFAULT_RESULTS, help="The run store.",
    show_default=f"${RESULTS_ENV}, else {DEFAULT_RESULTS}",
)  # fmt: skip


def site_options(command: F) -> F:
    """The options that say where and how runs are executed; a command gets a :class:`~fractrain.engine.site.Site`."""

    @functools.wraps(command)
    def with_site(
        *args: Any, results: Path, device: str, data_dir: Path | None, download: bool, kernels: Any, graphs: Any,
        **others: Any,
    ) -> Any:  # fmt: skip
        from fractrain.engine.site import Site

        return command(*args, site=Site(results, device, data_dir, download, kernels=kernels, graphs=graphs), **others)

    return options(kernels_option, graphs_option, device_option, data_option, download_option, results_option)(
        with_site
    )  # type: ignore[return-value]


def _add_plugins(ctx: click.Context, _: click.Parameter, files: tuple[str, ...]) -> None:
    """Make plugin files known to this process and its workers until the command ends."""
    if not files:
        return
    from unittest.mock import patch

    all_files = os.pathsep.join(filter(None, (os.environ.get(PLUGIN_VARIABLE), *files)))
    ctx.with_resource(patch.dict(os.environ, {PLUGIN_VARIABLE: all_files}))


plugin_option = click.option(
    "--plugin", multiple=True, type=click.Path(exists=True, dir_okay=False), callback=_add_plugins, expose_value=False,
    metavar="FILE",
    help=f"A file with a method, model, data set, ... of your own; may be repeated (also ${PLUGIN_VARIABLE}).",
)  # fmt: skip


def json_safe(value: Any) -> Any:
    """Return ``value`` as JSON knows it: a float that is not finite becomes None, what JSON cannot say its text."""
    from pydantic_core import to_json

    return json.loads(to_json(value, inf_nan_mode="null", fallback=str))


def short(value: Any) -> str:
    """A value in at most 60 characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def emit_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    click.echo(json.dumps(json_safe(value), indent=2, allow_nan=False))


def show(as_json: bool, value: Any, text: str) -> None:
    """Write the result to stdout: as one JSON document, or for people."""
    if as_json:
        emit_json(value)
    else:
        click.echo(text)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what libraries print to stderr, so that stdout holds the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
