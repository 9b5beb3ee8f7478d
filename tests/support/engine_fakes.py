"""A tiny model, method and data set with every kind of state that a checkpoint can lose; registries that know them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from fractrain.cost.ledger import Entry
from fractrain.engine.config import RunConfig
from fractrain.engine.registries import Registries
from fractrain.methods.base import Method, MethodContext, MethodSettings
from fractrain.util.errors import ConfigError, NonFiniteError
from fractrain.util.seeds import derive_seed

CLASSES = 3
SHAPE = (2, 6, 6)


class FakeMethod(Method):
    """Adds noise, counts, moves a stage, and has an extra loss."""

    name = "fake"

    class Settings(MethodSettings):
        bits: int = 8
        noise: float = 0.01
        bad_step: int = -1
        bad_kind: str = "loss"
        stages: tuple[int, ...] = (1, 2)

    def __init__(self, settings: MethodSettings | None = None, **values: Any) -> None:
        super().__init__(settings, **values)
        self.calls: list[str] = []
        self.stage = 0
        self.trace = torch.zeros(2)
        self.history: list[float] = []

    def convert(self, model: nn.Module, context: MethodContext) -> nn.Module:
        self.calls.append("prepare")
        self.model = model
        model.register_forward_hook(self._count)
        return model

    def _count(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        ledger = self.context.ledger
        rows = len(output)
        bits = self.settings.bits + self.stage
        ledger.count(f"conv@{bits}", rows, lambda: [Entry("conv", "FW", bits, bits, 100)])
        chosen = (output.detach().argmax(dim=1) % 2).bincount(minlength=2)
        ledger.count_selected(("a", "b"), chosen, lambda k: [Entry("conv", "GC", 4 + k, 4, 10)])
        if self.settings.bad_kind == "layer" and module.training and self.state.step == self.settings.bad_step:
            raise NonFiniteError("activation holds nan", layer="body.bn")

    def on_epoch_start(self, epoch: int) -> None:
        self.calls.append(f"epoch_start {epoch}")

    def on_step_start(self, step: int) -> None:
        super().on_step_start(step)
        self.calls.append(f"step_start {step}")
        if self.settings.bad_kind == "loss" and step == self.settings.bad_step:
            with torch.no_grad():
                self.model.conv.weight[0, 0, 0, 0] = float("nan")

    def extra_loss(self) -> torch.Tensor | None:
        self.calls.append("extra_loss")
        return self.settings.noise * self.model.head.weight.square().mean() if self.stage else None

    def on_step_end(self, step: int, loss: torch.Tensor, extra: torch.Tensor | None = None) -> None:
        assert not loss.requires_grad
        self.calls.append(f"step_end {step}")
        self.trace = 0.9 * self.trace + torch.stack([loss, torch.rand(())])  # draws from torch's generator
        with torch.no_grad():
            self.model.head.bias.add_(self.settings.noise * self.trace.mean())

    def on_epoch_end(self, epoch: int, loss: float) -> None:
        self.calls.append(f"epoch_end {epoch}")
        self.history.append(loss)
        self.stage += 1

    def metrics(self) -> dict[str, float]:
        return {"stage": self.stage}

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "trace": self.trace, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stage, self.trace, self.history = state["stage"], state["trace"].clone(), list(state["history"])


class FakeModel(nn.Module):
    """Convolution, batch norm, dropout, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(SHAPE[0], 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.bn(self.conv(x)).relu().mean(dim=(2, 3))))

    def gateable_blocks(self) -> list[str]:
        return ["conv"]


class FakeStream:
    def __init__(self, x: torch.Tensor, y: torch.Tensor, batch_size: int, seed: int | None) -> None:
        self.x, self.y, self.size, self.seed = x, y, batch_size, seed

    def __len__(self) -> int:
        return -(-len(self.y) // self.size)

    def batch(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.arange(len(self.y))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            order = torch.randperm(len(self.y), generator=generator)
        part = order[index * self.size : (index + 1) * self.size]
        return self.x[part], self.y[part]

    def __iter__(self) -> Any:
        return (self.batch(0, index) for index in range(len(self)))


class FakeRegistries(Registries):
    """Knows one method, one model, one data set; remembers the methods it made."""

    def __init__(self, digest: str = "data", train: int = 36) -> None:
        self.digest, self.train = digest, train
        self.made: list[FakeMethod] = []

    def method_class(self, name: str) -> type[Method]:
        if name != "fake":
            raise ConfigError(f"unknown method {name!r}")
        return FakeMethod

    def method(self, name: str, settings: Any) -> Method:
        self.made.append(FakeMethod(FakeMethod.Settings(**settings)))
        return self.made[-1]

    def dataset_info(self, name: str) -> Any:
        embedded = not name.startswith("cifar")
        return SimpleNamespace(name=name, classes=CLASSES, shape=SHAPE, embedded=embedded, recipe={}, train_size=50_000)

    def mismatch(self, model: str, dataset: str) -> str | None:
        return "it takes images" if dataset == "text" else None

    def model(self, name: str, dataset: str, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            return FakeModel()

    def forward_macs(self, model: nn.Module, dataset: str) -> int:
        return 110

    def data(self, name: str, data_dir: Any, download: bool, val_fraction: float, seed: int) -> Any:
        generator = torch.Generator().manual_seed(7)
        sizes = {"train": self.train, "val": 9, "test": 12}
        parts: dict[str, Any] = {}
        for split, n in sizes.items():
            y = torch.arange(n) % CLASSES
            x = torch.randn(n, *SHAPE, generator=generator) + y.view(-1, 1, 1, 1)
            parts[split] = (x, y)
        if not val_fraction:
            parts["val"] = None
        return SimpleNamespace(**parts, info=self.dataset_info(name), digest=self.digest)

    def train_stream(self, data: Any, batch_size: int, seed: int, device: Any, augment: bool) -> Any:
        return FakeStream(*data.train, batch_size, seed)

    def eval_stream(self, data: Any, split: str, batch_size: int, device: Any) -> Any:
        return FakeStream(*getattr(data, split), batch_size, None)

    def costs(self, ledger: Any, best_epoch: int) -> dict[str, Any]:
        return {"best_epoch": best_epoch, "macs": sum(row.macs for row in ledger.rows())}

    def cp(self, ledger: Any) -> float | None:
        return 6.25


def fake_config(settings: dict[str, Any] | None = None, seed: int = 0, **recipe: Any) -> RunConfig:
    """Four epochs of four batches (the last one smaller), with a validation part."""
    values = {
        "iterations": 16,
        "lr": 0.1,
        "eval_every": 0,
        "batch_size": 10,
        "milestones": [8],
        "val_fraction": 0.1,
        **recipe,
    }
    return RunConfig.create(
        method="fake",
        model="tiny",
        dataset="digits",
        seed=seed,
        settings=settings or {},
        recipe=values,
        registries=FakeRegistries(),
    )
