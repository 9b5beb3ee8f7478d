"""How the compiled kernels see tensors, and when they run on several threads."""

from __future__ import annotations

import threading

import numpy as np
import torch

PARALLEL_FROM = 1 << 16  # elements; below, starting threads costs more than it saves
_THREADS = threading.local()  # how many were last set: numba's number is one per thread, and slow to set


def flat(x: torch.Tensor) -> np.ndarray:
    """Return a ``[rows, columns]`` numpy view in memory order."""
    array = x.numpy()  # once, as numpy's views take a fifth of the time of torch's
    if array.ndim == 4 and not array.flags.c_contiguous:  # channels last
        array = array.transpose(0, 2, 3, 1)
    return array.reshape(len(array) if array.ndim else 1, -1)


def nhwc(x: torch.Tensor) -> np.ndarray:
    """Return images ``[N, C, H, W]`` as dense numpy ``[N, H, W, C]``: a view if they are in channels-last memory."""
    array: np.ndarray = x.contiguous(memory_format=torch.channels_last).numpy().transpose(0, 2, 3, 1)
    return array


def parallel(x: torch.Tensor) -> bool:
    """Whether to use several threads, with numba's number of threads set to torch's."""
    threads = torch.get_num_threads()
    if threads == 1 or x.numel() < PARALLEL_FROM:
        return False
    if getattr(_THREADS, "set", None) != threads:
        import numba

        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        _THREADS.set = threads
    return True
