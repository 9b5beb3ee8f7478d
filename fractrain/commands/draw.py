"""``fractrain draw``: how single runs learn and how their precision moves, as figures for a page or a paper."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fractrain.commands.common import NearestChoice, choice_option, options, results_option, stdout_to_stderr
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:
    from fractrain.report.charts import Drawing
    from fractrain.report.page_detail import Detail


@click.command("draw", short_help="Draw learning curves or the precision of runs.")
@options(
    click.argument("what", type=NearestChoice(("curves", "precision"))),
    click.argument("runs", nargs=-1, required=True, metavar="RUN..."),
    choice_option("--format", "form", of=("svg", "png", "pdf"), default="svg"),
    choice_option(
        "--style", "look", of=("page", "paper"), default="page",
        help="paper: as wide as a column of a paper; a reduced profile is named in the corner.",
    ),
    choice_option(
        "--over", of=("step", "cost"), default="step",
        help="Of curves: training steps, or effective MACs of the whole model.",
    ),
    results_option,
)  # fmt: skip
def draw_command(what: str, runs: tuple[str, ...], form: str, look: str, over: str, results: Path) -> None:
    """Draw finished runs of the run store into the standard output: `fractrain draw curves RUN... > curves.svg`.

    curves: test accuracy or perplexity of each RUN. precision: of one RUN, mean widths over training with its stages,
    maps of the widths by part of the model, and what each part chose.
    """
    from fractrain.engine.length import length_text
    from fractrain.report import charts

    with stdout_to_stderr(), charts.style(page=False):
        found = _details(results, runs)
        drawn = _curves(found, over, look) if what == "curves" else _precision(found, look)
        profiles = list(dict.fromkeys(length_text(d.entry.profile) for d in found if d.entry.profile != "paper"))
        content = drawn.file(form, found[0].task if look == "page" and len(profiles) < 2 else ", ".join(profiles))
    if form != "svg" and sys.stdout.isatty():
        raise ConfigError(f"{form} is no text: send it into a file, for example > figure.{form}")
    sys.stdout.buffer.write(content)


def _details(results: Path, runs: Sequence[str]) -> list[Detail]:
    """What is known of the runs; each is labelled by what it differs in from the others."""
    from fractrain.cost.hardware import create
    from fractrain.engine.index import RunEntry
    from fractrain.engine.store import RunStore
    from fractrain.report.evidence import require_finished
    from fractrain.report.page_detail import AT_BEST, look_into, run_label
    from fractrain.report.results import differing

    records = [RunStore(results).find(run) for run in runs]
    require_finished(records)
    entries = [RunEntry.from_record(record) for record in records]
    settings, hardware = differing(entries), create(AT_BEST)
    seeds = len({entry.seed for entry in entries}) > 1
    return [
        look_into(e, record, run_label(e.method, settings[e.group]) + (f", seed {e.seed}" if seeds else ""), hardware)
        for e, record in zip(entries, records, strict=True)
    ]


def _curves(found: Sequence[Detail], over: str, look: str) -> Drawing:
    from fractrain.report import charts
    from fractrain.report.page_detail import curve

    methods = sorted({d.entry.method for d in found})
    drawn = curve("curves", found[0].task, found, methods, over, charts.COLUMN if look == "paper" else charts.SIZE)
    if drawn is None:
        raise ConfigError("no curve: none of these runs was evaluated more than once")
    return drawn


def _precision(found: Sequence[Detail], look: str) -> Drawing:
    from fractrain.report import charts
    from fractrain.report.page_detail import width_curves

    if len(found) > 1:
        raise ConfigError(f"precision is drawn of one run, got {len(found)}")
    view = width_curves(found[0])
    if not view.panels:
        raise ConfigError(f"{found[0].entry.run_id}: its precision is constant, and the same in all parts")
    width = charts.COLUMN[0] - 1.0 if look == "paper" else charts.PANEL_WIDTH
    return charts.precision("precision", found[0].title, view, width)
