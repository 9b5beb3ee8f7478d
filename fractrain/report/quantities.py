"""The one vocabulary of what is measured of a run: an entry here is a quantity everywhere, and a column of tables.

The same keys are the ``quantity`` of :func:`fractrain.results`, columns of tables, and names in CSV and JSON files.
Costs are computed once, by :func:`fractrain.cost.metrics.summarize` when a run ends; here they are only looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator

from fractrain.report.values import Column, Part, fitted_text, fixed_text, macs_text, whole_text
from fractrain.util.errors import did_you_mean

Better = Literal["more", "less", ""]
ARROWS: Final[Mapping[Better, str]] = {"more": " ↑", "less": " ↓", "": ""}
ACC: Final[tuple[Part, ...]] = ("accuracy",)
COST: Final[tuple[Part, ...]] = ("cost",)


@dataclass(frozen=True)
class Quantity:
    """One number of a run.

    Attributes:
        key: its name everywhere.
        label: for people, without unit and moment.
        unit: of the number.
        better: which direction is better; empty: neither.
        place: key of the run's summary; ``cost:KEY`` is one of its cost figures.
        at: for costs, ``@best`` (up to the epoch of the best test result) or ``@end`` (of the whole run).
        protocol: for qualities, which of several values of a run it is.
        scale: what the summary's number is multiplied by to be in the unit.
        short: heading in the compact layout of tables; empty: no column of tables.
        usual: tables have it without asking, its published numbers too; ``full``: ours alone, and in the full layout.
        published: key of the column of published numbers that it is compared with; empty: there is none.
        published_short: heading of that column in the compact layout.
        metric, metric_scale: name of the quantity in the published rows, and the unit of its numbers there in ours.
        saving: metric of the published rows that says how much of it was saved.
    """

    key: str
    label: str
    unit: str
    better: Better
    place: str
    at: str = ""
    protocol: str = ""
    scale: float = 1.0
    text: Callable[[float], str] = fitted_text
    short: str = ""
    usual: Literal["", "full", "yes"] = ""
    published: str = ""
    published_short: str = ""
    metric: str = ""
    metric_scale: float = 1.0
    saving: str = ""

    @property
    def modelled(self) -> bool:
        """Whether it comes from a hardware model, so that a run has it only for a given one."""
        return self.key.startswith(("energy", "latency"))

    @property
    def is_quality(self) -> bool:
        """Whether it says how good the model is: differences, not ratios, are compared."""
        return self.key.startswith(("accuracy", "perplexity"))

    @property
    def family(self) -> str:
        """What columns stand together for: ``macs`` for ``macs_best`` and ``macs_end``."""
        return self.key.partition("_")[0]

    @property
    def is_perplexity(self) -> bool:
        """Whether it is in units of perplexity."""
        return self.key.startswith("perplexity")

    @property
    def published_text(self) -> Callable[[float], str]:
        """How a published number is written: as the papers print it."""
        return macs_text if self.text is macs_text else fixed_text

    @property
    def best(self) -> Callable[[Iterable[float]], float]:
        """``max`` or ``min``: which of several values is the best."""
        return max if self.better == "more" else min

    @property
    def title(self) -> str:
        """Name, protocol and unit, for an axis or an explanation."""
        return f"{self.label}{self.at}{f', {self.protocol}' if self.protocol else ''} [{self.unit}]"

    def read(self, summary: Mapping[str, Any]) -> float | None:
        """Return the number of one finished run, or None where it has none."""
        part, _, key = self.place.rpartition(":")
        value = (summary.get(part) or {} if part else summary).get(key)
        return self.scale * value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def columns(self, hardware: str = "") -> tuple[Column, ...]:
        """The column of published numbers, where there is one, and that of ours."""
        unit = f" [{self.unit}]{ARROWS[self.better]}, "
        parts = ACC if self.is_quality else COST
        how = (f"modelled by {hardware}" if hardware else "modelled") if self.modelled else "measured"
        head = f"{self.label}{self.at}{unit}{how}{f', {self.protocol}' if self.protocol else ''}"
        own = Column(self.key, head, self.short, parts, "derived" if self.modelled else "measured")
        theirs = Column(self.published, f"{self.label}{unit}published", self.published_short, parts, "published")
        return (theirs, own) if self.published else (own,)


_LAST, _VAL, _TEST = "last epoch", "at best validation", "best on test (paper protocol)"
_MACS, _BITS, _FP32 = "effective MACs", "bit operations", "% of FP32"
QUANTITIES: Final = (
    Quantity("accuracy_last", "Accuracy", "%", "more", "test_accuracy_last", protocol=_LAST, text=fixed_text,
             short="last %↑", usual="yes"),
    Quantity("accuracy_best_val", "Accuracy", "%", "more", "test_accuracy_at_best_val", protocol=_VAL, text=fixed_text,
             short="best val %↑", usual="full"),
    Quantity(
        "accuracy_best_test", "Accuracy", "%", "more", "test_accuracy_best", protocol=_TEST, text=fixed_text,
        short="best* %↑", usual="yes", published="accuracy_published", published_short="Acc pub. %↑",
        metric="acc_top1_%", saving="acc_diff",
    ),
    Quantity("train_accuracy", "Training accuracy", "%", "more", "train_accuracy", protocol=_LAST, text=fixed_text,
             short="train %↑"),
    Quantity("perplexity_last", "Perplexity", "per word", "less", "test_perplexity_last", protocol=_LAST,
             text=fixed_text, short="last ppl↓"),
    Quantity("perplexity_best_val", "Perplexity", "per word", "less", "test_perplexity_at_best_val", protocol=_VAL,
             text=fixed_text, short="ppl↓ at val"),
    Quantity(
        "perplexity_best_test", "Perplexity", "per word", "less", "test_perplexity_best", protocol=_TEST,
        text=fixed_text, short="best* ppl↓", published="perplexity_published", published_short="ppl↓ pub.",
        metric="perplexity",
    ),
    Quantity(
        "macs_best", "Paper's MACs", _MACS, "less", "cost:macs_paper@best", "@best", text=macs_text, short="MACs↓@best",
        usual="yes", published="macs_published", published_short="MACs↓ pub.", metric="effective_MACs",
        saving="MACs_saving",
    ),
    Quantity("macs_authors", "Paper's MACs, with the authors' forward MACs", _MACS, "less", "cost:macs_authors@best",
             "@best", text=macs_text, short="MACs↓ in their unit", usual="full"),
    Quantity("macs_end", "Paper's MACs", _MACS, "less", "cost:macs_paper@end", "@end", text=macs_text,
             short="MACs↓@end", usual="full"),
    Quantity("cost_best", "Cost of the whole model", _FP32, "less", "cost:cost_percent@best", "@best",
             short="whole %↓@best", usual="full"),
    Quantity("cost_end", "Cost of the whole model", _FP32, "less", "cost:cost_percent@end", "@end",
             short="whole %↓@end", usual="full"),
    Quantity("effective_best", "MACs of the whole model", _MACS, "less", "cost:effective_macs@best", "@best",
             text=macs_text, short="whole↓@best", usual="yes"),
    Quantity("effective_end", "MACs of the whole model", _MACS, "less", "cost:effective_macs@end", "@end",
             text=macs_text, short="whole↓@end", usual="full"),
    Quantity(
        "bitops_end", "BitOPs", _BITS, "less", "cost:bitops@end", "@end", text=macs_text, short="BitOPs↓@end",
        usual="full", published="bitops_published", published_short="BitOPs↓ pub.", metric="GBitOPs", metric_scale=1e9,
    ),
    Quantity("bitops_best", "BitOPs", _BITS, "less", "cost:bitops@best", "@best", text=macs_text, short="BitOPs↓@best",
             usual="yes"),
    Quantity("bitops_quantized_end", "BitOPs of quantized products", _BITS, "less", "cost:quantized_bitops@end", "@end",
             text=macs_text, short="quant. BitOPs↓@end"),
    Quantity("cp", "cp of the gated blocks", _FP32, "less", "cost:cp_percent@best", "@best", short="cp %↓",
             usual="full"),
    Quantity("cp_end", "cp of the gated blocks", _FP32, "less", "cost:cp_percent@end", "@end", short="cp %↓@end"),
    Quantity(
        "energy", "Energy", "kJ", "less", "cost:energy_j@best", "@best", scale=1e-3, short="kJ↓ model", usual="yes",
        published="energy_published", published_short="kJ↓ pub.", metric="energy_kJ", saving="energy_saving",
    ),
    Quantity("energy_end", "Energy", "kJ", "less", "cost:energy_j@end", "@end", scale=1e-3, short="kJ↓@end model"),
    Quantity(
        "latency", "Latency", "min", "less", "cost:latency_s@best", "@best", scale=1 / 60, short="min↓ model",
        usual="yes", published="latency_published", published_short="min↓ pub.", metric="latency_min",
        saving="latency_saving",
    ),
    Quantity("latency_end", "Latency", "min", "less", "cost:latency_s@end", "@end", scale=1 / 60,
             short="min↓@end model"),
    Quantity("kept_backward", "Kept for backward, first step", "MiB per sample", "less", "kept_bytes_per_sample",
             scale=2.0**-20, short="kept MiB↓"),
    Quantity("optimizer_state", "State of the optimizer", "MiB", "less", "optimizer_bytes", scale=2.0**-20,
             short="state MiB↓"),
    # What no table of a paper has: in :func:`fractrain.results` and on the report page alone.
    Quantity("raw_end", "Executed MACs of any width", "MACs", "less", "cost:raw_macs@end", "@end", text=macs_text),
    Quantity("gate_overhead", "Forward MACs of the gates", "of the other layers'", "less", "cost:gate_overhead"),
    Quantity("train_loss", "Training loss", "nats", "less", "train_loss", protocol=_LAST),
    Quantity("accuracy_val", "Validation accuracy", "%", "more", "val_accuracy_best", protocol="best", text=fixed_text),
    Quantity("perplexity_val", "Validation perplexity", "per word", "less", "val_perplexity_best", protocol="best",
             text=fixed_text),
    Quantity("accuracy_trivial", "Accuracy without learning", "%", "", "trivial_accuracy", text=fixed_text),
    Quantity("perplexity_trivial", "Perplexity without learning", "per word", "", "trivial_perplexity",
             text=fixed_text),
    Quantity("iterations", "Training steps", "steps", "", "iterations", text=whole_text),
    Quantity("seconds", "Wall clock (precision is simulated: no evidence of speed)", "s", "", "seconds", short="s"),
    Quantity("samples_best", "Training samples", "samples", "", "cost:samples@best", "@best", text=whole_text),
    Quantity("samples_end", "Training samples", "samples", "", "cost:samples@end", "@end", text=whole_text),
    Quantity("joules", "Energy, metered (precision is simulated)", "J", "", "joules"),
    Quantity("step_seconds", "Median step (precision is simulated)", "s", "", "step_seconds_median", short="s/step"),
    Quantity("memory_host", "Peak memory, host", "bytes", "less", "peak_host_bytes", text=whole_text),
    Quantity("memory_gpu", "Peak memory, GPU", "bytes", "less", "peak_gpu_bytes", text=whole_text),
)  # fmt: skip
BY_KEY: Final = {quantity.key: quantity for quantity in QUANTITIES}
BY_METRIC: Final = {quantity.metric: quantity for quantity in QUANTITIES if quantity.metric}
IN_TABLES: Final = tuple(quantity for quantity in QUANTITIES if quantity.short)
BY_PUBLISHED: Final = {quantity.published: quantity for quantity in IN_TABLES if quantity.published}


def _known(name: str, known: Iterable[str]) -> str:
    known = list(known)
    if name not in known:
        raise ValueError(f"no column {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    return name


QuantityKey = Annotated[str, AfterValidator(lambda name: _known(name, (q.key for q in IN_TABLES)))]
"""A quantity that can be a column of a table."""
ColumnKey = Annotated[str, AfterValidator(lambda name: _known(name, [*(q.key for q in IN_TABLES), *BY_PUBLISHED]))]
"""The same, or a column of published numbers."""


def all_quantities(summary: Mapping[str, Any]) -> Iterator[tuple[Quantity, float]]:
    """Yield every quantity that a run's summary has, with its number."""
    for quantity in QUANTITIES:
        value = quantity.read(summary)
        if value is not None:
            yield quantity, value
