"""Price what a ledger counted with hardware models: by evaluation period, layer, product and widths.

A hardware model sees each layer, product and pair of widths once; the rest is a product of matrices, so that pricing a
long run takes milliseconds. What widths of a sample or of a tile choose is priced in proportion: as if samples (or
tiles) of equal widths were batched together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fractrain.cost.hardware.base import FIGURES, Cost, HardwareModel, LayerShape, Priced, Product, Workload, WorkRow
from fractrain.cost.metrics import GATE, block_of, collect_some, cp_of, samples_of, weights_by_block
from fractrain.util.errors import ConfigError, FractrainError, PluginError, typed_line

if TYPE_CHECKING:
    import pandas as pd

    from fractrain.cost.ledger import Ledger

Geometries = Mapping[str, LayerShape]
Array = npt.NDArray[np.float64]


class Key(NamedTuple):
    """What MACs are added up for."""

    layer: str
    product: Product
    bits1: int
    bits2: int
    format1: str = ""
    format2: str = ""
    scale1: float = 0.0
    scale2: float = 0.0

    def __str__(self) -> str:
        """For messages."""
        return f"{self.layer} {self.product} at {self.bits1} x {self.bits2} bits"


@dataclass(frozen=True)
class Counts:
    """Training work of a ledger.

    Attributes:
        epochs: evaluation periods, ascending.
        keys: layers, products and widths that occur; skipped products (width 0) are left out.
        macs: executed MACs, float64 ``[epochs, keys]``.
        samples: samples fed, by epoch.
        cp: computing percentage, by epoch.
        batch: samples of a training step; None where the ledger does not know.
        forward_macs: of the plain model, per sample; None where the ledger does not know.
        blocks: gateable blocks.
    """

    epochs: tuple[int, ...]
    keys: tuple[Key, ...]
    macs: Array
    samples: tuple[int, ...]
    cp: tuple[float, ...]
    batch: int | None
    forward_macs: float | None
    blocks: frozenset[str]

    @classmethod
    def from_ledger(cls, ledger: Ledger) -> Counts:
        """Add up a ledger.

        Raises:
            ConfigError: it holds no training work, or work of an epoch without samples.
        """
        sums = collect_some(ledger)
        weights = weights_by_block(ledger)
        units = list(ledger.units("train"))
        executed = {name: [e for e in ledger.entries(name) if e.bits1 and e.bits2] for _, name, _ in units}
        work = {name: [(Key(*e[:4], *e[5:]), e.macs) for e in entries] for name, entries in executed.items()}
        epochs, keys = tuple(sums), tuple(sorted({key for entries in work.values() for key, _ in entries}))
        place = {key: column for column, key in enumerate(keys)}
        line = {epoch: number for number, epoch in enumerate(epochs)}
        counted = np.zeros((len(epochs), len(keys)))
        for epoch, name, n in units:
            for key, macs in work[name]:
                counted[line[epoch], place[key]] += n * macs
        samples = tuple(samples_of(ledger, epoch) for epoch in epochs)
        return cls(
            epochs, keys, counted, samples, tuple(cp_of([s], weights) for s in sums.values()),
            ledger.meta.get("batch_size"), ledger.meta.get("forward_macs"), frozenset(ledger.meta.get("blocks") or ()),
        )  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """What the run itself took, by evaluation period.

    Attributes:
        seconds, joules: by epoch; an epoch is missing where it was not measured.
    """

    seconds: Mapping[int, float] = field(default_factory=dict)
    joules: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def from_metrics(cls, metrics: Sequence[Mapping[str, Any]]) -> Recorded:
        """Read the lines of ``metrics.jsonl``, whose readings grow from line to line."""
        return cls(_steps(metrics, "seconds"), _steps(metrics, "joules"))


def _steps(metrics: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    readings = [(int(line["epoch"]), line.get(key)) for line in metrics]
    before = [0.0, *(reading for _, reading in readings)]
    pairs = zip(readings, before, strict=False)
    return {epoch: now - then for (epoch, now), then in pairs if now is not None and then is not None}


@dataclass(frozen=True)
class RunCost:
    """What a run costs on one hardware model.

    Attributes:
        hardware: the model's name with its settings.
        counts: what was priced.
        rows: cost of each key and epoch, float64 ``[epochs, keys, 9]``; see :data:`FIGURES`.
        overhead: cost that belongs to no key, float64 ``[epochs, 9]``.
        notes: why the figures of an epoch are an extrapolation, by epoch; empty if they are not.
    """

    hardware: str
    counts: Counts
    rows: Array
    overhead: Array
    notes: tuple[str, ...]

    @cached_property
    def by_epoch(self) -> Array:
        """Cost by epoch, float64 ``[epochs, 9]``."""
        total: Array = self.rows.sum(axis=1) + self.overhead
        return total

    def until(self, epoch: int | None = None) -> Cost:
        """Cost up to and including an epoch; None: of all."""
        return Cost.from_figures(self.by_epoch[self._first(epoch)].sum(axis=0))

    def samples(self, epoch: int | None = None) -> int:
        """Samples fed up to and including an epoch."""
        return sum(self.counts.samples[self._first(epoch)])

    def note(self, epoch: int | None = None) -> str:
        """Why the figures up to an epoch are an extrapolation, in one line; empty if they are not."""
        notes = sorted({note for note in self.notes[self._first(epoch)] if note})
        more = f" (and {len(notes) - 1} like it)" if len(notes) > 1 else ""
        return notes[0] + more if notes else ""

    def frame(self) -> pd.DataFrame:
        """Return a DataFrame: a line for each epoch and key, and one for each epoch's overhead, if there is any.

        Columns: ``epoch``, the fields of :class:`Key`, ``macs``, ``samples`` of the epoch, and :data:`FIGURES`.
        """
        import pandas as pd

        c = self.counts
        e, k = self.rows.shape[:2]
        keys = pd.DataFrame(c.keys, columns=Key._fields)
        table = pd.concat([keys] * e, ignore_index=True)
        table.insert(0, "epoch", np.repeat(c.epochs, k))
        table["macs"], table["samples"] = c.macs.reshape(-1), np.repeat(c.samples, k)
        table[list(FIGURES)] = self.rows.reshape(e * k, -1)
        table = table[table["macs"] > 0]
        if not self.overhead.any():
            return table.reset_index(drop=True)
        rest = pd.DataFrame(self.overhead, columns=list(FIGURES))
        rest.insert(0, "epoch", c.epochs)
        nothing = Key(OVERHEAD, "", 0, 0)._asdict()  # type: ignore[arg-type]
        rest = rest.assign(**nothing, macs=0.0, samples=c.samples)
        return pd.concat([table, rest[table.columns]], ignore_index=True)

    def _first(self, epoch: int | None) -> slice:
        return slice(0, None if epoch is None else sum(e <= epoch for e in self.counts.epochs))


OVERHEAD = "(whole step)"
"""Stands for the layer where a cost belongs to none."""


def price(
    counts: Counts, model: HardwareModel, geometry: Geometries | None = None, recorded: Recorded | None = None
) -> RunCost:
    """Return what counted work costs on a hardware model.

    Args:
        geometry: shapes of the layers by name (:func:`fractrain.models.layer_shapes.layer_shapes`); gates need none.
        recorded: what the run itself took.

    Raises:
        ConfigError: the model cannot price a row; says which and why.
        PluginError: the model fails, or returns what is no cost.
    """
    shapes = [_shape(key, counts, geometry or {}) for key in counts.keys]
    if model.needs_geometry and counts.batch is None:
        raise ConfigError(f"{model.name} needs the batch size, which the ledger does not know: set meta['batch_size']")
    if model.additive:
        rows, overhead, notes = _additive(counts, shapes, model)
    else:
        rows, overhead, notes = _by_epoch(counts, shapes, model, recorded or Recorded())
    _check(rows, overhead, counts, model)
    return RunCost(model.title, counts, rows, overhead, notes)


def _rest_of_row(key: Key, shape: LayerShape | None, counts: Counts) -> tuple[Any, ...]:
    """What the row that a hardware model is given for a key holds behind its MACs."""
    formats, scales = (key.format1, key.format2), (key.scale1, key.scale2)
    return shape, counts.batch or 1, block_of(key.layer, counts.blocks), formats, scales


def _shape(key: Key, counts: Counts, geometry: Geometries) -> LayerShape | None:
    """Shape of a key's layer; of a gate, one square matrix and a vector with as many MACs (ours)."""
    if key.layer in geometry or GATE not in key.layer.split("."):
        return geometry.get(key.layer)
    column = counts.keys.index(key)
    units = sum(n for n, m in zip(counts.samples, counts.macs[:, column], strict=True) if m)
    side = max(1, round((counts.macs[:, column].sum() / units) ** 0.5))
    return LayerShape("linear", side, side)


