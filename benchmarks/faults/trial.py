"""What the fault trials share: commands in forked processes, a journal to go on from, progress, and the records.

A trial is a list of cases. Each is drawn from the seed and its number alone, so that a trial that was stopped goes on
where it was, and one case can be done again. What a case found is a line of the journal; the record of a trial
(``results/faults/NAME.json``) is what its lines add up to.

torch and fractrain are imported once, kernels are compiled once: every command runs in a fork of this process.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import os
import platform
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
PLUGINS: Final = (HERE / "resnet8.py", HERE / "few_digits.py")
PRELOADED: Final = (
    "torch._dynamo", "sklearn.datasets", "pandas", "fractrain.cli", "fractrain.engine.trainer",
    "fractrain.kernels.cpu.quantize", "fractrain.report.output", "fractrain.publish.publish", "fractrain.plan.loading",
)  # fmt: skip
QUICK: Final = {"window": "2", "epsilon": "10", "scale_epochs": "1"}  # stages move within a few steps
SETTINGS: Final = {"pfq": QUICK, "fractrain": QUICK}
RECIPE: Final = {
    "iterations": "6", "batch_size": "24", "eval_every": "3", "val_fraction": "0.25", "milestones": "4,5",
}  # fmt: skip
MEMORY_BYTES: Final = 12 << 30  # of address space: a command that wants more is at fault
HANG_S: Final = 300.0
CRASHED: Final = 70  # the exit code of what no command line ends with

sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")  # before torch: threads do not live on in a fork
os.environ["NUMBA_THREADING_LAYER"] = "workqueue"  # GNU OpenMP refuses to

Found = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code, or minus the signal that killed it.
        out, err: what it wrote.
        hung: it was killed because it did not end.
    """

    code: int
    out: str
    err: str
    hung: bool = False

    def fault(self, codes: Sequence[int] = (0, 1, 2, 130)) -> str:
        """What is wrong with how it ended, in a line; empty if nothing is."""
        text = self.out + self.err
        last = " | ".join(self.err.strip().splitlines()[-2:])[-300:]
        if self.hung:
            return f"hangs: {last}"
        if "Traceback (most recent call last)" in text:
            return f"traceback: {last}"
        if self.code not in codes:
            return f"ends with {self.code}: {last}"
        if self.code == 2 and len(errors := error_lines(self.err)) != 1:
            return f"{len(errors)} error lines with exit code 2: {last}"
        if self.code == 1 and not self.err.strip() and not self.out.strip():
            return "ends with 1 and no word"
        return ""


def error_lines(text: str) -> list[str]:
    """The lines that the command line writes for errors."""
    return [line for line in text.splitlines() if line.startswith("fractrain: error: ")]


def run_args(method: str, store: Path, *more: str) -> list[str]:
    """The command that trains the small model on few digits."""
    sets = {**SETTINGS.get(method, {}), **{f"recipe.{key}": value for key, value in RECIPE.items()}}
    chosen = [text for key, value in sets.items() for text in ("--set", f"{key}={value}")]
    return ["run", "--method", method, "--model", "resnet8", "--dataset", "few_digits", "--device", "cpu",
            "--results", str(store), "--json", *chosen, *more]  # fmt: skip


# -- commands in forks -------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Make this process the one that all commands are forked from: quiet, offline, everything imported."""
    offline = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    os.environ.update(offline, WANDB_MODE="offline", HF_HUB_OFFLINE="1", COLUMNS="200", TMPDIR=str(folder))
    os.environ["FRACTRAIN_PLUGINS"] = os.pathsep.join(map(str, PLUGINS))
    for name in ("FRACTRAIN_DATA", "FRACTRAIN_DEBUG", "FRACTRAIN_RESULTS"):
        os.environ.pop(name, None)
    for name in PRELOADED:
        importlib.import_module(name)
    import functools

    from fractrain.engine import environment

    environment.packages = functools.cache(environment.packages)  # half a second of each attempt, and never another
    os.chdir(folder)


def here(args: Sequence[str], limit_s: float = HANG_S) -> Ended:
    """Run the command line in this process.

    Args:
        args: of the command.
        limit_s: after so long it is interrupted as Ctrl-C does.
    """
    from fractrain.cli import main

    code, kept = CRASHED, (sys.stdout, sys.stderr, logging.lastResort)
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")
    )  # as Python opens them
    sys.stdout, sys.stderr = out, err
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        main(list(args))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else CRASHED
    except BaseException:
        traceback.print_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout, sys.stderr, logging.lastResort = kept
    texts = [text.buffer.getvalue().decode(errors="replace") for text in (out, err) if not text.flush()]  # type: ignore[attr-defined]
    return Ended(code, *texts)


