"""How the processes of a run find each other, how long they wait, and what ends them with their launcher.

``torchrun`` (or whoever sets its variables) says how many processes there are and which one this is. All of them say so
to each other before anything else: a process that means another number, or a rank twice, is named at once, and one that
does not come is waited for a few minutes, not for ever.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from typing import Final

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from fractrain.distributed.collectives import LostPeer, naming_lost_peers, waits
from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError

TIMEOUT_VARIABLE: Final = "FRACTRAIN_RANK_TIMEOUT"
TIMEOUT_S: Final = 1800.0  # one process may fetch or prepare data while the others wait
JOIN_S: Final = 300.0
_POLL_S: Final = 0.05
_LINGER_S: Final = 1.0  # rank 0 may hold the store in which the others read why it goes
_TOLD_S: Final = 30.0
_PARENT_S: Final = 1.0


def join(backend: str, rank: int, world: int) -> None:
    """Connect to the other processes of the run; ``MASTER_ADDR`` and ``MASTER_PORT`` say where.

    Args:
        backend: of torch's collectives.
        rank, world: of this process, and how many there are.

    Raises:
        ConfigError: the processes disagree about their number or their ranks, or a variable is no number.
        LostPeer: some did not come in time.
    """
    patience = _patience()
    join_s = min(JOIN_S, patience)
    waits.watch(rank)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_stop_with_launcher, args=(os.getppid(),), daemon=True).start()
    with naming_lost_peers(join_s):
        store = _store(rank, join_s)
        _meet(store, rank, world, join_s)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=patience))
    waits.limit = patience


def _patience() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE) or str(TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e6:
        raise ConfigError(f"{TIMEOUT_VARIABLE}={text!r}: expected seconds from 1 to 1,000,000")
    return seconds


def _store(rank: int, timeout_s: float) -> Store:
    """The store in which the processes meet: that of torchrun, or one of rank 0."""
    of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, rank == 0 and not of_launcher,
        timedelta(seconds=timeout_s), wait_for_workers=False, multi_tenant=True,
    )  # fmt: skip
    return PrefixStore(f"fractrain/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _meet(store: Store, rank: int, world: int, timeout_s: float) -> None:
    """Wait until all processes are here and mean the same number of them."""
    said = store.compare_set("world", "", str(world)).decode()
    if said != str(world):
        _refuse(store, f"the processes of this run disagree about their number: rank {rank} has WORLD_SIZE={world}, "
                f"another has {said}; start all with the same number")  # fmt: skip
    if store.add(f"rank {rank}", 1) > 1:
        _refuse(store, f"two processes of this run are rank {rank}: give each a RANK of its own")
    here, end = store.add("here", 1), time.monotonic() + timeout_s
    while here < world:
        if store.check(["refused"]):
            message = store.get("refused").decode()
            _told(store, rank)
            raise ConfigError(message)
        if time.monotonic() > end:
            raise LostPeer(
                f"{here} of {world} processes of this run came within {timeout_s:.0f} s: see the messages of the others"
            )
        time.sleep(_POLL_S)
        here = store.add("here", 0)


def _refuse(store: Store, message: str) -> None:
    """Tell all processes why none can go on."""
    store.set("refused", message)
    time.sleep(_LINGER_S)
    raise ConfigError(message)


def _told(store: Store, rank: int) -> None:
    """Count who has read the refusal: rank 0, which may hold the store, stays until all who wait have."""
    store.add("told", 1)
    if rank == 0:
        time.sleep(_LINGER_S)  # for those who are not yet among the waiting
        end = time.monotonic() + _TOLD_S
        while store.add("told", 0) < store.add("here", 0) and time.monotonic() < end:
            time.sleep(_POLL_S)


def _stop_with_launcher(launcher: int) -> None:
    """Stop as on Ctrl-C when torchrun is gone: nobody else would end this process, which holds the run's lock."""
    while os.getppid() == launcher:
        time.sleep(_PARENT_S)
    log_line("torchrun has ended: this process stops, too")
    os.kill(os.getpid(), signal.SIGINT)