Matrices = tuple[Array, Array, tuple[str, ...]]


def _additive(counts: Counts, shapes: Sequence[LayerShape | None], model: HardwareModel) -> Matrices:
    unit = np.zeros((len(counts.keys), len(FIGURES)))
    for number, (key, shape) in enumerate(zip(counts.keys, shapes, strict=True)):
        macs = float(shape.macs * (counts.batch or 1)) if shape else float(counts.macs[:, number].max())
        row = WorkRow(*key[:4], macs, *_rest_of_row(key, shape, counts))
        unit[number] = np.array(_asked(model, row)) / macs
    rows = counts.macs[:, :, None] * unit
    return rows, np.zeros((len(counts.epochs), len(FIGURES))), ("",) * len(counts.epochs)


def _by_epoch(
    counts: Counts, shapes: Sequence[LayerShape | None], model: HardwareModel, recorded: Recorded
) -> Matrices:
    rows = np.zeros((*counts.macs.shape, len(FIGURES)))
    overhead, notes = np.zeros((len(counts.epochs), len(FIGURES))), []
    rest = [_rest_of_row(key, shape, counts) for key, shape in zip(counts.keys, shapes, strict=True)]
    for line, macs in enumerate(counts.macs):
        live = [int(k) for k in np.flatnonzero(macs)]
        given = tuple(WorkRow(*counts.keys[k][:4], float(macs[k]), *rest[k]) for k in live)
        epoch = counts.epochs[line]
        taken = recorded.seconds.get(epoch), recorded.joules.get(epoch)
        priced = _worked(model, Workload(given, counts.samples[line], counts.cp[line], counts.forward_macs, *taken))
        own = priced.rows
        rows[line, live] = own if isinstance(own, np.ndarray) else [cost.figures() for cost in own]
        overhead[line] = priced.overhead.figures()
        notes.append(priced.note)
    return rows, overhead, tuple(notes)


