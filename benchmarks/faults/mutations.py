"""Mutation trial: files of run folders are changed, and nothing may show another number or crash.

    python benchmarks/faults/mutations.py [--cases 1000] [--seed 0]

A case changes one file of a store that holds a finished run, another finished run and an interrupted one: some bytes,
a digit, a stretch taken out, doubled or set to zero, the end cut off, the whole file emptied, deleted, or exchanged for
the same file of another run. Then the commands that read runs are given. Each must end without a traceback, with the
numbers of before or with a line that names the run as damaged; no number may appear that was not there before. Last,
the run's own command is given: it must end with a line that says what is wrong, or with the weights and the ledger of
before.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trial
from moments import Moment, attempt
from trial import RECIPE, Ended, FaultTrial, Found, here, run_args, warm

METHODS: Final = ("static8", "fractrain", "sbm")  # two finished runs, and one that is interrupted
SAME: Final = ("weights_sha256", "ledger_sha256", "test_accuracy_last", "test_accuracy_best", "train_loss", "cost")
TABLE: Final = """
name = "faults"
version = 1
title = "Faults"
caption = "Three rows."
source = "a trial"
published_table = "none"

[profiles.smoke]
seeds = 1
datasets = {{ cifar10 = "few_digits" }}
recipe = {{ {recipe} }}