class Child:
    """A fork of this process in which the command line runs.

    Args:
        args: of the command.
        before: called in the fork before the command.
    """

    def __init__(self, args: Sequence[str], before: Callable[[], None] = lambda: None) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  # closed by result
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._work(args, before)

    def _work(self, args: Sequence[str], before: Callable[[], None]) -> None:
        code = CRASHED
        try:
            for number, file in enumerate(self._files, start=1):
                os.dup2(file.fileno(), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, m) for n, m in ((0, "r"), (1, "w"), (2, "w")))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            from fractrain.cli import main

            before()
            main(list(args))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else CRASHED
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)

    def ended(self) -> bool:
        """Whether it has; never waits."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def kill(self, hung: bool = False) -> Ended:
        """SIGKILL, and how it ended."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
        return self.result(hung)

    def result(self, hung: bool = False) -> Ended:
        """Wait for the end."""
        if self._status is None:
            _, self._status = os.waitpid(self.pid, 0)
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Ended(os.waitstatus_to_exitcode(self._status), texts[0], texts[1], hung)


def warm(methods: Sequence[str], folder: Path) -> None:
    """Train each method here once: what is compiled and loaded now is there in every fork."""
    from fractrain.commands.choose import chosen_config
    from fractrain.engine.site import Site
    from fractrain.engine.trainer import Trainer

    for method in methods:
        args = run_args(method, folder)
        sets = [args[at + 1] for at, text in enumerate(args) if text == "--set"]
        config = chosen_config(method=method, model="resnet8", dataset="few_digits", sets=sets)
        Trainer(config, Site(folder, "cpu"), fresh=True).run()


# -- trials ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Of a trial's command: how many cases (or what ``weight`` counts), which seed, and where everything goes."""

    cases: int
    seed: int
    out: Path
    work: Path
    again: bool


@dataclass(frozen=True)
class FaultTrial:
    """A kind of fault.

    Attributes:
        name: of its record.
        title: what was tried, for people.
        cases: how many a full trial has.
        unit: what they are called.
        case: does one: its random numbers, its number and an empty folder; returns what it found, as plain values.
            ``fault`` is empty or says in a line what is wrong; ``weight`` is how much it counts (1); ``kind`` and
            ``outcome`` are added up.
        setup: called once, with a folder that lasts.
        together: so many cases are done one after the other in a fork; 0: in this process, and they fork themselves.
    """

    name: str
    title: str
    cases: int
    unit: str
    case: Callable[[random.Random, int, Path], Found]
    setup: Callable[[Path], None]
    together: int = 0


def main(trial: FaultTrial, description: str) -> None:
    """The command of a trial; exit code 1 where it found a fault."""
    options = _options(trial, description)
    options.work.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="fractrain-faults-")).resolve()
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        found = _all_cases(trial, options, scratch)
    except KeyboardInterrupt:
        found = list(_read_journal(_journal(trial, options), again=False).values())
        print(f"{trial.name}: stopped; the same command goes on", file=sys.stderr)
    finally:
        os.chdir("/")
        shutil.rmtree(scratch, ignore_errors=True)
    faults = [one for one in found if one["fault"]]
    write_record(trial, options, found, time.monotonic() - began)
    print(f"{_weight(found)} {trial.unit}, {len(faults)} faults", file=sys.stderr)
    for one in faults[:20]:
        print(f"  case {one['case']}: {one['fault']}", file=sys.stderr)
    sys.exit(1 if faults else 0)


def _options(trial: FaultTrial, description: str) -> Options:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=trial.cases, help=f"{trial.unit} [default: %(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results/faults", help="records [default: results/faults]")
    parser.add_argument("--work", type=Path, default=ROOT / "build/faults", help="journals [default: build/faults]")
    parser.add_argument("--again", action="store_true", help="do the cases again that found a fault")
    given = parser.parse_args()
    return Options(given.cases, given.seed, given.out.absolute(), given.work.absolute(), given.again)


def _all_cases(trial: FaultTrial, options: Options, scratch: Path) -> list[Found]:
    """Do what the journal lacks."""
    from fractrain.util.progress import duration

    journal = _journal(trial, options)
    found = _read_journal(journal, options.again)
    before, began, told = _weight(found), time.monotonic(), 0.0
    if before < options.cases:
        prepare(scratch)
        (scratch / "lasting").mkdir()
        trial.setup(scratch / "lasting")
    with journal.open("a", encoding="utf-8") as stream:
        while (done := _weight(found)) < options.cases:
            wanted = [n for n in range(len(found) + max(1, trial.together)) if n not in found]
            numbers = wanted[: min(max(1, trial.together), options.cases - done)]
            for one in _in_fork(trial, options.seed, numbers, scratch) if trial.together else (
                _case(trial, options.seed, number, scratch) for number in numbers
            ):  # fmt: skip
                found[one["case"]] = one
                stream.write(json.dumps(one) + "\n")
                stream.flush()
                took, done = time.monotonic() - began, _weight(found)
                if took - told > 10 and done > before:
                    told = took
                    left = duration(took / (done - before) * max(0, options.cases - done))
                    bad = sum(bool(one["fault"]) for one in found.values())
                    print(f"{trial.name}: {done}/{options.cases}, {bad} faults, {left} left", file=sys.stderr)
    return [found[key] for key in sorted(found)]


