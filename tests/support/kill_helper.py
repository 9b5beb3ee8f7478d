"""``kill -9`` at random moments: train a config once in peace and once killed again and again, and hand back both.

The fixture ``kill_server`` is one process for all tests of a file: it imports once, and each attempt is a fork of it
that is killed with SIGKILL when a random step has been reached. Run as a program, this file is that process.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


class KillServer:
    """The process, as tests see it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def killed_and_straight(
        self,
        config: Any,
        folder: Path,
        kills: int = 5,
        seed: int = 0,
        registries: str = "fractrain.engine.registries:Registries",
        checkpoint_seconds: Sequence[float] = (0.0, 0.02),
    ) -> tuple[dict[str, Any], dict[str, Any], int]:
        """Return (summary of the killed run, of the uninterrupted run, how often it was really killed).

        Args:
            config: a RunConfig.
            folder: where the two stores are made: ``folder/killed`` and ``folder/straight``.
            kills: how often to kill; each moment is drawn with ``seed`` from a part of the run, first to last.
            seed: seed of the moments.
            registries: ``module:class`` of the registries to use; the module is looked for beside this file, too.
            checkpoint_seconds: taken in turn by the attempts; 0 writes a checkpoint after every step, so that many
                kills hit the writing itself, more leaves steps to be done again.
        """
        job = {
            "config": config.to_json(), "folder": str(folder), "kills": kills, "seed": seed, "registries": registries,
            "checkpoint_seconds": list(checkpoint_seconds),
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process of killed runs has ended"
        result = json.loads(answer)
        assert "error" not in result, result["error"]
        return result["killed"], result["straight"], result["kills"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def kill_server() -> Iterator[KillServer]:
    """One process for all tests of a file."""
    server = KillServer()
    yield server
    server.close()


class PipeProgress:
    """Writes the step to a pipe and waits for the reader's answer, so that no run outruns its killer."""

    def __init__(self, pipe: int, answers: int) -> None:
        self.pipe, self.answers = pipe, answers

    def _tell(self, step: int) -> None:
        os.write(self.pipe, step.to_bytes(4))
        os.read(self.answers, 1)

    def start(self, label: str, total: int, done: int = 0) -> None:
        self._tell(done)

    def update(self, done: int, loss: float | None = None, label: str | None = None) -> None:
        self._tell(done)

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def _attempt(job: dict[str, Any], store: Path, kill_after: int | None, delay: float, number: int = 0) -> bool:
    """Train in a fork; kill it ``delay`` seconds after it has reported step ``kill_after``; return whether it was.

    The run waits for an answer to each report: it is at most one step further when it is killed, however slow we are.
    """
    from fractrain.engine.config import RunConfig
    from fractrain.engine.site import Site
    from fractrain.engine.trainer import Trainer

    reader, writer = os.pipe()
    answers, answer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            os.close(answer)
            module, _, name = job["registries"].partition(":")
            registries = getattr(importlib.import_module(module), name)()
            config = RunConfig.from_json(job["config"], "test")
            Trainer(
                config,
                Site(
                    store, "cpu", checkpoint_seconds=job["checkpoint_seconds"][number % len(job["checkpoint_seconds"])]
                ),
                PipeProgress(writer, answers),
                registries=registries,
            ).run()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(writer)
    os.close(answers)
    while step := os.read(reader, 4):
        os.write(answer, b".")
        if kill_after is not None and int.from_bytes(step) >= kill_after:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            break
    os.close(reader)
    os.close(answer)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 0, "the run failed"
    return killed


def _import_once() -> None:
    """Import before forking what every attempt would otherwise import for itself: seconds each."""
    for name in ("torch._dynamo", "sklearn.datasets", "fractrain.engine.trainer", "fractrain.kernels.cpu.quantize"):
        importlib.import_module(name)


def _without_environment() -> None:
    """List no packages and ask git nothing: it takes longer than the steps, and no resumed run reads it."""
    environment: Any = importlib.import_module("fractrain.engine.environment")
    environment.packages, environment.source_revision = dict, lambda: None


def _done(job: dict[str, Any]) -> dict[str, Any]:
    """Both summaries of a job, and the number of kills."""
    from fractrain.engine.config import RunConfig
    from fractrain.engine.store import RunStore

    config = RunConfig.from_json(job["config"], "test")
    folder = Path(job["folder"])
    rng = random.Random(job["seed"])
    began = time.monotonic()
    assert not _attempt(job, folder / "straight", None, 0.0)
    steps, kills = config.recipe.iterations, job["kills"]
    step = (time.monotonic() - began) / steps
    killed = 0
    for number in range(kills):
        moment = rng.randrange(number * steps // kills, (number + 1) * steps // kills)
        killed += _attempt(job, folder / "killed", moment, rng.uniform(0, step), number)
    _attempt(job, folder / "killed", None, 0.0)
    summaries = {}
    for name in ("killed", "straight"):
        record = RunStore(folder / name).get(config.run_id)
        assert record is not None
        assert record.summary is not None, record.status
        summaries[name] = record.summary
    return {**summaries, "kills": killed}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a run prints is no answer
    _import_once()
    _without_environment()
    sys.path.insert(0, str(Path(__file__).parent))
    for line in sys.stdin:
        try:
            result = _done(json.loads(line))
        except Exception:
            result = {"error": traceback.format_exc()}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
