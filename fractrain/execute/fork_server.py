"""A process that has everything imported and forks one worker per request.

Started as ``python -m fractrain.execute.fork_server FD``.

Importing torch, its optimizers' machinery and the data sets' packages takes several seconds of a core, which short runs
by the hundred would spend each. It imports only: it runs no kernel and never touches a GPU, and no thread lives in it
when it forks but those of OpenBLAS, which ends them before a fork. So forking is safe. Requests come as packets on the
socket ``FD``: a JSON object ``{"env": {...}}`` with four descriptors (standard input, output and error of the worker,
and a pipe on which its process number and exit code are reported).

The standard library's ``multiprocessing`` forkserver imports the script that started everything once more in every
worker: a script without ``if __name__ == "__main__"`` would run again there. This one knows nothing of that script.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

PACKET: Final = 1 << 16
POLL_S: Final = 0.05  # how late an exit code may be told
PRELOAD: Final = (
    "fractrain.execute.worker", "torch._dynamo", "fractrain.kernels.cpu.quantize",
    "fractrain.kernels.cpu.int8_backward_loops", "fractrain.kernels.cpu.int8_forward_loops",
    "fractrain.kernels.cpu.batch_norm", "fractrain.methods.registry", "sklearn.datasets",
)  # fmt: skip


def main(arguments: list[str], worker: Callable[[], int] | None = None, preload: tuple[str, ...] = PRELOAD) -> int:
    """Serve until the other end of the socket is closed; in a forked child, return the worker's exit code.

    Args:
        arguments: the number of the socket's descriptor.
        worker: what a child does; the worker of the local executor by default.
        preload: modules to import first; those that are not there are left to the worker to miss.
    """
    requests = socket.socket(fileno=int(arguments[0]))
    for name in preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, exit codes are lost
    children: dict[int, int] = {}  # process number -> pipe for its exit code
    while True:
        ready = select.select([requests], [], [], POLL_S if children else None)[0]
        _reap(children)
        if not ready:
            continue
        packet, descriptors, _, _ = socket.recv_fds(requests, PACKET, 4)
        if not packet:
            return 0  # the executor is gone; workers notice by themselves
        pid = os.fork()
        if pid == 0:
            for unused in (descriptors[3], *children.values()):
                os.close(unused)
            requests.close()
            return _become(json.loads(packet)["env"], descriptors[:3], worker)
        for passed in descriptors[:3]:
            os.close(passed)
        children[pid] = descriptors[3]
        _tell(descriptors[3], f"{pid}\n")


def _become(env: dict[str, str], streams: list[int], worker: Callable[[], int] | None) -> int:
    """Be a worker: a session, streams and variables of its own."""
    os.setsid()  # Ctrl-C reaches it through the executor, once,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even if that was started with the signal ignored
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.update(env)
    if worker is not None:
        return worker()
    from fractrain.execute.worker import main as run_worker

    return run_worker()


def _reap(children: dict[int, int]) -> None:
    """Report the exit codes of the children that have ended."""
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            report = children.pop(pid)
            _tell(report, f"{os.waitstatus_to_exitcode(status)}\n")
            os.close(report)


def _tell(pipe: int, line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        os.write(pipe, line.encode())


def _leave(code: int) -> None:
    """End at once: taking an interpreter with all these packages apart takes a second or two, once per run."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
