"""The ledger: what was multiplied with what, counted as integers while training runs.

A *work item* is what one unit of work (usually: one sample through one layer or block) multiplies: a list of
:class:`Entry`, each a number of MACs of one layer and one of the three products at one pair of bit-widths. Training
only counts units per work item, phase and epoch, so a step costs a few integer additions; counts that depend on data
(which precision a gate chose) are added up in one int64 tensor per block on the training device and read once, when
the ledger is read. Every cost figure (effective MACs, cp, BitOPs, energy, latency) is computed from this afterwards.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, TypeAlias, cast

import pydantic
from pydantic import Field

from fractrain.util.schema import read_json

if TYPE_CHECKING:
    import torch

Product = Literal["FW", "EB", "GC"]
Phase = Literal["train", "eval", "recompute"]  # the last: forward products done again by activation checkpointing
FLOAT_BITS = 32

FORMAT_VERSION = 1

Recorded: TypeAlias = "tuple[str | tuple[str, ...], int | torch.Tensor]"
"""A work item and its units, or the items that a gate chooses from and the units of each, on the device."""


class Entry(NamedTuple):
    """MACs of one layer and one product, per unit of work.

    Attributes:
        layer: module name.
        product: ``FW`` (forward), ``EB`` (error back-propagation) or ``GC`` (gradient computation).
        bits1, bits2: widths of the two operands; 32 stands for floating point.
            FW: activation, weight. EB: error, weight. GC: activation, error.
        macs: multiply-accumulates per unit.
        format1, format2: names of number formats that are no uniform grid (``e4m3/e8m0``); empty for grids and float32.
        scale1, scale2: bits of scales per element of each operand, beside its width; 0 where one scale serves many.
    """

    layer: str
    product: Product
    bits1: int
    bits2: int
    macs: int
    format1: str = ""
    format2: str = ""
    scale1: float = 0.0
    scale2: float = 0.0

    def as_list(self) -> list[str | int | float]:
        """Plain values; without formats the five that records had before there were any."""
        return list(self) if self.format1 or self.format2 else list(self[:5])


class LedgerRow(NamedTuple):
    """MACs of one (phase, epoch, layer, product, widths and formats of the operands); see :class:`Entry`."""

    phase: Phase
    epoch: int
    layer: str
    product: Product
    bits1: int
    bits2: int
    macs: int
    format1: str = ""
    format2: str = ""
    scale1: float = 0.0
    scale2: float = 0.0


class Ledger:
    """Integer counts of executed work; see the module's docstring.

    Attributes:
        meta: facts about the run that cost figures need: ``forward_macs`` (of the plain model, per sample), ``blocks``
            (names of the gateable blocks), ``batch_size``.
    """

    def __init__(self, meta: dict[str, Any] | None = None) -> None:
        self.meta: dict[str, Any] = dict(meta or {})
        self.phase: Phase = "train"
        self.epoch = 0
        self._work: dict[str, tuple[Entry, ...]] = {}
        self._units: dict[tuple[Phase, int, str], int] = {}
        self._device: dict[tuple[Phase, int, tuple[str, ...]], torch.Tensor] = {}
        self._samples: dict[tuple[Phase, int], int] = {}
        self._recorded: list[Recorded] | None = None
        self.enabled = True

    def begin(self, phase: Phase, epoch: int) -> None:
        """What is counted from now on belongs to this phase and epoch."""
        self.phase, self.epoch = phase, epoch

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Inside the block, what is counted belongs to this phase."""
        outer, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = outer

    def samples(self, count: int) -> None:
        """Count samples (images, or tokens for a language model) fed to the model."""
        if self.enabled:
            key = (self.phase, self.epoch)
            self._samples[key] = self._samples.get(key, 0) + count

    def count(self, work: str, units: int, define: Callable[[], Sequence[Entry]]) -> None:
        """Add ``units`` of the work item named ``work``; ``define`` is called only the first time the name is seen."""
        if not self.enabled:
            return
        if work not in self._work:
            self._work[work] = tuple(define())
        if self._recorded is not None:
            self._recorded.append((work, units))
            return
        key = (self.phase, self.epoch, work)
        self._units[key] = self._units.get(key, 0) + units

    def count_selected(
        self, works: tuple[str, ...], units: torch.Tensor, define: Callable[[int], Sequence[Entry]]
    ) -> None:
        """Add ``units[k]`` (int64, shape ``[len(works)]``, any device) of ``works[k]`` without reading the device."""
        if not self.enabled:
            return
        for k, work in enumerate(works):
            if work not in self._work:
                self._work[work] = tuple(define(k))
        if self._recorded is not None:
            self._recorded.append((works, units))
        else:
            self._add_selected(works, units)

    @contextmanager
    def recording(self) -> Iterator[list[Recorded]]:
        """Inside the block nothing is counted but put into a list, for :meth:`repeat`."""
        outer, self._recorded = self._recorded, []
        try:
            yield self._recorded
        finally:
            self._recorded = outer

    def repeat(self, recorded: Sequence[Recorded]) -> None:
        """Count once more what was recorded, in the present phase and epoch; tensors at what they hold now."""
        if not self.enabled:
            return
        if self._recorded is not None:
            self._recorded.extend(recorded)
            return
        for work, units in recorded:
            if isinstance(work, str):
                self.count(work, cast(int, units), tuple)  # defined when it was recorded
            else:
                self._add_selected(work, cast("torch.Tensor", units))

    def _add_selected(self, works: tuple[str, ...], units: torch.Tensor) -> None:
        key = (self.phase, self.epoch, works)
        total = self._device.get(key)
        if total is None:
            self._device[key] = units.clone()
        else:
            total += units

    def flush(self) -> None:
        """Move the counts kept on the device into the integer store (one read per block, phase and epoch)."""
        for (phase, epoch, works), units in self._device.items():
            for work, n in zip(works, units.tolist(), strict=True):
                key = (phase, epoch, work)
                self._units[key] = self._units.get(key, 0) + int(n)
        self._device.clear()

    def rows(self) -> Iterator[LedgerRow]:
        """Yield one row per (phase, epoch, work item, entry) with units > 0; a key may come up more than once."""
        self.flush()
        for (phase, epoch, work), units in sorted(self._units.items()):
            if units:
                for e in self._work[work]:
                    yield LedgerRow(phase, epoch, e.layer, e.product, e.bits1, e.bits2, e.macs * units, *e[5:])

    def units(self, phase: Phase) -> Iterator[tuple[int, str, int]]:
        """Yield epoch, work item and units > 0 of one phase; what a unit is made of says :meth:`entries`."""
        self.flush()
        return ((epoch, work, n) for (own, epoch, work), n in sorted(self._units.items()) if n and own == phase)

    def entries(self, work: str) -> tuple[Entry, ...]:
        """What a unit of a work item multiplies."""
        return self._work[work]

    def sample_count(self, phase: Phase, epoch: int) -> int:
        """Samples fed in one phase and epoch."""
        return self._samples.get((phase, epoch), 0)

    def epochs(self, phase: Phase = "train") -> list[int]:
        """Epochs with any sample in this phase, ascending."""
        return sorted(e for p, e in self._samples if p == phase)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON-able values (also what is written to ``ledger.json``)."""
        self.flush()
        return {
            "version": FORMAT_VERSION,
            "meta": copy.deepcopy(self.meta),
            "work": {name: [e.as_list() for e in entries] for name, entries in sorted(self._work.items())},
            "units": [[*key, n] for key, n in sorted(self._units.items()) if n],
            "samples": [[*key, n] for key, n in sorted(self._samples.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: the state was written by another format version.
        """
        if state.get("version") != FORMAT_VERSION:
            raise ValueError(f"ledger format {state.get('version')!r}, this release reads {FORMAT_VERSION}")
        self.meta = copy.deepcopy(state["meta"])
        self._work = {name: tuple(Entry(*e) for e in entries) for name, entries in state["work"].items()}
        self._units = {(p, e, w): n for p, e, w, n in state["units"]}
        self._samples = {(p, e): n for p, e, n in state["samples"]}
        self._device.clear()

    def clear(self) -> None:
        """Forget all counts; work items and facts stay known."""
        self._units.clear()
        self._device.clear()
        self._samples.clear()

    def add(self, state: dict[str, Any]) -> None:
        """Add the counts that another process's :meth:`state_dict` returned to our own."""
        self._work.update({name: tuple(Entry(*e) for e in entries) for name, entries in state["work"].items()})
        for phase, epoch, work, units in state["units"]:
            self._units[phase, epoch, work] = self._units.get((phase, epoch, work), 0) + units
        for phase, epoch, count in state["samples"]:
            self._samples[phase, epoch] = self._samples.get((phase, epoch), 0) + count

    def digest(self) -> str:
        """SHA-256 of the canonical JSON form: equal exactly when every count is equal."""
        text = json.dumps(self.state_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


# -- the file ----------------------------------------------------------------------------------------------------------


_Count = Annotated[int, Field(ge=0)]


class _Meta(pydantic.BaseModel):
    """Facts about the run that cost figures need."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)

    forward_macs: _Count | None = None
    blocks: list[str] | None = None
    block_weights: dict[str, float] | list[float] | None = None
    batch_size: _Count | None = None


class _LedgerFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    version: int
    meta: _Meta
    work: dict[str, list[Entry]]
    units: list[tuple[Phase, _Count, str, _Count]]
    samples: list[tuple[Phase, _Count, _Count]]

    @pydantic.model_validator(mode="after")
    def _whole(self) -> _LedgerFile:
        if self.version != FORMAT_VERSION:
            raise ValueError(f"ledger format {self.version}, this release reads {FORMAT_VERSION}")
        for entry in (entry for entries in self.work.values() for entry in entries):
            if min(n for n in entry if isinstance(n, int)) < 0:
                raise ValueError(f"negative numbers in {tuple(entry)}")
        if unknown := {unit[2] for unit in self.units} - self.work.keys():
            raise ValueError(f"counts of {min(unknown)!r}, which is no work item of it")
        return self


_FILE: Final = pydantic.TypeAdapter(_LedgerFile)
_OBJECT: Final = pydantic.TypeAdapter(dict[str, Any])


def read_ledger(content: bytes) -> Ledger:
    """Return the ledger that a ``ledger.json`` holds.

    Raises:
        ValueError: not JSON, of another format version, or not a ledger; one line.
    """
    read_json(_FILE, content)
    ledger = Ledger()
    ledger.load_state_dict(read_json(_OBJECT, content))
    return ledger
