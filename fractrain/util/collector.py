"""Python's collector of reference cycles, which need not look again and again at values that all live on."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Look for no reference cycles inside the block: for work of seconds that makes millions of values and keeps them.

    Every full look visits all of them, which is a seventh of a report's time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
