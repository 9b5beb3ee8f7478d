"""What of a training loop goes into a checkpoint, and how a loop goes back to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from fractrain.util.errors import CheckpointError

if TYPE_CHECKING:
    from fractrain.engine.loop import TrainingLoop

AGAIN: Final = "start again: delete the run's folder, or `fractrain run` with --force"  # reproduce has no such option


def snapshot(loop: TrainingLoop) -> dict[str, Any]:
    """Return all that changes while training, as tensors and plain values; on several processes, of all of them.

    All processes of the run must call it. What it returns does not depend on how many there are.
    """
    loop.ranks.sum_ledger(loop.ledger)
    if loop.ranks.several:
        loop.replaced.before = {k: v for images in loop.ranks.gather(loop.replaced.images) for k, v in images.items()}
    cuda = torch.cuda.get_rng_state(loop.device) if loop.device.type == "cuda" else None
    return {
        "model": loop.model.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "method": loop.method.state_dict(),
        "ledger": loop.ledger.state_dict(),
        "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
        "cursor": {"epoch": loop.epoch, "step": loop.step},
        "sums": {"loss": loop.loss_sum, "correct": loop.correct, "samples": loop.samples},
        "lines": loop.lines,
        "seconds": loop.seconds,
        "data_digest": loop.data_digest,
        "replaced": loop.replaced.images,
    }


def restore(loop: TrainingLoop, state: dict[str, Any]) -> None:
    """Put a loop, its sums at zero, back to where :func:`snapshot` was called.

    Raises:
        CheckpointError: the state does not fit this run's model, method or data.
    """
    if state.get("data_digest") != loop.data_digest:
        raise CheckpointError(
            f"run {loop.config.run_id}: the data has changed since the checkpoint; restore it, or {AGAIN}"
        )
    try:
        loop.model.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])
        loop.method.load_state_dict(state["method"])
        loop.ledger.load_state_dict(state["ledger"])
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"run {loop.config.run_id}: the checkpoint does not fit the installed code ({reason}); {AGAIN}"
        ) from error
    loop.epoch, loop.step = state["cursor"]["epoch"], state["cursor"]["step"]
    loop.ledger.begin("train", loop.epoch)
    if not loop.ranks.first:
        loop.ledger.clear()
    loop.lines = list(state["lines"])
    loop.replaced.before = dict(state.get("replaced", {}))
    loop.loss_sum.copy_(state["sums"]["loss"])
    loop.correct.copy_(state["sums"]["correct"])
    loop.samples = state["sums"]["samples"]
    loop.restart_clock(state["seconds"])
    torch.set_rng_state(state["rng"]["cpu"])
    if loop.device.type == "cuda" and state["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(state["rng"]["cuda"], loop.device)
    loop.ranks.reseed(loop.config.seed, loop.step)
