"""What the contract of hardware models prices: shapes of the package's models, and ledgers of real training steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import torch

from fractrain.cost.hardware.base import LayerShape
from fractrain.cost.ledger import Ledger
from fractrain.cost.price import Counts
from fractrain.data import registry as datasets
from fractrain.methods.session import attach
from fractrain.models import registry
from fractrain.models.layer_shapes import layer_shapes
from fractrain.models.macs import forward_macs
from fractrain.util.errors import ConfigError

MAPPED: Mapping[str, Mapping[str, Any]] = {"dfq": {}, "dynasty": {"refresh": 1, "observe": 1}}
"""Methods with widths per sample and per tile, with settings under which they vary at once."""
EMBEDDED = ("digits", "digits32", "docs_text")
SHAPE, CLASSES, BATCH = (3, 8, 8), 10, 8


@lru_cache(maxsize=32)
def package_shapes(model: str) -> Mapping[str, LayerShape]:
    """Shapes of a registered model's layers on the first embedded data set that it can be trained on.

    Raises:
        ConfigError: there is none.
    """
    for name in EMBEDDED:
        info = datasets.info(name)
        if registry.compatible(model, cast(Any, info)) is None:
            return layer_shapes(lambda info=info: registry.build(model, info.classes, info.shape), info.shape)  # type: ignore[misc]
    raise ConfigError(f"{model} can be trained on none of {', '.join(EMBEDDED)}")


@lru_cache(maxsize=8)
def trained(method: str) -> tuple[Counts, Mapping[str, LayerShape]]:
    """Counts of two training steps of a method on a small residual network, and the shapes of its layers."""
    model = registry.build("resnet38", CLASSES, SHAPE)
    macs = forward_macs(model, SHAPE)
    session = attach(method, model, batch_size=BATCH, total_steps=2, **MAPPED[method])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(session.model.parameters(), lr=1e-3)
    for _ in range(2):
        x = torch.rand((BATCH, *SHAPE), generator=generator)
        y = torch.randint(CLASSES, (BATCH,), generator=generator)
        session.loss(torch.nn.functional.cross_entropy(session.model(x), y)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    ledger: Ledger = session.ledger
    ledger.meta |= {"batch_size": BATCH, "forward_macs": macs}
    return Counts.from_ledger(ledger), layer_shapes(lambda: registry.build("resnet38", CLASSES, SHAPE), SHAPE)
