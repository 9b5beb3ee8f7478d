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
from collections.abc import Mapping, Sequence
from typing import IO, Final

COMMAND: Final = (sys.executable, "-m", "fractrain.execute.fork_server")


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
        self._report = os.fdopen(report)
        first = self._report.readline()
        if not first:
            for stream in (stdin, stdout, self._report):
                stream.close()
            raise ForkServerError("the process that forks workers has ended")
        self.pid = int(first)

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        if self.returncode is None:
            line = self._report.readline()
            self._report.close()
            self.returncode = int(line) if line else -signal.SIGKILL  # the server was killed, and it with it or later
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            self.wait()
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
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **variables},
                start_new_session=True,
            )

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
        self._process.wait()


def forks_here() -> bool:
    """Whether this system has what it takes; forking with Python's frameworks loaded is unsafe on macOS."""
    return sys.platform == "linux" and hasattr(socket, "send_fds")