def _case(trial: FaultTrial, seed: int, number: int, scratch: Path) -> Found:
    folder = scratch / f"case-{number}"
    folder.mkdir()
    try:
        found = trial.case(random.Random(f"{seed}/{trial.name}/{number}"), number, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"case": number, "fault": "", **found}


def _in_fork(trial: FaultTrial, seed: int, numbers: Sequence[int], scratch: Path) -> Iterator[Found]:
    """Do cases in a fork; one in which the fork dies, or says nothing for long, is at fault, and the last of them."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            with os.fdopen(writer, "w") as stream:
                for number in numbers:
                    stream.write(json.dumps(_case(trial, seed, number, scratch)) + "\n")
                    stream.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(CRASHED)
    os.close(writer)
    waiting, told, hung = list(numbers), b"", False
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while waiting:
            hung = not select.select([pipe], [], [], 2 * HANG_S)[0]
            part = b"" if hung else pipe.read(1 << 16)
            if hung:
                os.kill(child, signal.SIGKILL)
            if not part:
                break
            *lines, told = (told + part).split(b"\n")
            for line in lines:
                yield json.loads(line)
                waiting.pop(0)
    _, status = os.waitpid(child, 0)
    if waiting:
        how = "hangs" if hung else f"ends the process ({os.waitstatus_to_exitcode(status)})"
        yield {"case": waiting[0], "fault": how, "kind": "the process"}


def _journal(trial: FaultTrial, options: Options) -> Path:
    return options.work / f"{trial.name}-{options.seed}.jsonl"


def _read_journal(path: Path, again: bool) -> dict[int, Found]:
    """Cases done before, by number; a line cut off is not there. ``again`` leaves out, and takes out, faults."""
    lines: list[Found] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    kept = {one["case"]: one for one in lines if not (again and one["fault"])}
    path.write_text("".join(json.dumps(one) + "\n" for one in kept.values()))
    return kept


def _weight(found: Sequence[Found] | dict[int, Found]) -> int:
    values = found.values() if isinstance(found, dict) else found
    return sum(one.get("weight", 1) for one in values)


# -- records -----------------------------------------------------------------------------------------------------------


def write_record(trial: FaultTrial, options: Options, found: Sequence[Found], seconds: float) -> None:
    """Write ``NAME.json`` and, from all records that are there, ``README.md``."""
    import torch

    import fractrain

    tallies = {key: _tally(found, key) for key in ("kind", "outcome") if any(key in one for one in found)}
    faults = [{"case": one["case"], "fault": one["fault"]} for one in found if one["fault"]]
    record = {
        "trial": trial.name, "title": trial.title, "unit": trial.unit, "seed": options.seed, "cases": len(found),
        "count": _weight(found), "faults": faults, "by": tallies, "seconds_of_last_start": round(seconds),
        "versions": {"fractrain": fractrain.__version__, "torch": torch.__version__,
                     "python": platform.python_version()},
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{trial.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    records = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
    (options.out / "README.md").write_text(page(records))


def _tally(found: Sequence[Found], key: str) -> dict[str, int]:
    """How often each value came; a case may hold several, with a number each."""
    total: Counter[str] = Counter()
    for one in found:
        value = one.get(key, {})
        total.update(value if isinstance(value, dict) else {value: 1})
    return dict(sorted(total.items()))


def page(records: Sequence[dict[str, Any]]) -> str:
    """The records as Markdown."""
    lines = ["# Fault trials", "", "Written by `benchmarks/faults/`; what they promise is in "
             "[docs/reliability.md](../../docs/reliability.md).", ""]  # fmt: skip
    for record in records:
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        lines += [
            f"## {record['trial']}", "", record["title"], "",
            f"**{record['count']} {record['unit']}, {len(record['faults'])} faults** (seed {record['seed']}; "
            f"{versions}).", "",
        ]  # fmt: skip
        for title, tally in record["by"].items():
            lines += [f"| {title} | number |", "|---|---:|", *(f"| {k} | {v} |" for k, v in tally.items()), ""]
        lines += [f"- case {one['case']}: {_escaped(one['fault'])}" for one in record["faults"]]
        lines += [""] * bool(record["faults"])
    return "\n".join(lines).rstrip("\n") + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([|<>`*_\[\]])", r"\\\1", text)
