"""From the plain model to the low-precision one and back: weights by plain names, the model itself."""

from __future__ import annotations

import copy

import pytest
import torch
from field_models import Encoder, UNet
from layer_models import Residual, batches, chain, seeded
from torch import nn
from torchvision.models import mnasnet0_5, resnet18

import fractrain
from fractrain.layers.base import QuantLayer
from fractrain.util.errors import ConfigError

CASES = pytest.mark.parametrize(
    ("method", "build"),
    [
        ("dfq", Residual), ("dfq", lambda: resnet18(num_classes=4)), ("sbm", chain), ("sbm", UNet), ("pfq", Encoder),
        ("static8", Encoder), ("fp32", chain), ("slu", Residual),
    ],
    ids=["dfq", "dfq torchvision", "sbm", "sbm U-Net", "pfq", "static8", "fp32", "slu"],
)  # fmt: skip


def trained(method: str, build, steps: int = 2) -> fractrain.Session:
    session = fractrain.attach(method, seeded(build))
    optimizer = torch.optim.SGD(session.model.parameters(), 0.05)
    for x, y in batches(steps, side=32):
        session.loss(nn.functional.cross_entropy(session.model(x), y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    return session


@CASES
def test_trained_weights_go_into_the_plain_model_and_come_back(method: str, build) -> None:
    session = trained(method, build)
    state = copy.deepcopy(session.plain_state_dict())
    plain = seeded(build, 1)
    plain.load_state_dict(state)  # strict: all names, no others
    other = fractrain.attach(method, seeded(build, 2))
    other.load_plain(plain.state_dict())
    for name, value in other.plain_state_dict().items():
        assert torch.equal(value, state[name]), name


@CASES
def test_detach_gives_the_plain_model_with_the_trained_weights(method: str, build) -> None:
    session = trained(method, build)
    state = copy.deepcopy(session.plain_state_dict())
    parameters = {id(p) for p in session.model.parameters()}
    plain = session.detach()
    assert type(plain) is type(seeded(build))
    assert not [m for m in plain.modules() if isinstance(m, QuantLayer)]
    assert [type(m) for m in plain.modules()] == [type(m) for m in seeded(build).modules()]
    assert not [m for m in plain.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert {id(p) for p in plain.parameters()} <= parameters
    want = seeded(build, 1)
    want.load_state_dict(state)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, want.state_dict()[name]), name
    x = next(batches(1, side=32))[0]
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), want.eval()(x))
    with pytest.raises(ConfigError, match="was detached"):
        session.plain_state_dict()
    assert fractrain.attach(method, plain).model is plain


class Versioned(nn.Conv2d):
    """Loads no state that does not say its version, as torchvision's MNASNet."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest) -> None:
        assert local_metadata.get("version") == 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize(
    "build", [lambda: mnasnet0_5(num_classes=4), lambda: nn.Sequential(Versioned(3, 4, 3), nn.Conv2d(4, 4, 1))]
)
def test_versions_of_modules_states_go_with_weights(build, tmp_path) -> None:
    session = fractrain.attach("fp32", seeded(build))
    written = torch.load(session.export(tmp_path / "a.pt"), weights_only=True)["weights"]
    for state in (session.plain_state_dict(), written):
        plain = seeded(build, 1)
        plain.load_state_dict(state)
        assert torch.equal(next(plain.parameters()), next(session.model.parameters()))


def test_a_method_that_keeps_no_counterpart_says_so() -> None:
    session = trained("sbm", chain)
    session._plain._tensors["1.running_mean"] = torch.zeros(8)  # type: ignore[union-attr]
    for call in (session.plain_state_dict, session.detach):
        with pytest.raises(ConfigError, match=r"no counterpart of 1 tensors of the plain Sequential \(1.running_mean"):
            call()


def test_buffers_that_moved_to_another_type_come_back() -> None:
    session = trained("sbm", chain)
    session.model.double()
    plain = session.detach()
    assert {t.dtype for t in plain.state_dict().values() if t.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("build", [chain, Residual])
def test_other_weights_are_refused_and_nothing_is_changed(build) -> None:
    session = fractrain.attach("sbm", seeded(build))
    before = copy.deepcopy(session.plain_state_dict())
    state = dict(seeded(build, 1).state_dict())
    name = next(iter(state))
    with pytest.raises(ConfigError, match=r"1 names missing \(.*\), 1 unknown \(extra, ...\)") as error:
        session.load_plain({**{k: v for k, v in state.items() if k != name}, "extra": state[name]})
    assert "\n" not in str(error.value)
    last = list(state)[-1]
    with pytest.raises(ConfigError, match=f"{last} has shape"):
        session.load_plain({**state, last: torch.zeros(1, 2, 3)})
    assert all(torch.equal(v, before[k]) for k, v in session.plain_state_dict().items())
