"""Worker processes forked from one that has imported everything already (:mod:`fractrain.execute.fork_server`)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import IO, Final

COMMAND: Final = (sys.executable, "-m", "fractrain.execute.fork_server")
# pyarrow, which pandas loads, would start a thread that frees memory: what it holds during a fork, nobody gives back.
NO_THREAD: Final = MappingProxyType({"JE_ARROW_MALLOC_CONF": "background_thread:false"})
START_S: Final = 300  # until a worker is there: the first one waits for all imports, on a busy disk
END_S: Final = 60
POLL_S: Final = 0.02


class ForkServerError(Exception):
    """No worker could be forked; a process of its own is the way then."""


class ForkedProcess:
    """A forked worker, with the part of :class:`subprocess.Popen` that the executor needs.

    Attributes:
        stdin, stdout: its streams, text.
        returncode: None while it runs, then the exit code, negative for a signal.
    """

    def __init__(self, stdin: IO[str], stdout: IO[str], report: int) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._report = os.fdopen(report)
        first = self._report.readline() if _readable(self._report, START_S) else None
        if not first:
            for stream in (stdin, stdout, self._report):
                stream.close()
            what = f"gives no answer for {START_S} s" if first is None else "has ended"
            raise ForkServerError(f"the process that forks workers {what}")
        self.pid = int(first)

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        while (code := self.poll()) is None:
            time.sleep(POLL_S)
        return code

    def poll(self) -> int | None:
        """Return the exit code, None while it runs; one thread may wait while another asks."""
        with self._lock:
            if self.returncode is None and _readable(self._report, 0):
                line = self._report.readline()
                self._report.close()
                self.returncode = int(line) if line else -signal.SIGKILL  # the server was killed, and it then or later
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class ForkServer:
    """The process that forks workers; started with the first one, gone with :meth:`close`.

    Args:
        variables: environment variables that libraries read while they are imported, such as numbers of threads.
        command: its command line, to which the number of its socket is added.
    """

    def __init__(self, variables: Mapping[str, str], command: Sequence[str] = COMMAND) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**NO_THREAD, **os.environ, **variables},
                start_new_session=True,
            )  # fmt: skip

    def start(self, variables: Mapping[str, str], errors: IO[str]) -> ForkedProcess:
        """Fork a worker; may be called from several threads.

        Args:
            variables: environment variables on top of the server's.
            errors: file for its standard error.

        Raises:
            ForkServerError: there is no server any more.
        """
        from_us, to_worker = os.pipe()
        from_worker, to_us = os.pipe()
        report, told = os.pipe()
        theirs = (from_us, to_us, errors.fileno(), told)
        packet = json.dumps({"env": dict(variables)}).encode()
        try:
            socket.send_fds(self._requests, [packet], theirs)
        except OSError as error:
            for own in (to_worker, from_worker, report):
                os.close(own)
            raise ForkServerError(str(error)) from error
        finally:
            for passed in (from_us, to_us, told):
                os.close(passed)
        return ForkedProcess(os.fdopen(to_worker, "w"), os.fdopen(from_worker), report)

    def close(self) -> None:
        """End it; workers that still run are not touched."""
        self._requests.close()
        try:
            self._process.wait(END_S)  # it may be importing
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _readable(stream: IO[str], seconds: float) -> bool:
    """Whether there is something to read, or the end, within that time."""
    return bool(select.select([stream], [], [], seconds)[0])


def can_fork() -> bool:
    """Whether this system has what it takes; forking with Python's frameworks loaded is unsafe on macOS."""
    return sys.platform == "linux" and hasattr(socket, "send_fds")
