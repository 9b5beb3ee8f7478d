"""The check of the optimizer that a method makes."""

from __future__ import annotations

from typing import Any

import torch

from fractrain.engine.loop import TrainingLoop
from fractrain.testing.global_state import generator_state
from fractrain.testing.report import ContractViolation
from fractrain.testing.subject import Subject, digest, saved_and_loaded
from fractrain.util.digests import weights_sha256


def optimizer(subject: Subject) -> str:
    """The optimizer moves every parameter, rests at a rate of zero, draws no global noise, and is saved whole."""
    config = subject.config(subject.eager_settings)
    loop = subject.loop(config)
    given = {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
    left_out = [n for n, p in loop.model.named_parameters() if p.requires_grad and id(p) not in given]
    if left_out:
        raise ContractViolation(f"the optimizer does not have {len(left_out)} parameters, the first is {left_out[0]}")
    for _ in range(3):
        loop.advance()
    state = saved_and_loaded(loop.optimizer.state_dict(), "the optimizer's state_dict()")
    fresh = subject.loop(config)
    fresh.model.load_state_dict(loop.model.state_dict())
    fresh.method.load_state_dict(loop.method.state_dict())
    fresh.optimizer.load_state_dict(state)
    if digest(fresh.optimizer.state_dict()) != digest(loop.optimizer.state_dict()):
        raise ContractViolation("state_dict() of the optimizer that loaded a state differs from the state")
    for one, other in zip(loop.model.parameters(), fresh.model.parameters(), strict=True):
        other.grad = None if one.grad is None else one.grad.clone()
    for one in (loop, fresh):
        _update_without_drawing(one, loop.step)
    if weights_sha256(loop.model) != weights_sha256(fresh.model):
        raise ContractViolation("an optimizer that loaded the state of another makes another update of equal gradients")
    _check_zero_learning_rate(loop)
    return f"{len(given)} parameters, {len(state['state'])} with a state"


def _update_without_drawing(loop: TrainingLoop, step: int) -> None:
    """Update the weights once more by the gradients that are there."""
    loop.method.on_step_start(step)
    before = generator_state()
    loop.optimizer.step()
    changed = [name for name, value in generator_state().items() if value != before[name]]
    if changed:
        raise ContractViolation(
            f"the optimizer draws from {', '.join(changed)}: on several processes each would round otherwise; derive "
            "noise from self.state.noise(name)"
        )


def _check_zero_learning_rate(loop: TrainingLoop) -> None:
    """Make an update at a learning rate of zero, which the engine sets as a number."""
    before: dict[str, Any] = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
    for group in loop.optimizer.param_groups:
        group["lr"] = 0.0
    loop.optimizer.step()
    moved = [n for n, p in loop.model.named_parameters() if not torch.equal(p, before[n])]
    if moved:
        raise ContractViolation(
            f"the optimizer does not follow the group's lr: at 0 {len(moved)} parameters move, the first is {moved[0]}"
        )
