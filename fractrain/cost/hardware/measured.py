"""No model: what the run itself took."""

from __future__ import annotations

from fractrain.cost.hardware.base import Cost, HardwareModel, Parts, Priced, Workload
from fractrain.util.errors import ConfigError


class MeasuredHardware(HardwareModel):
    """No model: wall clock of the run itself, and its energy where a meter could be read."""

    name = "measured"
    source = "the clock of the machine, NVIDIA's total energy counter (NVML), processors' (RAPL)"
    counted = (
        "training and evaluation of the run, interruptions left out; meters count whole devices, whoever else used them"
    )
    is_not = "evidence of what low precision gains: precision is simulated, so the narrowest method may be the slowest"
    additive = False
    measures = True

    def work(self, work: Workload) -> Priced:
        """All of it is overhead: no clock saw a layer."""
        if work.seconds is None:
            raise ConfigError("not measured: the record has no clock readings (only runs of `fractrain run` have)")
        joules = float("nan") if work.joules is None else work.joules
        return Priced([Cost()] * len(work.rows), Cost(Parts(fixed=work.seconds), Parts(fixed=joules)))

    def card(self) -> dict[str, str]:
        """See :class:`HardwareModel`."""
        return {"array": "the machine that trained", **super().card()}
