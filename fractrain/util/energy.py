"""Energy that the machine's own meters count: NVIDIA GPUs through NVML, processors through RAPL. Nothing is estimated.

A meter counts a whole device, whoever uses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

RAPL: Final = Path("/sys/class/powercap")
POLL_S: Final = 60.0
"""Counters of processors start again at zero after some minutes; read more often than that."""

Read = Callable[[], float]


class EnergyMeter:
    """Joules since a run began, earlier starts included.

    Args:
        counters: functions that return a growing number of joules, by the name of what they meter, with the number at
            which they start again at zero (0: never).

    Attributes:
        joules: by meter, as last read.
    """

    def __init__(self, counters: Mapping[str, tuple[Read, float]] | None = None) -> None:
        self._counters = dict(counters or {})
        self.joules: dict[str, float] = dict.fromkeys(self._counters, 0.0)
        self._last: dict[str, float] = {}
        self.read()

    @classmethod
    def for_device(cls, device: torch.device) -> EnergyMeter:
        """Return a meter of all that can be read: the GPU trained on, and the processors."""
        found = {**_gpu(device), **_processors(RAPL)}
        return cls({name: counter for name, counter in found.items() if _works(counter[0])})

    @property
    def total(self) -> float | None:
        """Joules of all meters together; None where there is none."""
        self.read()
        return sum(self.joules.values()) if self.joules else None

    def poll(self) -> None:
        """Read now and then; to be called often."""
        if time.monotonic() - self._polled > POLL_S:
            self.read()

    def read(self) -> None:
        """Read all meters. One that has failed is given up, and with it the sum, which would be short of it."""
        self._polled = time.monotonic()
        try:
            for name, (read, limit) in self._counters.items():
                now = read()
                step = now - self._last.get(name, now)
                self.joules[name] += step + limit if step < 0 else step
                self._last[name] = now
        except Exception:  # a driver may raise anything, and no run must end of it
            self.give_up()

    def give_up(self) -> None:
        """Measure nothing from now on."""
        self._counters, self.joules = {}, {}

    def go_on(self, joules: Mapping[str, float] | None) -> None:
        """Go on from what was read before an interruption; given up where that had other meters, or none."""
        if joules is None or joules.keys() != self._counters.keys():
            self.give_up()
            return
        self.read()  # what was spent since this start up to now does not belong to the run
        self.joules = dict(joules)


def _works(read: Read) -> bool:
    try:
        return read() >= 0
    except Exception:  # permissions, an old driver, a card without the counter
        return False


def _gpu(device: torch.device) -> dict[str, tuple[Read, float]]:
    """The counter of one NVIDIA GPU, where nvidia-ml-py is installed and the card has one."""
    if device.type != "cuda":
        return {}
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        properties: Any = torch.cuda.get_device_properties(device)
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
    except Exception:  # not installed, or no driver
        return {}
    return {f"GPU {properties.name}": (lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0)}


def _processors(root: Path) -> dict[str, tuple[Read, float]]:
    """Counters of whole processor packages that this user may read."""
    found: dict[str, tuple[Read, float]] = {}
    for zone in sorted(root.glob("*-rapl:?")):  # intel-rapl:0; parts of a package have a second colon
        try:
            name = (zone / "name").read_text().strip()
            limit = int((zone / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError):
            continue
        found[f"processor {name}"] = (_microjoules(zone / "energy_uj"), limit)
    return found


def _microjoules(path: Path) -> Read:
    return lambda: int(path.read_text()) / 1e6