[[pairs]]
model = "resnet8"
dataset = "cifar10"
model_label = "ResNet-8"
dataset_label = "few digits"
{rows}
"""


def table_file(folder: Path) -> Path:
    """A table of the three runs."""
    from fractrain.engine.config import collect_sets

    rows = []
    for method in METHODS:
        settings = collect_sets([f"{key}={value}" for key, value in trial.SETTINGS.get(method, {}).items()])[0]
        inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
        rows.append(f'\n[[rows]]\nkey = "{method}"\nlabel = "{method}"\nmethod = "{method}"\nprecision = "-"\n'
                    f"settings = {{ {inline} }}\n")  # fmt: skip
    recipe = ", ".join(f"{k} = {f'[{v}]' if ',' in v else v}" for k, v in RECIPE.items())
    path = folder / "faults.toml"
    path.write_text(TABLE.format(recipe=recipe, rows="".join(rows)))
    return path


class Mutations:
    """The trial."""

    def __init__(self) -> None:
        self._folder = Path()
        self._runs: dict[str, str] = {}
        self._ends: dict[str, dict[str, Any]] = {}
        self._before: dict[str, Ended] = {}

    def setup(self, folder: Path) -> None:
        """Make the runs, and note what every command says of them."""
        warm(METHODS, folder / "warm")
        self._folder = folder
        self._place = folder.parent / "store"  # every case's store lies here, so that what is said is the same
        self._table = table_file(folder)
        for method in METHODS:
            ended, _ = attempt(run_args(method, folder / "whole"), 0.0)
            assert ended.code == 0, ended.err
            self._ends[method] = json.loads(ended.out)
            self._runs[method] = self._ends[method]["run_id"]
        cut = METHODS[-1]
        for method in METHODS[:-1]:
            shutil.copytree(folder / "whole" / self._runs[method], folder / "store" / self._runs[method])
        attempt(run_args(cut, folder / "store"), 0.0, Moment("step", 5, 0.0), waits=True)
        self._restore()
        _no_wandb()
        self._before = {name: here(args) for name, args in self._commands().items()}
        for name, ended in self._before.items():
            assert not ended.fault((0,)), (name, ended)

    def _restore(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._folder / "store", self._place)

    def _commands(self, run: str = "") -> dict[str, list[str]]:
        """What reads runs; ``run``: the one that is damaged."""
        one, two, _ = (self._runs[method] for method in METHODS)
        store = ["--results", str(self._place)]
        return {
            "table": ["table", str(self._table), *store],
            "table csv": ["table", str(self._table), "--format", "csv", *store],
            "diff": ["diff", one, two, *store],
            "compare": ["compare", one, two, *store],
            "show": ["show", run or one, *store],
            "cost": ["cost", run or one, *store],
            "list": ["list", "runs", *store],
            "verify-runs": ["verify-runs", *store],
            "publish": ["publish", "--mode", "offline", "--no-tables", *store],
            "report": ["report", "--out", str(self._folder / "page"), *store],
        }

    def case(self, rng: random.Random, number: int, folder: Path) -> Found:
        """Change a file, read, and go on with the run."""
        self._restore()
        method = rng.choice(METHODS)
        run = self._runs[method]
        files = sorted(path for path in (self._place / run).iterdir() if not path.name.startswith("."))
        path = rng.choice(files)
        what = rng.choice(list(CHANGES))
        unchanged = not CHANGES[what](rng, path, self._folder / "whole")
        outcomes: Counter[str] = Counter()
        readers = self._commands(run)
        for name in rng.sample(sorted(readers), 2):
            outcome = self._judge(name, here(readers[name]), run, readers[name])
            if outcome.startswith("fault: "):
                return {"fault": f"{path.name} of {method}, {what}; {name}: {outcome[7:]}", "kind": what}
            outcomes[outcome] += 1
        ended = here(run_args(method, self._place))
        fault = ended.fault((0, 1, 2))
        if not fault and ended.code == 0:
            end = json.loads(ended.out)
            fault = "; ".join(f"{key} is another one" for key in SAME if end.get(key) != self._ends[method].get(key))
        outcomes["run: same bits" if ended.code == 0 else "run: refused in one line"] += 1
        fault = f"{path.name} of {method}, {what}; run: {fault}" if fault else ""
        return {"fault": fault, "kind": f"{what}{' (of no effect)' * unchanged}", "outcome": dict(outcomes)}

    def _judge(self, name: str, ended: Ended, run: str, args: list[str]) -> str:
        """What a command made of a record that was changed."""
        if fault := ended.fault((0, 1, 2)):
            return f"fault: {fault}"
        if name in ("show", "cost") and args[1] != self._runs[METHODS[0]]:
            return f"{name}: one line" if ended.code else f"{name}: shown"
        if name == "report":
            return self._judge_page(run)
        before = self._before[name]
        out, was = (_results(name, one.out) for one in (ended, before))
        if (ended.code, out) == (before.code, was):
            return f"{name}: as before"
        if new := numbers(out) - numbers(was):
            return f"fault: numbers that were not there before: {sorted(new)[:4]}"
        told = ended.out + ended.err
        if ended.code == 0 and not re.search("damaged|differs|unfinished|unverified|not run|missing|running", told):
            return f"fault: says something else, but not why: {told[-200:]}"
        return f"{name}: named as damaged"

    def _judge_page(self, run: str) -> str:
        """What the report page says of a record."""
        from fractrain.engine.store import RunStore

        record = RunStore(self._place).get(run)
        page = (self._folder / "page/index.html").read_text()
        if record is None or record.status != "damaged":
            return "report: as before"
        return "report: named as damaged" if "damaged" in page else f"fault: the page does not say: {record.message}"


def _results(name: str, out: str) -> str:
    """What a command says but for the machine and the files, which are no results."""
    if name == "diff":
        out = re.sub(r"(?ms)^environment:.*?(?=^result)", "", out)
        return re.sub(r"(?m)^(.* -> -| *\S+ +- -> .*)$", "", out)  # said of the whole one alone
    if name.startswith("table"):  # the note on a damaged record quotes what is wrong in it
        out = re.sub(r"(?m)^.*: record damaged: .*$", "", out)
    return re.sub(r"(?m)^(folder|made on).*$", "", out) if name == "show" else out


def numbers(text: str) -> set[str]:
    """All decimal numbers in what is said about results (not in sizes and digests)."""
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text))


def _no_wandb() -> None:
    """What would be sent is printed instead."""
    from fractrain.publish import publish, wandb

    def send(self: Any, payload: Any, first: int = 0) -> Any:
        values = (payload.id, payload.config, payload.history, payload.summary)
        print("SENT", json.dumps(values, sort_keys=True, default=str))
        return wandb.Sent("here", 0, False)

    publish.WandbTracker.send = send  # type: ignore[method-assign]


# -- changes: each returns whether the file is another one now ---------------------------------------------------------


def _bytes(rng: random.Random, path: Path, whole: Path) -> bool:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 4, 50))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return _written(path, bytes(content))


def _digit(rng: random.Random, path: Path, whole: Path) -> bool:
    content = bytearray(path.read_bytes())
    places = [at for at, one in enumerate(content) if 48 <= one < 58]
    content[rng.choice(places)] = rng.randrange(48, 58)
    return _written(path, bytes(content))


def _stretch(edit: Callable[[bytes], bytes]) -> Callable[[random.Random, Path, Path], bool]:
    def change(rng: random.Random, path: Path, whole: Path) -> bool:
        content = path.read_bytes()
        a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        return _written(path, content[:a] + edit(content[a:b]) + content[b:])

    return change


def _line(rng: random.Random, path: Path, whole: Path) -> bool:
    lines = path.read_bytes().splitlines(keepends=True)
    lines.pop(rng.randrange(len(lines)))
    return _written(path, b"".join(lines))


def _cut(rng: random.Random, path: Path, whole: Path) -> bool:
    content = path.read_bytes()
    return _written(path, content[: rng.randrange(len(content) + 1)])


def _value(rng: random.Random, path: Path, whole: Path) -> bool:
    """Another type, or a number beyond any sense, in the place of a number."""
    text = path.read_bytes()
    found = list(re.finditer(rb"-?\d+(\.\d+)?", text))
    place = rng.choice(found)
    new = rng.choice((b"null", b'"x"', b"[]", b"{}", b"-1", b"1e999", b"NaN", b"9" * 400, b"true", b"0"))
    return _written(path, text[: place.start()] + new + text[place.end() :])


def _empty(rng: random.Random, path: Path, whole: Path) -> bool:
    return _written(path, b"")


def _delete(rng: random.Random, path: Path, whole: Path) -> bool:
    path.unlink()
    return True


def _of_another(rng: random.Random, path: Path, whole: Path) -> bool:
    other = rng.choice([folder for folder in sorted(whole.iterdir()) if folder.name != path.parent.name])
    source = other / path.name
    return _written(path, source.read_bytes() if source.exists() else b"{}")


def _written(path: Path, content: bytes) -> bool:
    changed = content != path.read_bytes()
    path.write_bytes(content)
    return changed


CHANGES: Final[dict[str, Callable[[random.Random, Path, Path], bool]]] = {
    "bytes": _bytes, "a digit": _digit, "another value": _value, "cut off": _cut, "a line taken out": _line,
    "a stretch taken out": _stretch(lambda part: b""), "a stretch doubled": _stretch(lambda part: part + part),
    "a stretch of zeros": _stretch(lambda part: bytes(len(part))), "emptied": _empty, "deleted": _delete,
    "of another run": _of_another,
}  # fmt: skip

MUTATIONS = Mutations()
TRIAL = FaultTrial(
    name="mutations", title="Files of run folders changed at random, then everything that reads runs, then the run's "
    "own command: what was changed, and what became of it.", cases=1000, unit="changed files",
    case=MUTATIONS.case, setup=MUTATIONS.setup, together=50,
)  # fmt: skip

if __name__ == "__main__":
    trial.main(TRIAL, __doc__ or "")
