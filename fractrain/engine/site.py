"""Where and how runs are executed: it travels whole from the command line to the training loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import pydantic

RESULTS: Final = Path("results/runs")
CHECKPOINT_SECONDS: Final = 60.0
LOCK_PATIENCE_S: Final = 1.0
Kernels = Literal["auto", "reference", "fused"]
Graphs = Literal["auto", "off"]


@dataclass(frozen=True)
class Site:
    """Where and how runs are executed; nothing here is part of a run's id.

    Attributes:
        store: root of the run store; not touched by a run that is only held in memory.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        data_dir: folder of the data sets, None for the default.
        download: fetch missing data.
        checkpoint_seconds: at least this long between two checkpoints of a run.
        kernels: of the quantizers: ``auto``, ``reference`` or ``fused``: all round alike; last bits of sums may differ.
        graphs: on a GPU, record a training step and replay it where that is possible (``auto``), or never (``off``).
        wait_s: seconds to wait for another process that writes the same run; negative: as long as it takes.
    """

    store: Path = RESULTS
    device: str = "auto"
    data_dir: Path | None = None
    download: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    kernels: Kernels = "auto"
    graphs: Graphs = "auto"
    wait_s: float = LOCK_PATIENCE_S

    def absolute(self, **changes: Any) -> Site:
        """Return the same site, and changes to it, for a process in another folder or on another machine."""
        data_dir = None if self.data_dir is None else self.data_dir.absolute()
        return replace(self, store=self.store.absolute(), data_dir=data_dir, **changes)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        values: dict[str, Any] = _SITE.dump_python(self, mode="json")
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Site:
        """Read what :meth:`as_json` returned."""
        return _SITE.validate_python(values)


_SITE: Final = pydantic.TypeAdapter(Site)
