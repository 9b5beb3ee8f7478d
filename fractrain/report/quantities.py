"""The one vocabulary of what is measured of a run: names, units, and where the number stands in its summary.

The same keys are the ``quantity`` of :func:`fractrain.results`, columns of tables, and names in CSV and JSON files.
Costs are computed once, by :func:`fractrain.cost.metrics.summarize` when a run ends; here they are only looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Better = Literal["more", "less", ""]


@dataclass(frozen=True)
class Quantity:
    """One number of a run.

    Attributes:
        key: its name everywhere.
        label: for people, without the unit.
        unit: of the number.
        better: which direction is better; empty: neither.
        place: key of the run's summary; ``cost:KEY`` is one of its cost figures.
        protocol: which of several values of a run it is, for example ``best on test (paper protocol)``.
        scale: what the summary's number is multiplied by to be in the unit.
        metric, metric_scale: name of the same quantity in the published rows, and their unit in ours.
    """

    key: str
    label: str
    unit: str
    better: Better
    place: str
    protocol: str = ""
    scale: float = 1.0
    metric: str = ""
    metric_scale: float = 1.0

    @property
    def modelled(self) -> bool:
        """Whether it comes from a hardware model, so that a run has it only for a given one."""
        return self.key.startswith(("energy", "latency"))

    @property
    def is_quality(self) -> bool:
        """Whether it says how good the model is: differences, not ratios, are compared."""
        return self.key.startswith(("accuracy", "perplexity"))

    @property
    def title(self) -> str:
        """Label, protocol and unit, for an axis or a heading."""
        return f"{self.label}{f', {self.protocol}' if self.protocol else ''} [{self.unit}]"

    def read(self, summary: Mapping[str, Any]) -> float | None:
        """Return the number of one finished run, or None where it has none."""
        part, _, key = self.place.rpartition(":")
        value = (summary.get(part) or {} if part else summary).get(key)
        return self.scale * value if isinstance(value, int | float) and not isinstance(value, bool) else None


_LAST, _VAL, _TEST = "after the last step", "at best validation", "best on test (paper protocol)"
_BEST, _END = "up to the best test result", "whole run"
_MACS, _BITS = "effective MACs", "bit operations"
QUANTITIES: Final = (
    Quantity("accuracy_last", "Test accuracy", "%", "more", "test_accuracy_last", _LAST),
    Quantity("accuracy_best_val", "Test accuracy", "%", "more", "test_accuracy_at_best_val", _VAL),
    Quantity("accuracy_best_test", "Test accuracy", "%", "more", "test_accuracy_best", _TEST, metric="acc_top1_%"),
    Quantity("perplexity_last", "Test perplexity", "per word", "less", "test_perplexity_last", _LAST),
    Quantity("perplexity_best_val", "Test perplexity", "per word", "less", "test_perplexity_at_best_val", _VAL),
    Quantity(
        "perplexity_best_test", "Test perplexity", "per word", "less", "test_perplexity_best", _TEST,
        metric="perplexity",
    ),
    Quantity("cost_end", "Cost of the whole model", "% of FP32", "less", "cost:cost_percent@end", _END),
    Quantity("cost_best", "Cost of the whole model", "% of FP32", "less", "cost:cost_percent@best", _BEST),
    Quantity("effective_end", "MACs of the whole model", _MACS, "less", "cost:effective_macs@end", _END),
    Quantity("effective_best", "MACs of the whole model", _MACS, "less", "cost:effective_macs@best", _BEST),
    Quantity("bitops_end", "BitOPs", _BITS, "less", "cost:bitops@end", _END, metric="GBitOPs", metric_scale=1e9),
    Quantity("bitops_best", "BitOPs", _BITS, "less", "cost:bitops@best", _BEST),
    Quantity("cp_end", "cp of the gated blocks", "% of FP32", "less", "cost:cp_percent@end", _END),
    Quantity("cp", "cp of the gated blocks", "% of FP32", "less", "cost:cp_percent@best", _BEST),
    Quantity("macs_end", "MACs as the paper counts them", _MACS, "less", "cost:macs_paper@end", _END),
    Quantity(
        "macs_best", "MACs as the paper counts them", _MACS, "less", "cost:macs_paper@best", _BEST,
        metric="effective_MACs",
    ),
    Quantity("raw_end", "Executed MACs of any width", "MACs", "less", "cost:raw_macs@end", _END),
    Quantity("gate_overhead", "Forward MACs of the gates", "of the other layers'", "less", "cost:gate_overhead"),
    Quantity("energy_end", "Energy, modelled", "kJ", "less", "cost:energy_j@end", _END, 1e-3),
    Quantity("energy", "Energy, modelled", "kJ", "less", "cost:energy_j@best", _BEST, 1e-3, metric="energy_kJ"),
    Quantity("latency_end", "Latency, modelled", "min", "less", "cost:latency_s@end", _END, 1 / 60),
    Quantity("latency", "Latency, modelled", "min", "less", "cost:latency_s@best", _BEST, 1 / 60, metric="latency_min"),
    Quantity("train_loss", "Training loss", "nats", "less", "train_loss", _LAST),
    Quantity("train_accuracy", "Training accuracy", "%", "more", "train_accuracy", _LAST),
    Quantity("accuracy_trivial", "Accuracy without learning", "%", "", "trivial_accuracy"),
    Quantity("perplexity_trivial", "Perplexity without learning", "per word", "", "trivial_perplexity"),
    Quantity("iterations", "Training steps", "steps", "", "iterations"),
    Quantity("seconds", "Wall clock (precision is simulated: no evidence of speed)", "s", "", "seconds"),
    Quantity("step_seconds", "Median step (precision is simulated)", "s", "", "step_seconds_median"),
    Quantity("memory_host", "Peak memory, host", "bytes", "less", "peak_host_bytes"),
    Quantity("memory_gpu", "Peak memory, GPU", "bytes", "less", "peak_gpu_bytes"),
)  # fmt: skip
BY_KEY: Final = {quantity.key: quantity for quantity in QUANTITIES}
BY_METRIC: Final = {quantity.metric: quantity for quantity in QUANTITIES if quantity.metric}


def numbers(summary: Mapping[str, Any]) -> Iterator[tuple[Quantity, float]]:
    """Yield every quantity that a run's summary has, with its number."""
    for quantity in QUANTITIES:
        value = quantity.read(summary)
        if value is not None:
            yield quantity, value
