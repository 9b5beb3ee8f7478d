"""What the runs of a plan that are still to be done take on this machine: hours, and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from fractrain.commands.common import stdout_to_stderr
from fractrain.engine.config import RunConfig
from fractrain.engine.environment import cores
from fractrain.plan.calibrate import RunEstimate, run_trial
from fractrain.plan.cluster import Cluster, Makespan, simulate
from fractrain.plan.disk import DiskNeed, disk_need
from fractrain.plan.loading import Loading, measure_loading
from fractrain.plan.trials import Trials, try_all
from fractrain.report.grid import PlannedRun, pending_runs
from fractrain.util.console import log_line
from fractrain.util.device import resolve_device
from fractrain.util.errors import FractrainError
from fractrain.util.files import nearest_folder
from fractrain.util.progress import duration, make_progress

GENERATIONS: Final = 3  # of a checkpoint while a run lasts: the newest, the one before, the one being written
BUSY: Final = 0.5  # programs per core from which on a time on a CPU is said to be too long
_LONG_S: Final = 100 * 3600


@dataclass(frozen=True)
class DiskFolder:
    """A folder that is there, or will be: its disk, and bytes that are free on it."""

    folder: Path
    disk: int
    free: int

    @classmethod
    def at(cls, folder: Path) -> DiskFolder:
        """Look at the folder, or the nearest above it that is there."""
        there = nearest_folder(folder)
        return cls(folder, there.stat().st_dev, shutil.disk_usage(there).free)


@dataclass(frozen=True)
class Forecast:
    """What is still to be done takes.

    Attributes:
        configs: the runs that are still to be done, source runs first.
        trials: what each will take, and how that was found.
        loading: by data set that is read while training, how fast that goes, or why it is not known.
        needs: what the data sets take on disk.
        kind: ``GPU`` or ``CPU``.
        results, data: folders of the run store and of the data sets.
        load: programs per core that ran on this machine before; None where that cannot be told, or on a GPU.
        cluster: where all of it is simulated, or None.
    """

    configs: dict[str, RunConfig]
    trials: Trials
    loading: dict[str, Loading | str]
    needs: list[DiskNeed]
    kind: str
    results: DiskFolder
    data: DiskFolder
    load: float | None
    cluster: Cluster | None = None

    @property
    def makespan(self) -> Makespan | None:
        """All runs of which a time is known, on the cluster; None without one, or without runs."""
        seconds = [estimate.seconds for estimate in self._known]
        return simulate(seconds, self.cluster) if self.cluster and seconds else None

    @property
    def estimates(self) -> dict[str, RunEstimate | str]:
        """By run id, what it will take, or why that cannot be told."""
        return self.trials.estimates

    @property
    def _known(self) -> list[RunEstimate]:
        return [value for value in self.estimates.values() if isinstance(value, RunEstimate)]

    @property
    def kept_bytes(self) -> int:
        """Of checkpoints, when all is done: one of each run."""
        return sum(estimate.disk_bytes for estimate in self._known)

    @property
    def passing_bytes(self) -> int:
        """More than that for each run that lasts, at most."""
        return (GENERATIONS - 1) * max((estimate.disk_bytes for estimate in self._known), default=0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = self.makespan
        return {
            "totals": {
                "runs": len(self._known),
                "iterations": sum(estimate.iterations for estimate in self._known),
                "hours": sum(estimate.seconds for estimate in self._known) / 3600,
                "device": self.kind,
                "tried": self.trials.tried,
                "kinds": self.trials.kinds,
            },
            **({"cluster": {**asdict(self.cluster), **asdict(found)}} if self.cluster and found else {}),
            "loading": {
                name: {"error": found} if isinstance(found, str) else vars(found)
                for name, found in self.loading.items()
            },
            "disk": {
                "data": self.needs, "data_there_bytes": sum(need.there for need in self.needs),
                "data_to_come_bytes": sum(need.to_come for need in self.needs),
                "checkpoints_kept_bytes": self.kept_bytes, "checkpoints_passing_bytes_per_job": self.passing_bytes,
                "peak_to_come_bytes": self.peak_bytes, "free_results_bytes": self.results.free,
                "free_data_bytes": self.data.free,
            },
        }  # fmt: skip

    @property
    def peak_bytes(self) -> int:
        """Most that is written at any one time, one run at a time: data comes first, one set after the other."""
        come = sum(need.to_come for need in self.needs)
        return max(self.fetching_bytes, come + self.kept_bytes + self.passing_bytes)

    @property
    def fetching_bytes(self) -> int:
        """Most that is written at any one time while data sets are put in place, one after the other."""
        most, come = 0, 0
        for need in self.needs:
            most = max(most, come + need.to_come + need.passing)
            come += need.to_come
        return most

    @property
    def missing_bytes(self) -> dict[Path, int]:
        """By folder, bytes that are missing on its disk."""
        if self.results.disk == self.data.disk:
            wanted = [(self.data, self.peak_bytes)]
        else:
            wanted = [(self.data, self.fetching_bytes), (self.results, self.kept_bytes + self.passing_bytes)]
        return {place.folder: count - place.free for place, count in wanted if count > place.free}

    def lines(self) -> list[str]:
        """For people."""
        if not self.configs:
            return ["nothing left to run"]
        return [*self._time_lines(), *self._disk_lines()]

    def _time_lines(self) -> list[str]:
        """One line per model, data set and setting; how the times were found; the sum."""
        groups: dict[str, list[RunEstimate]] = {}
        for run_id, config in self.configs.items():
            value = self.estimates[run_id]
            if isinstance(value, RunEstimate):
                part = "" if config.setting == "standard" else f", {config.setting}"
                groups.setdefault(f"{config.model} on {config.dataset}{part}", []).append(value)
        width = max(map(len, groups), default=0)
        lines = ["", f"Time still needed on this machine ({self.kind}), one run at a time:"]
        lines.append(f"  {'':<{width}}  {'runs':>5}  {'iterations':>13}  {'time':>12}  one step")
        lines += [_group_line(name, group, width) for name, group in groups.items()]
        lines += [f"  {text}" for text in _scaled(self._known)]
        lines += [f"  {text}" for text in self._remarks()]
        unknown = len(self.configs) - len(self._known)
        if unknown:
            lines.append(f"  not in the sum: {unknown} runs of which no time can be told (see above)")
        every = self._known
        sources = sum(config.setting.endswith("-source") for config in self.configs.values())
        some = f" ({sources} of them source runs)" if sources else ""
        hours = sum(estimate.seconds for estimate in every) / 3600
        lines.append(
            f"  in all: {len(every)} runs{some}, {sum(e.iterations for e in every):,} iterations, "
            f"{hours:,.1f} {self.kind}-hours"
        )
        if self.cluster and (found := self.makespan):
            lines.append(f"  simulated {found.line(self.cluster)}; each as fast as this {self.kind}")
        return lines

    def _remarks(self) -> list[str]:
        """How the times were found, and what to make of them."""
        tried = f"tried {self.trials.tried} of {self.trials.kinds} kinds of run"
        if self.trials.tried < self.trials.kinds:
            tried += "; the others do the same on the same network, at other lengths, classes or settings"
        remarks = [tried]
        for name, found in self.loading.items():
            if isinstance(found, str):
                remarks.append(f"{name}: reading not measured: {found}")
                continue
            what = "MADE UP: " if found.synthetic else "read from "
            rate = f"{found.images_per_s:,.0f} images/s by {found.workers} worker{'s' * (found.workers != 1)}"
            remarks.append(f"{name}: loading {rate}, {what}{found.source}")
        if self.load is not None and self.load > BUSY:
            remarks.append(f"NOTE: other programs use this machine ({self.load:.1f} per core): times are too long")
        return remarks

    def _disk_lines(self) -> list[str]:
        width = max((len(need.name) for need in self.needs), default=0)
        lines = ["", "Disk:"]
        for need in self.needs:
            lines.append(f"  {need.name:<{width}}  {_need_text(need)}")
        kept = f"  checkpoints: {size(self.kept_bytes)} to come and kept, the last one of each run"
        lines.append(f"{kept}; {size(self.passing_bytes)} more for each run at a time")
        there, come = (sum(getattr(need, key) for need in self.needs) for key in ("there", "to_come"))
        lines.append(
            f"  in all: {size(there)} already there, {size(come + self.kept_bytes)} to come, at most "
            f"{size(self.peak_bytes)} at any one time"
        )
        places = dict.fromkeys((self.results, self.data))
        lines.append("  free now: " + ", ".join(f"{size(place.free)} in {place.folder}" for place in places))
        return lines + [
            f"  NOTE: {size(count)} too little for {folder}" for folder, count in self.missing_bytes.items()
        ]


def make_forecast(
    runs: Sequence[PlannedRun], device: str, data_dir: Path | None, results: Path, cluster: Cluster | None = None
) -> Forecast:
    """Look for the data, measure the loading, try each kind of run.

    Args:
        device: as given on the command line.
        data_dir: folder of the data sets, or None.
        cluster: where the runs are simulated, or None.

    Raises:
        MachineError: no such device.
    """
    from fractrain.data.places import root_of

    where = resolve_device(device)
    load = os.getloadavg()[0] / cores() if where.type == "cpu" and hasattr(os, "getloadavg") else None
    configs = pending_runs(runs)
    names = list(dict.fromkeys(config.dataset for config in configs.values()))
    with stdout_to_stderr():
        needs = [disk_need(name, data_dir) for name in names]
        loading = _loading(names, where, data_dir)
        trials = _trials(list(configs.values()), where, loading)
    kind = "GPU" if where.type == "cuda" else "CPU"
    return Forecast(
        configs, trials, loading, needs, kind, DiskFolder.at(results), DiskFolder.at(root_of(data_dir)), load, cluster
    )


def _loading(names: Iterable[str], device: Any, data_dir: Path | None) -> dict[str, Loading | str]:
    found: dict[str, Loading | str] = {}
    for name in names:
        try:
            rate = measure_loading(name, device, data_dir)
        except FractrainError as error:  # a run would stop at it too
            rate = str(error)
        if rate is not None:
            found[name] = rate
    return found


def _trials(configs: Sequence[RunConfig], device: Any, loading: dict[str, Loading | str]) -> Trials:
    rates = {name: found.images_per_s for name, found in loading.items() if isinstance(found, Loading)}
    progress = make_progress()
    started = False

    def done(behind: int, total: int) -> None:
        nonlocal started
        if not started and total:
            progress.start("trying a few steps", total)
            started = True
        progress.update(behind)

    try:
        return try_all(configs, partial(run_trial, device=device), rates, done, log_line)
    finally:
        progress.close()


def _group_line(name: str, group: Sequence[RunEstimate], width: int) -> str:
    """Runs, iterations, time and pace of one model on one data set."""
    seconds = sum(estimate.seconds for estimate in group)
    time = f"{seconds / 3600:,.0f} h" if seconds > _LONG_S else duration(seconds)
    text = (
        f"  {name:<{width}}  {len(group):>5}  {sum(e.iterations for e in group):>13,}  {time:>12}  "
        f"{_span([e.step_s for e in group])}"
    )
    read = [estimate for estimate in group if estimate.load_s]
    if not read:
        return text
    late = sum(estimate.bound == "loading" for estimate in read)
    slower = "loading" if late == len(read) else f"loading in {late} of {len(read)} runs" if late else "the step"
    return f"{text}, loading {_span([e.load_s for e in read])}; slower: {slower}"


def _scaled(group: Iterable[RunEstimate]) -> list[str]:
    """What was tried with fewer samples than a step has."""
    pairs = dict.fromkeys((e.trial_batch, e.batch) for e in group if e.trial_batch != e.batch)
    return [f"tried with {tried} of {batch} samples a step and scaled up" for tried, batch in pairs]


def _need_text(need: DiskNeed) -> str:
    if need.ready or need.there:
        text = f"{size(need.there)} already there ({need.where})" if need.there else f"nothing needed ({need.where})"
        if need.to_come:
            text += f", {size(need.to_come)} to come"
    else:
        text = f"{size(need.to_come)} to come (not in {need.where})"
    if need.passing:
        text += f"; {size(need.passing)} more while its archive is unpacked"
    return f"{text}; {need.note}" if need.note else text


def size(count: float) -> str:
    """Return bytes as ``170 MB`` or ``154.6 GB``."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.{1 if unit == 1e9 else 0}f} {name}"
    return f"{count / 1e3:,.0f} kB"


def _span(seconds: Sequence[float]) -> str:
    low, high = min(seconds), max(seconds)
    return f"{low:.3g} s" if high < 1.05 * low else f"{low:.3g} to {high:.3g} s"
