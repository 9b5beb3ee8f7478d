"""Two processes of one run, as ``torchrun`` starts them, and how far apart the weights of two runs are."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LOOPBACK = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def launch(command, *, extra=((), ()), **options):
    """Run a command on two ranks; return (exit code, stdout, stderr) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in (0, 1):
        variables = {
            **LOOPBACK, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, *command, *extra[rank]],
                env=variables,
                text=True,
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                **options,
            )
        )
    found = []
    for process in processes:
        try:
            out, errors = process.communicate(timeout=600)
        finally:
            process.kill()
        found.append((process.returncode, out, errors))
    return found


def on_two_ranks(folder, jobs):
    """Run jobs on two ranks; return what each rank says of each."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    ended = launch([str(HERE / "rank_jobs.py"), str(path)])
    assert [code for code, _, _ in ended] == [0, 0], "\n".join(errors for _, _, errors in ended)
    return [json.loads(Path(f"{path}.{rank}").read_text()) for rank in (0, 1)]


def distance(a, b):
    """Largest difference of two states, by the size of the tensor's largest element."""
    assert a.keys() == b.keys()
    return max(float((a[n].double() - b[n].double()).abs().max() / a[n].abs().max().clamp(min=1e-3)) for n in a)
