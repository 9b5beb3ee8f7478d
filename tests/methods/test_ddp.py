"""A session's model inside ``DistributedDataParallel`` on two ranks, against one rank on the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ddp_job import train
from rank_pairs import distance, launch

JOB = Path(__file__).parents[1] / "support" / "ddp_job.py"


def matrices(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of layers: biases and norms begin at zero or one, and their few steps are all there is of them."""
    return {name: t for name, t in state.items() if t.dim() > 1}


@pytest.mark.parametrize("kind", ["layers", "own code"])
@pytest.mark.parametrize(("method", "apart"), [("fp32", 1e-4), ("sbm", 0.02)])
def test_two_ranks_train_as_one(method: str, apart: float, kind: str, tmp_path: Path) -> None:
    """In floating point up to the order of sums; at 8 bits each rank has ranges of its own samples besides."""
    ended = launch([str(JOB), method, kind, str(tmp_path / "weights")])
    assert [code for code, _, _ in ended] == [0, 0], "\n".join(errors for _, _, errors in ended)
    ranks = [torch.load(tmp_path / f"weights.{rank}", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    alone = matrices(train(method, kind, lambda model: model, 0, 1))
    assert distance(alone, matrices(ranks[0])) < apart
    half = matrices(train(method, kind, lambda model: model, 0, 2))
    assert distance(alone, half) > 2 * distance(alone, matrices(ranks[0]))
