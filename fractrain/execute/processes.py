"""The worker processes of executors: started, followed, asked to stop, started again when they were killed.

What each one says (warnings, tracebacks) is kept in ``logs/`` beside the run store, a file per run for all its starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.execute.forks import ForkedProcess, ForkServer, ForkServerError
from fractrain.execute.jobs import Outcome
from fractrain.util.errors import StoreError

Process = subprocess.Popen[str] | ForkedProcess
WORKER: Final = (sys.executable, "-m", "fractrain.execute.worker")
THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Workers:
    """The processes that are running; shared by the threads that wait for them.

    Args:
        server: where workers are forked instead, as long as it lives.
    """

    def __init__(self, command: Sequence[str], site: Site, server: ForkServer | None = None) -> None:
        self._command, self._site, self._server = list(command), site, server
        self._running: list[Process] = []
        self._stopped = False

    def stop(self) -> None:
        """Ask every worker to stop, and start no more; called again: stop at once."""
        self._stopped = True
        for process in list(self._running):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End every worker at once, and start no more; the last checkpoints count."""
        self._stopped = True
        for process in list(self._running):
            process.send_signal(signal.SIGKILL)

    def wait(self) -> None:
        """Wait until every worker has ended."""
        for process in list(self._running):
            process.wait()

    def run(
        self, config: RunConfig, variables: Mapping[str, str], report: Callable[[int], None], retries: int = 0
    ) -> Outcome:
        """Run one config in a process of its own and wait for its end.

        Args:
            variables: environment variables on top of our own.
            report: told the number of steps done.
            retries: times that it is started again when its process was killed.
        """
        outcome = self._once(config, variables, report)
        while retries and outcome.status == "failed" and self._was_lost(config.run_id):
            retries -= 1
            outcome = self._once(config, variables, report)
        return outcome

    def _once(self, config: RunConfig, variables: Mapping[str, str], report: Callable[[int], None]) -> Outcome:
        if self._stopped:
            return Outcome(config.run_id, "interrupted", "not started")
        with _log(logs_of(self._site) / f"{config.run_id}.log") as errors:
            said_before = errors.seek(0, os.SEEK_END)
            process = self._start(variables, errors)
            self._running.append(process)
            if self._stopped:  # while it was starting
                process.send_signal(signal.SIGINT)
            try:
                last = self._follow(process, config, report)
            finally:
                code = process.wait()  # also when we are interrupted: its last checkpoint is being written
                self._running.remove(process)
            errors.seek(said_before)
            return self._outcome(config, last, code, errors.read())

    def _was_lost(self, run_id: str) -> bool:
        """Whether the worker ended without a word of its own: killed, or its machine was."""
        try:
            record = RunStore(self._site.store).get(run_id)
        except StoreError:
            return False
        return record is None or record.status == "running"

    def _start(self, variables: Mapping[str, str], errors: IO[str]) -> Process:
        if self._server is not None:
            try:
                return self._server.start(variables, errors)
            except ForkServerError:
                self._server = None  # only slower without
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **variables},
            start_new_session=True,  # Ctrl-C reaches the worker through us, once
        )

    def _follow(self, process: Process, config: RunConfig, report: Callable[[int], None]) -> dict[str, Any]:
        """Hand the job over, read events to the end, return the last one."""
        to_worker, from_worker = process.stdin, process.stdout
        if to_worker is None or from_worker is None:
            raise RuntimeError("a worker was started without pipes")
        last: dict[str, Any] = {}
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code and last words are reported
                to_worker.write(json.dumps({"config": config.model_dump(mode="json"), **self._site.as_json()}) + "\n")
                to_worker.flush()
            for line in from_worker:
                last = json.loads(line)
                if last["event"] == "progress":
                    report(int(last["step"]))
            process.wait()
        finally:  # open until now: the end of its input means to a worker that its parent has died
            with contextlib.suppress(BrokenPipeError):
                to_worker.close()
            from_worker.close()
        return last

    def _outcome(self, config: RunConfig, last: dict[str, Any], code: int, said: str) -> Outcome:
        if last.get("event") == "end":
            return Outcome(config.run_id, last["status"], last["message"])
        if self._stopped:
            return Outcome(config.run_id, "interrupted", "stopped at once; the last checkpoint counts")
        words = said.strip().splitlines()
        reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return Outcome(config.run_id, "failed", f"worker ended with {reason}{': ' + words[-1] if words else ''}")


def logs_of(site: Site) -> Path:
    """The folder that keeps what the processes of runs say."""
    return site.store.parent / "logs"


@contextlib.contextmanager
def _log(path: Path) -> Iterator[IO[str]]:
    """A run's log, to append to; it does not stay if nothing was said, or where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file: IO[str] = path.open("a+", encoding="utf-8", errors="replace")
    except OSError:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
            yield file
        return
    with file:
        yield file
        if not file.seek(0, os.SEEK_END):
            path.unlink(missing_ok=True)
