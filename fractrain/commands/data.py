"""``fractrain data``: are the data sets there and whole, and how to get them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fractrain.commands.common import NearestGroup, data_option, emit_json, json_option, options, stdout_to_stderr
from fractrain.util.console import log_line

if TYPE_CHECKING:
    from fractrain.data.status import DataStatus


@click.group("data", cls=NearestGroup)
def data_group() -> None:
    """Look for data sets, fetch them, check them."""


@data_group.command("status")
@options(click.argument("name", required=False), data_option, json_option)
def status_command(name: str | None, data_dir: Path | None, as_json: bool) -> int:
    """Say which data sets are complete here (all of them, or NAME). Exit code 1 where NAME is not ready."""
    from fractrain.data import registry

    with stdout_to_stderr():
        found = [registry.status(one, data_dir) for one in ([name] if name else registry.names())]
    _show(found, as_json)
    return 1 if name and not found[0].ok else 0


@data_group.command("fetch")
@options(click.argument("name"), data_option, json_option)
def fetch_command(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Download NAME, checksum by checksum; does nothing when it is there."""
    from fractrain.data import registry

    log_line(f"fetching {name} ...")
    with stdout_to_stderr():
        found = registry.fetch(name, data_dir)
    _show([found], as_json)


@data_group.command("verify")
@options(click.argument("name"), data_option, json_option)
def verify_command(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Check every checksum of NAME, load it and count its samples."""
    from fractrain.data import registry

    log_line(f"verifying {name} ...")
    with stdout_to_stderr():
        found = registry.verify(name, data_dir)
    _show([found], as_json)


def _show(found: list[DataStatus], as_json: bool) -> None:
    if as_json:
        emit_json(found)
        return
    width = max(len(one.name) for one in found)
    for one in found:
        click.echo(f"{one.name:<{width}}  {one.state}: {one.message}")
        if one.advice:
            click.echo(f"{'':<{width}}  {one.advice}")