def _asked(model: HardwareModel, row: WorkRow) -> tuple[float, ...]:
    """Ask for the cost of one row; whatever a plugin raises becomes one line."""
    where = f"{model.name}, layer {row.layer} {row.product} at {row.bits1} x {row.bits2} bits"
    try:
        cost = model.row(row)
        return cost.figures()
    except FractrainError as problem:
        raise ConfigError(f"{where}: {problem}") from problem
    except Exception as problem:
        raise PluginError(f"{where}: {typed_line(problem)}") from problem


def _worked(model: HardwareModel, work: Workload) -> Priced:
    try:
        priced = model.work(work)
        if len(priced.rows) != len(work.rows):
            raise PluginError(f"{model.name}: priced {len(priced.rows)} rows of {len(work.rows)}")
        return priced
    except FractrainError:
        raise
    except Exception as problem:
        raise PluginError(f"{model.name}: {typed_line(problem)}") from problem


def _check(rows: Array, overhead: Array, counts: Counts, model: HardwareModel) -> None:
    """Refuse what is no cost.

    Raises:
        PluginError: a number is negative or not finite.
    """
    for values, names in ((rows, list(map(str, counts.keys))), (overhead[:, None], [OVERHEAD])):
        good = np.isfinite(values) & (values >= 0)
        bad = np.argwhere(~(good | np.isnan(values) if model.measures else good))
        if len(bad):
            epoch, name, figure = (int(i) for i in bad[0])
            value = values[epoch, name, figure]
            raise PluginError(
                f"{model.name}: {FIGURES[figure]} of {names[name]} is {value:g}; a cost is finite and >= 0"
            )
