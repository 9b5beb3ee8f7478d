"""Copies of a quantized model, and the modes a forward pass can run in: what they count and what they leave alone."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from layer_models import Residual, Waves, batches, chain, group_norm, seeded
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fractrain
from fractrain.cost import metrics
from fractrain.layers.convert import quant_layers
from fractrain.methods import registry

METHODS = registry.names()
OPTIONS = {"cpt": {"total_steps": 8}, "slu": {"bits": 8, "grad_bits": 8}}
EVERY = pytest.mark.parametrize("method", METHODS)
TWO = pytest.mark.parametrize("build", [Residual, Waves])


def attach(method: str, build: Callable[[], nn.Module] = Residual) -> fractrain.Session:
    return fractrain.attach(method, seeded(build), **OPTIONS.get(method, {}))


def train(session: fractrain.Session, steps: int, between: Callable[[], object] = lambda: None) -> list[torch.Tensor]:
    optimizer = session.optimizer(lr=0.05)
    for x, y in batches(steps):
        loss = session.loss(nn.functional.cross_entropy(session.model(x), y))
        between()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    return [p.detach().clone() for p in session.model.parameters()]


def rows(session: fractrain.Session, phase: str = "train") -> dict[tuple[str, str, int, int], int]:
    found: dict[tuple[str, str, int, int], int] = {}
    for r in session.ledger.rows():
        if r.phase == phase:
            key = (r.layer, r.product, r.bits1, r.bits2)
            found[key] = found.get(key, 0) + r.macs
    return found


# -- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Residual, chain])
@pytest.mark.parametrize("method", ["sbm", "dfq"])
def test_evaluating_an_average_of_the_weights_counts_nothing(method: str, build) -> None:
    if build is chain and method == "dfq":
        pytest.skip("no residual block to gate")
    session = attach(method, build)
    train(session, 1)
    before, cp = session.ledger.digest(), session.costs()["cp_percent"]
    ema = AveragedModel(session.model)
    ema.update_parameters(session.model)
    for x, _ in batches(3):
        ema(x)  # in training mode
        ema.eval()(x)
    assert session.ledger.digest() == before
    assert session.costs()["cp_percent"] == cp


@pytest.mark.parametrize(("method", "build"), [("sbm", chain), ("fractrain", Residual), ("slu", Residual)])
def test_running_a_copy_between_forward_and_backward_changes_nothing(method: str, build) -> None:
    seen: list[int] = []
    other, session = attach(method, build), attach(method, build)
    for layer in (*quant_layers(other.model), *quant_layers(session.model)):
        layer.backward_observer = lambda layer, _: seen.append(layer.state.step)
    plain = train(other, 4)
    seen.clear()
    copies = [copy.deepcopy(session.model).eval()]
    x = next(batches(1))[0]

    def run_copy() -> None:
        copies.append(copy.deepcopy(session.model))
        copies[0](x)
        copies[-1](x)

    for a, b in zip(plain, train(session, 4, run_copy), strict=True):
        assert torch.equal(a, b)
    assert sorted(set(seen)) == [0, 1, 2, 3]


def test_a_copy_goes_on_by_itself_and_counts_when_told_to() -> None:
    session = attach("sbm", chain)
    train(session, 2)
    twin = copy.deepcopy(session.model)
    state = next(quant_layers(twin)).state
    assert {id(layer.state) for layer in quant_layers(twin)} == {id(state)}
    assert state is not session.method.state
    assert (state.seed, state.step) == (session.method.state.seed, session.method.state.step)
    state.ledger.enabled = True
    x = next(batches(1))[0]
    twin(x)
    assert {r.layer for r in state.ledger.rows()} == {layer.site for layer in quant_layers(twin)}
    before = session.ledger.digest()
    twin(x)
    assert session.ledger.digest() == before


def test_saved_models_load_in_another_process(tmp_path: Path) -> None:
    """Of every method, plugins included; all in one process."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from fractrain.layers.convert import convert\n"
        "from fractrain.methods.base import Method\n"
        "from fractrain.numerics.precision import fractrain_precision\n"
        "class Mine(Method):\n"
        "    'A method of one file.'\n"
        "    name = 'mine'\n"
        "    def convert(self, model, context):\n"
        "        return convert(model, fractrain_precision(4, 4, 8), self.state)\n"
    )
    x = next(batches(1))[0]
    script = ["import sys, torch", f"sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRACTRAIN_PLUGINS", str(plugin))
        want = {}
        cases = [*((method, Residual) for method in (*METHODS, "mine")), *((m, Waves) for m in ("fp8", "dfq", "mine"))]
        for method, build in cases:
            session, name = attach(method, build), f"{method} {build.__name__}"
            train(session, 1)
            torch.save(session.model, tmp_path / f"{name}.pt")
            want[name] = session.model.eval()(x)
            script.append(f"m = torch.load({str(tmp_path / f'{name}.pt')!r}, weights_only=False).eval()")
            script.append(f"torch.save(m(torch.load({str(tmp_path / 'x')!r})), {str(tmp_path / f'{name}.out')!r})")
        torch.save(x, tmp_path / "x")
        done = subprocess.run([sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name, y in want.items():
        assert torch.equal(torch.load(tmp_path / f"{name}.out"), y), name


# -- modes -----------------------------------------------------------------------------------------------------------


@TWO
@EVERY
def test_inference_mode_gives_what_no_grad_gives(method: str, build) -> None:
    session = attach(method, build)
    train(session, 2)
    x = next(batches(1))[0]
    for mode in (False, True):  # evaluation changes no statistics
        twin = copy.deepcopy(session.model).train(mode)
        other = copy.deepcopy(session.model).train(mode)
        with torch.no_grad():
            want = twin(x)
        with torch.inference_mode():
            assert torch.equal(other(x), want)
        for a, b in zip(twin.buffers(), other.buffers(), strict=True):
            assert torch.equal(a, b)


@TWO
@EVERY
def test_training_mode_without_gradients_counts_forward_products_only(method: str, build) -> None:
    session = attach(method, build)
    with torch.no_grad():
        for x, _ in batches(2):
            session.model(x)
    assert {product for _, product, *_ in rows(session)} == {"FW"}
    assert metrics.raw_macs(session.ledger) > 0


@pytest.mark.parametrize("build", [lambda: Residual(group_norm), Waves], ids=["Residual", "Waves"])
@EVERY
def test_training_goes_on_after_inference_mode(method: str, build) -> None:
    plain = train(attach(method, build), 3)
    session = attach(method, build)

    def evaluate() -> None:
        session.model.eval()
        with torch.inference_mode():
            session.model(next(batches(1))[0])
        session.model.train()

    for a, b in zip(plain, train(session, 3, evaluate), strict=True):
        assert torch.equal(a, b)
