"""The one place where the engine meets methods, models, data sets and costs: by name, through their registries.

The engine knows none of them by name; a test, or a harness with parts of its own, passes a subclass instead.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fractrain.data.info import DataSource
from fractrain.data.transfer_splits import part_data, part_info

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fractrain.cost.ledger import Ledger
    from fractrain.methods.base import Method


class Stream(Protocol):
    """Training batches with random access: the order is a function of (seed, epoch) alone."""

    def __len__(self) -> int:
        """Batches of one pass."""
        ...

    def batch(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets (int64) on the training device."""
        ...


class Registries:
    """Looks everything up in the registries of the package; imports are late so that planning stays light.

    Attributes:
        setting, seed, rank, world: of the run whose data is meant, and of the process; see :meth:`for_setting`.
    """

    setting = "standard"
    seed = 0
    rank, world = 0, 1

    @cached_property
    def _shells(self) -> dict[tuple[str, str, str], nn.Module]:
        """Models without memory that methods have looked at."""
        return {}

    def for_setting(self, setting: str, seed: int, rank: int = 0, world: int = 1) -> Registries:
        """Return registries whose data sets are the parts that a run of this setting and seed uses.

        Data that is read while training may come in shares for the ``rank``-th of ``world`` processes: such a stream
        says so by an attribute ``world``.
        """
        own = copy.copy(self)
        own.setting, own.seed, own.rank, own.world = setting, seed, rank, world
        return own

    def full_precision(self) -> str:
        """Name of the method that source runs of adaptation and fine-tuning are trained with."""
        from fractrain.methods import registry

        return registry.FULL_PRECISION

    def method_class(self, name: str) -> type[Method]:
        """Return a method's class; ConfigError or PluginError when there is none."""
        from fractrain.methods import registry

        return registry.get(name)

    def method(self, name: str, settings: Mapping[str, Any]) -> Method:
        """Return a new method object with validated settings."""
        from fractrain.methods import registry

        return registry.create(name, dict(settings))

    def dataset_info(self, name: str) -> Any:
        """Return what is known of a data set (``name``, ``classes``, ``shape``, ``embedded``, ...)."""
        from fractrain.data import registry

        return part_info(registry.info(name), self.setting)

    def dataset_id(self, name: str) -> str:
        """Return what stands for the data set in a run's id, see :meth:`fractrain.data.info.DataSource.id_name`."""
        info = self.dataset_info(name)
        access = getattr(info, "access", None)
        return access.id_name(info) if isinstance(access, DataSource) else ""

    def mismatch(self, model: str, dataset: str) -> str | None:
        """Return why the pair is impossible, or None; ConfigError when either is unknown."""
        from fractrain.models import registry

        registry.info(model)
        return registry.compatible(model, self.dataset_info(dataset))

    def unsuitable_reason(self, method: str, model: str, dataset: str) -> str | None:
        """Return why a method makes no sense on a model, or None; the model is built without memory, if it must be."""
        from fractrain.methods.base import Method

        kind = self.method_class(method)
        if kind.unsuitable.__func__ is Method.unsuitable.__func__:  # type: ignore[attr-defined]
            return None  # the method fits every model
        key = (model, dataset, self.setting)
        if key not in self._shells:
            self._shells[key] = _shell(lambda: self.model(model, dataset, 0))
        return kind.unsuitable(self._shells[key])

    def model(self, name: str, dataset: str, seed: int) -> nn.Module:
        """Build the plain FP32 model for a data set."""
        from fractrain.models import registry

        info = self.dataset_info(dataset)
        return registry.build(name, info.classes, info.shape, seed)

    def model_version(self, name: str) -> int:
        """Version of a model: another one gives other results. 1 for a model that only a harness of its own knows."""
        from fractrain.models import registry

        return registry.info(name).version if name in registry.names() else 1

    def from_elsewhere(self, model: str) -> bool:
        """Whether a model is of a library, a file or a plugin, so that it may multiply by other things than layers."""
        from fractrain.models import registry
        from fractrain.models.specs import MODELS

        return ":" in model or model in set(registry.names()) - {own.name for own in MODELS}

    def forward_macs(self, model: nn.Module, dataset: str) -> int:
        """Exact MACs of one sample's forward pass through the plain model."""
        from fractrain.models.macs import forward_macs

        return int(forward_macs(model, self.dataset_info(dataset).shape))

    def block_weights(self, model: nn.Module, dataset: str, blocks: Sequence[str]) -> dict[str, list[int]]:
        """Weights of the blocks in cp as ``{"block_weights": [...]}``; empty where all count the same.

        A model whose attribute ``block_weighting`` is ``macs`` has its blocks weighted by their forward MACs.
        """
        if getattr(model, "block_weighting", "equal") != "macs":
            return {}
        from fractrain.models.macs import block_macs

        return {"block_weights": block_macs(model, self.dataset_info(dataset).shape, blocks)}

    def data(self, name: str, data_dir: Path | None, download: bool, val_fraction: float, seed: int) -> Any:
        """Load a data set: an object with ``train``, ``val`` (or None), ``test``, ``info`` and ``digest``."""
        from fractrain.data import registry

        data: Any = registry.load(name, data_dir=data_dir, download=download, val_fraction=val_fraction, seed=seed)
        return data if self.setting == "standard" else part_data(data, self.setting, self.seed)

    def train_stream(self, data: Any, batch_size: int, seed: int, device: torch.device, augment: bool) -> Stream:
        """Return the training batches."""
        if hasattr(data, "train_stream"):  # data that is read while training brings streams of its own
            shared = self.world > 1 and "world" in inspect.signature(data.train_stream).parameters
            shares = {"rank": self.rank, "world": self.world} if shared else {}
            own: Stream = data.train_stream(batch_size, seed, device, augment, **shares)
            return own
        from fractrain.data.in_memory import TrainStream

        return TrainStream(data.train, data.info, batch_size, seed, device, augment)

    def eval_stream(
        self, data: Any, split: str, batch_size: int, device: torch.device
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Return the batches of ``val`` or ``test``, in a fixed order, every sample once."""
        if hasattr(data, "eval_stream"):
            own: Iterable[tuple[torch.Tensor, torch.Tensor]] = data.eval_stream(split, batch_size, device)
            return own
        from fractrain.data.in_memory import EvalStream

        return EvalStream(getattr(data, split), data.info, batch_size, device)

    def costs(self, ledger: Ledger, best_epoch: int) -> dict[str, Any]:
        """Return the cost figures of a ledger, up to ``best_epoch`` and in all; empty when no work was counted."""
        from fractrain.cost.formats import format_costs
        from fractrain.cost.metrics import summarize

        if not _has_work(ledger):
            return {}
        return {**summarize(ledger, best_epoch).as_dict(), **format_costs(ledger)}

    def cp(self, ledger: Ledger) -> float | None:
        """Return the computing percentage of the training so far, or None when no work was counted."""
        from fractrain.cost.metrics import cp

        return cp(ledger) if _has_work(ledger) else None


def _shell(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without memory and without values: to draw them, torch would load its compiler, for seconds."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Blank(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"):
                return args[0] if args else kwargs["tensor"]
            return func(*args, **kwargs)

    with torch.device("meta"), Blank():
        return build()


def _has_work(ledger: Ledger) -> bool:
    return any(row.phase == "train" for row in ledger.rows())
