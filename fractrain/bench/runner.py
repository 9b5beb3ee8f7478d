"""A whole bench: one path after the other, then the views, with the time left on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fractrain.bench.catalog import PathInfo, info
from fractrain.bench.measure import MEASURES, rounds
from fractrain.bench.subject import Setup
from fractrain.bench.timing import Measurement, threads
from fractrain.bench.view import View, view
from fractrain.util.progress import Progress

VIEW_TICKS = 2


@dataclass(frozen=True)
class Found:
    """Results in the order asked for."""

    paths: list[tuple[PathInfo, Measurement]]
    views: list[View]


def run(setup: Setup, paths: Sequence[str], views: Sequence[str], progress: Progress) -> Found:
    """Measure.

    Args:
        setup: of all of them.
        paths: names of the catalog.
        views: registry names of the methods whose step is taken apart.
        progress: told about every round.

    Raises:
        FractrainError: a model or method that there is not, or that does not fit.
    """
    found = Found([], [])
    done, label = 0, ""

    def tick() -> None:
        nonlocal done
        done += 1
        progress.update(done, label=label)

    with threads(setup.threads):
        progress.start("bench", sum(rounds(p, setup.repeats) for p in paths) + VIEW_TICKS * len(views))
        try:
            for name in paths:
                label, before = name, done
                progress.update(done, label=label)
                found.paths.append((info(name), MEASURES[name](setup, tick)))
                done = before + rounds(name, setup.repeats)  # also where there was nothing to measure
            for method in views:
                label = f"where the time of {method} goes"
                found.views.append(view(setup, method, tick))
        finally:
            progress.close()
    return found
