"""``fractrain bench``: speed and memory as ratios to FP32, and where a step's time goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fractrain.bench import catalog
from fractrain.commands.common import (
    NearestChoice,
    device_option,
    emit_json,
    folder_option,
    json_option,
    kernels_option,
    options,
    plugin_option,
    show,
    stdout_to_stderr,
)
from fractrain.util.console import log_line
from fractrain.util.files import try_folder

if TYPE_CHECKING:
    from fractrain.bench.subject import Setup

DEFAULT_OUT = "results/bench"


@click.command("bench", short_help="Measure speed and memory against FP32.")
@options(
    click.option(
        "--path", "paths", multiple=True, type=NearestChoice(catalog.NAMES + catalog.EXTRA_NAMES), metavar="NAME",
        help=f"Only this one; may be repeated: {', '.join(catalog.NAMES + catalog.EXTRA_NAMES)}.",
    ),
    click.option(
        "--formats", is_flag=True,
        help="Today's formats and other libraries' emulators of them instead (extra: peers; microxcaling where "
        f"${catalog.MICROXCALING} names a copy's folder).",
    ),
    click.option(
        "--where-time-goes", "views", multiple=True, metavar="METHOD",
        help="Take a step of this method apart (conv, quantize, ...); may be repeated. Without --path, only this.",
    ),
    click.option(
        "--peaks", is_flag=True,
        help="Peak memory of every model under every method instead (an hour; needs about 8 GiB; goes on where it "
        "was stopped).",
    ),
    click.option("--model", default=catalog.MODEL, show_default=True, metavar="NAME"),
    click.option("--batch", type=click.IntRange(min=2), metavar="N", help=f"[default: {catalog.BATCH}]"),
    click.option("--size", type=click.IntRange(min=1), metavar="N", help=f"Of the images.  [default: {catalog.SIZE}]"),
    click.option("--repeats", type=click.IntRange(min=1), metavar="N", help=f"[default: {catalog.REPEATS}]"),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="[default: one per core]"),
    click.option("--quick", is_flag=True, help="Small and few: only to see that everything works."),
    kernels_option,
    device_option,
    folder_option("--out", default=DEFAULT_OUT, help="Where the JSON and the table are written."),
    plugin_option,
    json_option,
)  # fmt: skip
def bench_command(
    paths: tuple[str, ...], formats: bool, views: tuple[str, ...], peaks: bool, model: str, batch: int | None,
    size: int | None, repeats: int | None, threads: int | None, quick: bool, kernels: str, device: str, out: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure what low-precision steps cost: ratios to FP32, paired and interleaved, medians with quartiles.

    The full bench (default settings) is written to cpu.json and cpu.md (cuda.* on a GPU), that of the formats to
    cpu-formats.*, any other to files whose name says so. --json prints the list of paths, or of views where only these
    were asked for.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch loads: the profiler chatters on stderr
    try_folder(out)
    if peaks:
        _peaks(threads or 1, out, as_json)
        return
    with stdout_to_stderr():
        setup = _setup(model, batch, size, repeats, threads, quick, kernels, device)
        chosen = (*paths, *(catalog.TODAY if formats else ()))
        wanted = chosen or (() if views else catalog.NAMES)
        label = _label(setup, chosen, views, quick)
        from fractrain.bench import document, measure
        from fractrain.methods import registry
        from fractrain.util.progress import make_progress

        for method in views:
            registry.get(method)
        usual = catalog.QUICK_VIEWS if quick else catalog.VIEWS
        found = measure.run(setup, wanted, views or (() if chosen else usual), make_progress())
        result = document.document(setup, found.paths, found.views, label)
        files = document.write(result, out, "-".join(filter(None, (setup.device.type, label))))
    if as_json:
        only_views = not wanted
        emit_json(result["where_time_goes"] if only_views else [document.line_of(*each) for each in found.paths])
    else:
        click.echo(document.markdown(result).rstrip("\n"))
    log_line(f"written: {', '.join(str(file) for file in files)}")


def _peaks(threads: int, out: Path, as_json: bool) -> None:
    """Measure, write and print the peak memory of every model."""
    with stdout_to_stderr():
        from fractrain.bench import peaks
        from fractrain.util.files import write_files
        from fractrain.util.progress import make_progress

        value = peaks.measure(make_progress(), peaks.pairs(), threads, out)
        page = peaks.page(value)
        write_files({out / "memory.md": page.encode()})
    show(as_json, value, page.rstrip("\n"))
    log_line(f"written: {out / 'memory.json'}, {out / 'memory.md'}")


def _setup(
    model: str, batch: int | None, size: int | None, repeats: int | None, threads: int | None, quick: bool,
    kernels: str, device: str,
) -> Setup:  # fmt: skip
    """The settings, resolved and checked before anything is built."""
    from fractrain.bench.subject import Setup
    from fractrain.engine.environment import cores
    from fractrain.models import registry
    from fractrain.util.device import resolve_device
    from fractrain.util.errors import ConfigError

    known = registry.info(model)
    size = size or (max(catalog.QUICK_SIZE, known.min_size) if quick else catalog.SIZE)
    if known.input != "image":
        raise ConfigError(f"--model {model}: bench compares models of images, this one takes {known.input}")
    if size < known.min_size:
        raise ConfigError(f"--size {size}: {model} needs images of at least {known.min_size}x{known.min_size}")
    return Setup(
        model=model,
        batch=batch or (catalog.QUICK_BATCH if quick else catalog.BATCH),
        size=size,
        repeats=repeats or (catalog.QUICK_REPEATS if quick else catalog.REPEATS),
        device=resolve_device(device),
        kernels=kernels,  # type: ignore[arg-type]
        threads=threads or cores(),
    )


def _label(setup: Setup, paths: tuple[str, ...], views: tuple[str, ...], quick: bool) -> str:
    """What sets a bench apart from the full one; empty for the full one, whose files are committed."""
    if quick:
        return "quick"
    asked = (setup.model, setup.batch, setup.size, setup.kernels)
    known = {(): "", catalog.TODAY: "formats"}
    full = paths in known and not views and asked == (catalog.MODEL, catalog.BATCH, catalog.SIZE, "auto")
    return known[paths] if full and setup.repeats >= catalog.REPEATS else "custom"
