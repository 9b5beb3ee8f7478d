"""The method under test, and short runs of it in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.registries import Registries
from fractrain.engine.site import Site
from fractrain.methods.base import Method, MethodContext
from fractrain.methods.registry import MethodRegistry
from fractrain.testing.report import ContractViolation
from fractrain.util.digests import weights_sha256
from fractrain.util.registry import Origin

CPU: Final = torch.device("cpu")
# Keys of a metrics line that differ from run to run.
TIMES: Final = ("seconds", "step_seconds", "images_per_second", "words_per_second", "wait_share")


class ContractRegistries(Registries):
    """The registries with one more method, given as a class; evaluates on a few batches and keeps the data loaded."""

    def __init__(self, kind: type[Method], eval_batches: int | None = 1) -> None:
        self._kind, self._eval_batches = kind, eval_batches
        self._methods = MethodRegistry()
        self._methods.register(kind.name, kind, Origin("class", kind.__qualname__))
        self._data: dict[Any, Any] = {}
        self._macs: dict[tuple[str, str], int] = {}

    def method_class(self, name: str) -> type[Method]:
        """Return the class under test, whatever else has its name."""
        return self._methods.get(name)

    def method(self, name: str, settings: Mapping[str, Any]) -> Method:
        """Return a new method object with validated settings."""
        return self._methods.create(name, settings)

    def data(self, name: str, data_dir: Path | None, download: bool, val_fraction: float, seed: int) -> Any:
        """Load a data set, once."""
        key = (name, data_dir, val_fraction, seed if val_fraction else None)
        if key not in self._data:
            self._data[key] = super().data(name, data_dir, download, val_fraction, seed)
        return self._data[key]

    def eval_stream(
        self, data: Any, split: str, batch_size: int, device: torch.device
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Return the first batches of a part."""
        stream = super().eval_stream(data, split, batch_size, device)
        if self._eval_batches is None:
            return stream
        return [batch for batch, _ in zip(stream, range(self._eval_batches), strict=False)]


@dataclass
class Subject:
    """A method under test.

    Attributes:
        model, dataset: what it is tested on.
        quick: use as little time as possible.
    """

    kind: type[Method]
    model: str = "resnet38"
    dataset: str = "digits"
    settings: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False

    @cached_property
    def registries(self) -> ContractRegistries:
        """Registries that evaluate on one batch."""
        return ContractRegistries(self.kind)

    @property
    def eager_settings(self) -> dict[str, Any]:
        """Settings under which everything happens within a few steps."""
        return {**self.kind.contract_settings, **self.settings}

    def config(
        self, settings: Mapping[str, Any], *, steps: int = 6, period: int = 2, batch: int = 8, seed: int = 0,
        lr: float = 0.03, model: str | None = None, dataset: str | None = None,
    ) -> RunConfig:  # fmt: skip
        """A short run.

        Args:
            steps: training steps in all.
            period: steps between two evaluations.
            batch: images per step.
        """
        recipe = {"iterations": steps, "eval_every": period, "batch_size": batch, "lr": lr, "val_fraction": 0.0}
        return RunConfig.create(
            method=self.kind.name, model=model or self.model, dataset=dataset or self.dataset, seed=seed,
            settings=settings, recipe=recipe, registries=self.registries,
        )  # fmt: skip

    def loop(self, config: RunConfig, registries: Registries | None = None) -> TrainingLoop:
        """The run in memory, at its beginning."""
        return TrainingLoop(config, Site(device="cpu"), registries or self.registries)

    def trained(self, config: RunConfig, registries: Registries | None = None) -> TrainingLoop:
        """The run in memory, at its end."""
        loop = self.loop(config, registries)
        while not loop.finished:
            loop.advance()
        return loop

    def prepared(self, settings: Mapping[str, Any]) -> tuple[Method, nn.Module]:
        """A method and the model it has prepared, without a training loop."""
        method = self.registries.method(self.kind.name, settings)
        plain = self.registries.model(self.model, self.dataset, 0)
        find: Any = getattr(plain, "gateable_blocks", list)
        context = MethodContext(steps_per_epoch=2, total_steps=6, batch_size=8, blocks=list(find()))
        return method, method.prepare(plain, context)


def saved_and_loaded(state: Any, what: str) -> Any:
    """Pass a state through ``torch.save`` and ``torch.load(weights_only=True)``, as a checkpoint does.

    Raises:
        ContractViolation: it holds something else than tensors and plain values.
    """
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)
    except Exception as error:  # pickling reports in many ways
        why = str(error).strip().splitlines()
        raise ContractViolation(
            f"{what} cannot be saved and loaded with weights_only=True (tensors and plain values only): "
            f"{type(error).__name__}: {why[0] if why else ''}"
        ) from error


def digest(value: Any) -> str:
    """SHA-256 of nested dicts, sequences, tensors and plain values: equal exactly when all are, types included."""
    total = hashlib.sha256()
    _update_digest(total, value)
    return total.hexdigest()


def _update_digest(total: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous()
        total.update(f"{value.dtype}{tuple(value.shape)}".encode())
        total.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            total.update(f"{key!r}:".encode())
            _update_digest(total, value[key])
    elif isinstance(value, list | tuple):
        total.update(f"{len(value)}[".encode())
        for item in value:
            _update_digest(total, item)
    else:
        total.update(f"{type(value).__name__}={value!r};".encode())


def fingerprint(loop: TrainingLoop) -> dict[str, str]:
    """What must be equal, bit for bit, between two runs that ought to be the same."""
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in loop.lines]
    return {
        "weights": weights_sha256(loop.model), "ledger": loop.ledger.digest(), "metrics": digest(lines),
        "method state": digest(loop.method.state_dict()), "optimizer state": digest(loop.optimizer.state_dict()),
    }  # fmt: skip


def effect(loop: TrainingLoop) -> dict[str, str]:
    """What a setting can change that is seen from outside; the method's own state and metrics may just repeat it."""
    hidden = (*TIMES, "method")
    lines = [{k: v for k, v in line.items() if k not in hidden} for line in loop.lines]
    return {"weights": weights_sha256(loop.model), "ledger": loop.ledger.digest(), "metrics": digest(lines)}


def require_equal(one: Mapping[str, str], other: Mapping[str, str], what: str) -> None:
    """Compare two fingerprints.

    Raises:
        ContractViolation: they differ; the message says in what.
    """
    differ = [name for name in one if one[name] != other[name]]
    if differ:
        raise ContractViolation(f"{what}: {', '.join(differ)} differ")
