"""Checks of training itself: it learns, resumes, repeats, saves all of its state, and leaves the process as it was."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn

from fractrain.methods.base import Method
from fractrain.methods.card import declared_precisions
from fractrain.numerics.precision import Operand, Precision
from fractrain.testing.global_state import GlobalState, generator_state
from fractrain.testing.report import ContractViolation
from fractrain.testing.subject import (
    ContractRegistries,
    Subject,
    digest,
    fingerprint,
    require_equal,
    saved_and_loaded,
)

LEARN_STEPS, QUICK_STEPS, LEARN_PERIOD, LEARN_BATCH, LEARN_RATE = 240, 120, 30, 32, 0.02
SIGMAS: Final = 5.0  # guessing is above this once in three million tests


class _Neutral(Method):
    """Does nothing."""

    name = "neutral"


def learns(subject: Subject) -> str:
    """The training loss falls, and the test accuracy is above what guessing can reach."""
    most = QUICK_STEPS if subject.quick else LEARN_STEPS
    config = subject.config(subject.settings, steps=most, period=LEARN_PERIOD, batch=LEARN_BATCH, lr=LEARN_RATE)
    info = subject.registries.dataset_info(subject.dataset)
    chance = 1 / info.classes
    bar = 100 * (chance + SIGMAS * math.sqrt(chance * (1 - chance) / info.test_size))
    loop = subject.loop(config, ContractRegistries(subject.kind, eval_batches=None))
    falls = above = False
    while not (loop.finished or (falls and above)):
        loop.advance()
        if len(loop.lines) > 1:
            falls = loop.lines[-1]["train_loss"] < loop.lines[0]["train_loss"]
            above = loop.lines[-1]["test_accuracy"] > bar
    first, last = loop.lines[0]["train_loss"], loop.lines[-1]["train_loss"]
    accuracy = loop.lines[-1]["test_accuracy"]
    found = f"test accuracy {accuracy:.1f} % after {loop.step} steps (guessing stays below {bar:.1f} %)"
    if not falls:
        raise ContractViolation(
            f"the training loss does not fall: {first:.3f} in the first period, {last:.3f} in the last"
        )
    if not above:
        raise ContractViolation(f"it does not learn: {found}")
    return found


def resume(subject: Subject) -> str:
    """A run that was saved, loaded and continued ends with the same bits as one that was not interrupted."""
    config = subject.config(subject.eager_settings)
    expected = fingerprint(subject.trained(config))
    # Before the evaluation that ends the second of three epochs, and within the third.
    cuts = (5,) if subject.quick else (5, 7)
    for cut in cuts:
        loop = subject.loop(config)
        for _ in range(cut):
            loop.advance()
        state = saved_and_loaded(loop.state_dict(), "the state of a run")
        torch.manual_seed(1)  # what a new process starts with must not matter
        again = subject.loop(config)
        torch.manual_seed(2)
        again.load_state_dict(state)
        while not again.finished:
            again.advance()
        where = f"resumed at step {loop.step} of {loop.clock.total}, the run ends differently from an uninterrupted one"
        require_equal(expected, fingerprint(again), where)
    return f"bit-identical, interrupted {len(cuts)} times"


def deterministic(subject: Subject) -> str:
    """The same seed gives the same bits, whatever ran before and beside it; another seed gives others."""
    config = subject.config(subject.eager_settings, steps=4)
    expected = fingerprint(subject.trained(config))
    require_equal(expected, fingerprint(subject.trained(config)), "two runs with one seed")
    other = subject.config(subject.eager_settings, steps=4, seed=1)
    beside = _side_by_side(subject, config, other)
    require_equal(expected, beside[0], "the run changes when another one of the method runs beside it (shared state)")
    if beside[1]["weights"] == expected["weights"]:
        raise ContractViolation("another seed gives the same weights")
    return "bit-identical, also beside another run"


def _side_by_side(subject: Subject, *configs: Any) -> list[dict[str, str]]:
    """Advance several runs in turn, each with a torch generator of its own."""
    loops, states = [], []
    for config in configs:
        loops.append(subject.loop(config))
        states.append(torch.get_rng_state())
    while not all(loop.finished for loop in loops):
        for i, loop in enumerate(loops):
            torch.set_rng_state(states[i])
            loop.advance()
            states[i] = torch.get_rng_state()
    return [fingerprint(loop) for loop in loops]


def state_dict(subject: Subject) -> str:
    """What ``state_dict`` returns can be saved safely, and loading it restores method, precision and model."""
    config = subject.config(subject.eager_settings)
    loop = subject.loop(config)
    for _ in range(7):
        loop.advance()
    raw = loop.method.state_dict()
    if not isinstance(raw, dict):
        raise ContractViolation(f"state_dict() returns {type(raw).__name__}, not a dict")
    state = saved_and_loaded(raw, "state_dict()")
    fresh = subject.loop(config)
    fresh.model.load_state_dict(loop.model.state_dict())
    fresh.method.load_state_dict(state)
    if digest(fresh.method.state_dict()) != digest(raw):
        raise ContractViolation("state_dict() of the method that loaded a state differs from the state")
    for site, (mine, theirs) in _precisions(loop.model, fresh.model).items():
        if mine != theirs:
            raise ContractViolation(f"load_state_dict() does not restore the precision of {site}: {theirs} for {mine}")
    x, _ = loop.stream.batch(*loop.clock.data(0))
    outputs = []
    for one in (loop, fresh):
        one.model.eval()
        one.method.on_step_start(loop.step)
        with torch.no_grad():
            outputs.append(one.model(x))
    if not torch.equal(*outputs):
        raise ContractViolation("after loading, the model's output in evaluation differs")
    return f"{len(raw)} entries"


def _precisions(one: nn.Module, other: nn.Module) -> dict[str, tuple[str, str]]:
    """Operands of every layer in two models, described."""
    pairs = zip(declared_precisions(one).items(), declared_precisions(other).items(), strict=True)
    return {a.site: (_described(of_a()), _described(of_b())) for (a, of_a), (_, of_b) in pairs}


def _described(precisions: list[Precision]) -> str:
    told = [f"{n} {o.describe()}{_map_of(o)}" for p in precisions for n, o in p.operands().items()]
    return "; ".join(told)


def _map_of(op: Operand) -> str:
    return f" {digest(op.bits)[:8]}" if isinstance(op.bits, torch.Tensor) else ""


def no_global_state(subject: Subject) -> str:
    """Preparing a model draws from no global generator; a run changes no setting of the process and patches nothing."""
    # What the first run of a process imports (data, torch's compiler) changes the environment: not the method's doing.
    neutral = Subject(_Neutral, subject.model, subject.dataset)
    neutral.trained(neutral.config({}, steps=1, period=1, batch=2))
    torch.compile(lambda: None, backend="eager")()  # from the first compiled call on torch marks new modules
    surroundings = GlobalState.capture()
    before = generator_state()
    subject.prepared(subject.eager_settings)
    changed = [name for name, value in generator_state().items() if value != before[name]]
    if changed:
        raise ContractViolation(
            f"prepare() changes {', '.join(changed)}: draw from a generator seeded by "
            "fractrain.util.seeds.derive_seed(context.seed, ...), or inside torch.random.fork_rng"
        )
    subject.trained(subject.config(subject.eager_settings, steps=2))
    left = surroundings.changes()
    if left:
        raise ContractViolation(f"a run leaves the process changed: {', '.join(left[:5])}")
    return "generators, torch's settings, environment and modules as before"
