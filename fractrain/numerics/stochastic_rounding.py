"""Random bits for stochastic rounding: a pure function of (seed, step, tensor name, element).

A counter-based hash instead of a generator: nothing to save or restore, the same numbers eager, fused, resumed, on any
device and on any number of workers (each passes the index of its first sample), and cheap enough to stay in registers.

The element number counts in channels-last order for 4-D tensors (sample, row, column, channel) and in plain row-major
order otherwise; the noise of an element therefore does not depend on the memory layout.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

MASK32 = 0xFFFFFFFF
# Element numbers are spread over 32 bits first (Weyl sequence): without it, two rounds
# leave the draws of elements a few powers of two apart (the same place in two samples) correlated by up to 7 %.
WEYL = 0x1E3779B1
# Two rounds of the xorshift-multiply finalizer found by Wellons' hash-prospector search ("lowbias32" family). Both
# multipliers are below 2**31, so the product of a 32-bit word stays inside a signed 64-bit integer on every device.
MUL1 = 0x21F0AAAD
MUL2 = 0x735A2D97


@lru_cache(maxsize=65536)
def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _splitmix(z: int) -> int:
    """One step of the splitmix64 mixing function (Steele et al. 2014), on Python integers."""
    z = (z + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


@lru_cache(maxsize=16)
def _step_hash(seed: int, step: int) -> int:
    return _splitmix(_splitmix(seed & 0xFFFFFFFFFFFFFFFF) ^ step)


@dataclass(frozen=True)
class NoiseKey:
    """Which noise: two 32-bit keys, and the element number at which this process's part of the tensor begins.

    Attributes:
        k0, k1: keys derived from seed, step and tensor name; 0-dim int64 tensors if from a :class:`NoiseTable`.
        base: number of elements before the first one here (sample offset times elements per sample).
    """

    k0: int | torch.Tensor
    k1: int | torch.Tensor
    base: int = 0


def noise_key(seed: int, step: int, name: str, base: int = 0) -> NoiseKey:
    """Derive the key of one tensor in one step.

    Args:
        seed: rounding seed of the run.
        step: training step.
        name: name of the tensor, for example ``"layer1.0.conv1.E"``.
        base: see :class:`NoiseKey`.
    """
    z = _splitmix(_step_hash(seed, step) ^ _name_hash(name))
    return NoiseKey(z >> 32, z & MASK32, base)


class NoiseTable:
    """The keys of a step's tensors, kept on a device: work recorded there reads those of the step it is replayed in.

    Args:
        seed: rounding seed of the run.
        device: where the keys are kept.
        room: tensors, at most.

    Attributes:
        recording: number of the recording being made, during which no tensor may be added; None: none is.
    """

    def __init__(self, seed: int, device: torch.device, room: int = 4096) -> None:
        self._seed, self._step = seed, 0
        self._rows: dict[str, int] = {}
        self._hashes: list[int] = []
        self._keys = torch.zeros(room, 2, dtype=torch.int64, device=device)
        self.recording: int | None = None

    def set_step(self, step: int) -> None:
        """Put in the keys of another step; one copy to the device, which nothing waits for."""
        self._step = step
        if self._rows:
            keys = self._of(self._hashes)
            keys = keys.pin_memory() if self._keys.device.type == "cuda" else keys
            self._keys[: len(keys)].copy_(keys, non_blocking=True)

    def key(self, name: str, base: int = 0) -> NoiseKey:
        """The key of one tensor, as :func:`noise_key` gives it for this seed and step.

        Raises:
            LookupError: the tensor is new, and the table full or read by a recording.
        """
        row = self._rows.get(name)
        if row is None:
            if self.recording is not None or len(self._rows) == len(self._keys):
                raise LookupError(f"no row for the rounding of {name}")
            row = self._rows[name] = len(self._rows)
            self._hashes.append(_name_hash(name))
            self._keys[row].copy_(self._of(self._hashes[-1:])[0])
        return NoiseKey(self._keys[row, 0], self._keys[row, 1], base)

    def _of(self, hashes: list[int]) -> torch.Tensor:
        """What :func:`noise_key` gives, for many names at once, int64 ``[names, 2]``."""
        seeded = np.uint64(_step_hash(self._seed, self._step))
        z = (np.array(hashes, np.uint64) ^ seeded) + np.uint64(0x9E3779B97F4A7C15)  # wraps around
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        words = np.stack([z >> np.uint64(32), z & np.uint64(MASK32)], axis=1)
        return torch.from_numpy(words.astype(np.int64))


def element_numbers(shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Element numbers as int64 of the given shape (channels-last order for 4-D shapes)."""
    count = shape.numel()
    if len(shape) == 4:
        n, c, h, w = shape
        return torch.arange(count, device=device).view(n, h, w, c).permute(0, 3, 1, 2)
    return torch.arange(count, device=device).view(shape)


def uniform(key: NoiseKey, numbers: torch.Tensor) -> torch.Tensor:
    """Return u in [0, 1) with 24 random bits per element, float32 of the shape of ``numbers`` (int64).

    Raises:
        ValueError: an element number does not fit into 32 bits.
    """
    if key.base + numbers.numel() > MASK32:
        raise ValueError(f"stochastic rounding numbers at most 2**32 elements, got {key.base + numbers.numel()}")
    h = ((numbers + key.base) * WEYL & MASK32) ^ key.k0
    h = h ^ (h >> 16)
    h = (h * MUL1) & MASK32
    h = (h ^ (h >> 15)) ^ key.k1
    h = (h * MUL2) & MASK32
    h = h ^ (h >> 15)
    return (h >> 8).to(torch.float32) * 2.0**-24


def to_bfloat16(x: torch.Tensor, key: NoiseKey) -> torch.Tensor:
    """Round float32 values to neighbours in bfloat16, the nearer one the likelier: the mean is the value.

    Above bfloat16's largest number infinity is the other neighbour. inf and nan stay as they are.

    Args:
        x: float32 of any shape.
        key: of the noise.

    Returns:
        float32 of the same shape.
    """
    noise = (uniform(key, element_numbers(x.shape, x.device)) * 2.0**16).to(torch.int32)
    away = (x.view(torch.int32) + noise) & -(1 << 16)  # carries into the upper half as often as the lower half says
    return torch.where(x.isfinite(), away.view(torch.float32), x)


def round_to_bfloat16_(x: torch.Tensor, key: NoiseKey, piece: int = 1 << 22) -> None:
    """Do :func:`to_bfloat16` in place, in pieces of about ``piece`` elements: noise takes many times their memory."""
    x = x if x.dim() else x.view(1)
    each = max(1, x[:1].numel())
    rows = max(1, piece // each)
    for first in range(0, len(x), rows):
        part = x[first : first + rows]
        part.copy_(to_bfloat16(part, replace(key, base=key.base + first * each)))
