"""One rank of a model with a method attached, inside ``DistributedDataParallel``; writes its weights."""

from __future__ import annotations

import sys

import torch
from layer_models import Residual, group_norm, seeded
from own_code_models import Words
from torch import distributed, nn

import fractrain

STEPS, BATCH = 3, 8
MODELS = {"layers": lambda: Residual(group_norm), "own code": Words}


def train(method: str, kind: str, model_of, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Train on this rank's half of every batch (or on all of it); return the weights by plain names."""
    options = {}
    if kind == "own code":
        options = {"example_inputs": torch.randn(2, 3, 8, 8), **({"layers": "all"} if method == "sbm" else {})}
    session = fractrain.attach(method, seeded(MODELS[kind]), **options)
    model = model_of(session.model)
    optimizer = torch.optim.SGD(session.model.parameters(), 0.05)
    for step in range(STEPS):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(BATCH, 3, 8, 8, generator=g), torch.randint(0, 4, (BATCH,), generator=g)
        x, y = (t.chunk(world)[rank] for t in (x, y))
        session.loss(nn.functional.cross_entropy(model(x), y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    if kind == "own code":
        assert session.report().percent("float" if method == "fp32" else "quantized") > 99  # sbm: not the last layer
    return session.plain_state_dict()


if __name__ == "__main__":
    method, kind, path = sys.argv[1:]
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.save(train(method, kind, nn.parallel.DistributedDataParallel, rank, 2), f"{path}.{rank}")
    distributed.destroy_process_group()
