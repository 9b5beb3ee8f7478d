"""Seeds derived by name, so that what depends on which randomness is stated and call order never matters."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that is a pure function of ``seed`` and the names (SHA-256).

    Args:
        names: what the randomness is for, for example ``("order", epoch)``.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
