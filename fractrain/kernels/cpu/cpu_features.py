"""Whether the kernels for products of bytes can run here, and what they share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import torch

from fractrain.kernels.cpu.tensors import parallel
from fractrain.kernels.cpu.uniform import probed

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def byte_products() -> bool:
    """Whether this processor has AVX512's VNNI instructions and numba compiles for it; one log line if not."""
    if probed() is None:
        return False
    try:
        from fractrain.kernels.cpu.vnni import has_vnni

        there = has_vnni()
    except (ImportError, AttributeError, RuntimeError) as problem:
        report(f"are not available ({str(problem).splitlines()[0]})")
        return False
    if not there:
        report("need a processor with AVX512 VNNI")
    return there


@lru_cache(maxsize=1)  # one line per process, not per layer
def report(why: str) -> None:
    """Say why products stay in float32 or with oneDNN."""
    log.warning("own kernels for products of integer codes %s; using slower ones", why)


def runs_exactly(exact: Callable[[], bool]) -> bool:
    """Whether a trial of the kernels ran and was exact; one log line if not."""
    try:
        if exact():
            return True
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as problem:
        report(f"are not available ({str(problem).splitlines()[0]})")
        return False
    report("are not exact on this machine")
    return False


def parts_of(codes: torch.Tensor) -> int:
    """How many parts of the batch run side by side."""
    threads = torch.get_num_threads()
    return min(threads, codes.shape[0]) if threads > 1 and parallel(codes) else 1
