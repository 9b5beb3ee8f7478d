"""Runs from Python: make one, or take one out of the store, and look at its model, numbers and curves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fractrain.engine.index import RunEntry
from fractrain.engine.store import RunRecord, RunStore
from fractrain.report.run_text import result_lines

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from fractrain.cost.ledger import Ledger
    from fractrain.engine.config import RunConfig


class Run:
    """A run of the store."""

    def __init__(self, record: RunRecord, store: RunStore) -> None:
        self.record, self.store = record, store

    @property
    def id(self) -> str:
        """Its id."""
        return self.record.run_id

    @property
    def config(self) -> RunConfig:
        """What was run."""
        return self.record.config

    @property
    def status(self) -> str:
        """``done``, or how it stands."""
        return self.record.status

    @property
    def summary(self) -> dict[str, Any]:
        """The result; empty while it is not done."""
        return self.record.summary or {}

    @cached_property
    def ledger(self) -> Ledger:
        """What was multiplied with what."""
        return self.record.ledger()

    @cached_property
    def curve(self) -> pd.DataFrame:
        """A line for each evaluation period; the method's own figures are columns named ``method.NAME``."""
        import pandas as pd

        return pd.json_normalize(self.record.metrics())

    @cached_property
    def results(self) -> pd.DataFrame:
        """Its lines of :func:`fractrain.results`."""
        from fractrain.report.results import frame_of

        return frame_of([RunEntry.from_record(self.record)], self.store)

    @cached_property
    def work(self) -> pd.DataFrame:
        """Where its work went; see :func:`fractrain.report.breakdown.breakdown`."""
        from fractrain.report.breakdown import breakdown

        return breakdown(self.ledger)

    @cached_property
    def model(self) -> nn.Module:
        """The low-precision model with the weights of the last checkpoint, on the CPU, ready to evaluate.

        Raises:
            CheckpointError: there is no checkpoint (evidence in a repository has none), or it does not fit.
        """
        from fractrain.engine.restored import restored

        return restored(self.record).model

    def export(
        self, file: Path | str, format: Literal["torch", "safetensors", "onnx-qdq"] = "torch", force: bool = False
    ) -> Path:
        """Write the trained weights for use without this package; see :mod:`fractrain.methods.export`.

        Returns:
            The path of the file.

        Raises:
            CheckpointError: as for :attr:`model`.
            ConfigError: the file is there, the method keeps no counterpart of some of the plain model's tensors, or
                ONNX cannot express what evaluation computes.
            MachineError: a package that the format needs is not installed.
        """
        from fractrain.engine.restored import export

        return export(self.record, Path(file), format, force)

    def __repr__(self) -> str:
        lines = [f"{self.id}: {self.status}", *result_lines(self.record)]
        return "\n".join([*lines, f"  folder: {self.record.path}"])


def load_run(run_id: str, store: RunStore | Path | str | None = None) -> Run:
    """Return a run of the store.

    Args:
        run_id: its id, or the beginning of it.
        store: the run store or its folder; None: ``$FRACTRAIN_RESULTS``, else ``results/runs``.

    Raises:
        ConfigError: there is no such run, or several begin so.
        StoreError: its folder is damaged.
    """
    store = store if isinstance(store, RunStore) else RunStore(store)
    return Run(store.find(run_id), store)


def run(
    method: str,
    model: str,
    dataset: str,
    *,
    profile: str | None = None,
    seed: int = 0,
    setting: str = "standard",
    recipe: Mapping[str, Any] | None = None,
    store: RunStore | Path | str | None = None,
    device: str = "auto",
    data_dir: Path | str | None = None,
    download: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train one model with one method and return the run; one that is finished is returned at once.

    It is the same run, with the same id, as that of ``fractrain run``. An interrupted one goes on where it stopped.

    Args:
        profile: None means ``smoke`` for an embedded data set and ``paper`` for a real one.
        setting: ``standard``, ``adaptation`` or ``fine-tuning``.
        recipe: what differs from the recipe of data set and profile, for example ``{"iterations": 16}``.
        store: the run store or its folder; None: ``$FRACTRAIN_RESULTS``, else ``results/runs``.
        device: ``auto``, ``cpu``, ``cuda``, ...
        data_dir: folder of the data sets; None: ``$FRACTRAIN_DATA``, else ``./data``.
        download: fetch data that is missing.
        progress: show steps and the time left on stderr.

    Raises:
        ConfigError: an unknown name or key, a wrong type, or an impossible combination.
        NonFiniteError: the run diverged.
        FractrainError: data, store or machine are not as they must be.
    """
    from fractrain.engine.config import RunConfig
    from fractrain.engine.site import Site
    from fractrain.engine.trainer import Trainer
    from fractrain.util.progress import make_progress

    store = store if isinstance(store, RunStore) else RunStore(store)
    config = RunConfig.create(
        method=method, model=model, dataset=dataset, profile=profile, seed=seed, settings=settings, recipe=recipe,
        setting=setting, origin="fractrain.run",
    )  # fmt: skip
    site = Site(store.root, device, None if data_dir is None else Path(data_dir), download)
    shown = make_progress("auto" if progress else "silent")
    return Run(Trainer(config, site, shown).run(), store)
