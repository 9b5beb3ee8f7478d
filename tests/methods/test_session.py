"""FracTrain in a loop of one's own: the text of docs/library.md and the README, executed."""

import re
from pathlib import Path

import pytest
import torch

import fractrain
from fractrain.models.registry import build
from fractrain.util.errors import ConfigError

ROOT = Path(__file__).parents[2]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_examples_on_the_page_run_as_printed(page: str) -> None:
    blocks = python_blocks(page)
    assert blocks
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(8, 3, 32, 32, generator=generator), torch.randint(0, 10, (8,), generator=generator))
        for _ in range(2)
    ]
    names = {"loader": data, "torch": torch}
    for block in blocks:
        exec(block, names)
    session = names["session"]
    assert isinstance(session, fractrain.Session)
    costs = session.costs()
    assert 0 < costs["cp_percent"] < 6.25  # cheaper than static 8-bit: the gates' candidates are at most 6/4/12 bits
    assert costs["effective_macs"] < costs["raw_macs"]


def small_loop(session: fractrain.Session, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for i in steps:
        g = torch.Generator().manual_seed(i)
        x, y = torch.randn(4, 3, 16, 16, generator=g), torch.randint(0, 10, (4,), generator=g)
        session.loss(torch.nn.functional.cross_entropy(session.model(x), y)).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
        if i % 2:
            session.epoch()


def make() -> tuple[fractrain.Session, torch.optim.Optimizer]:
    session = fractrain.attach("fractrain", build("resnet38", 10, (3, 16, 16)), window=2, epsilon=10.0)
    return session, torch.optim.SGD(session.model.parameters(), lr=0.05, momentum=0.9)


def test_a_session_resumed_from_its_state_goes_on_bit_for_bit() -> None:
    straight, optimizer = make()
    small_loop(straight, optimizer, range(5))
    first, optimizer = make()
    small_loop(first, optimizer, range(3))
    saved = (first.model.state_dict(), optimizer.state_dict(), first.state_dict())
    second, optimizer = make()
    second.model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    small_loop(second, optimizer, range(3, 5))
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert straight.ledger.digest() == second.ledger.digest()
    assert straight.method.metrics()["stage"] == second.method.metrics()["stage"] == 1


def test_calls_in_the_wrong_order_say_so() -> None:
    session, _ = make()
    with pytest.raises(RuntimeError, match=r"session\.loss"):
        session.step()
    with pytest.raises(RuntimeError, match=r"session\.step"):
        session.epoch()


def test_unknown_setting_is_one_line_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'target_cp'") as error:
        fractrain.attach("fractrain", torch.nn.Conv2d(3, 3, 1), target_pc=2.0)
    assert "\n" not in str(error.value)


def test_what_is_done_in_the_wrong_order_is_one_line() -> None:
    model = build("resnet38", 10, (3, 32, 32), 0)
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="give the method first, then the model"):
        fractrain.attach(model, "dfq")  # type: ignore[arg-type]
    session = fractrain.attach("dfq", model)
    with pytest.raises(ConfigError, match="a method attached already"):
        fractrain.attach("sbm", model)
    with pytest.raises(ConfigError, match="before the first step"):
        session.costs()
    small_loop(session, early, range(1))
    with pytest.raises(ConfigError, match=r"has added \(its gates\) do not move: make the optimizer after attach"):
        small_loop(session, early, range(1, 2))


@pytest.mark.parametrize("zero_first", [True, False])
@pytest.mark.parametrize("name", ["dfq", "slu"])
def test_a_fused_optimizer_which_leaves_no_trace_in_versions_is_seen_to_move(name: str, zero_first: bool) -> None:
    session = fractrain.attach(name, build("resnet20", 10, (3, 16, 16)))
    optimizer = session.optimizer(lr=0.05)
    assert optimizer.defaults["fused"]
    x, y = torch.randn(4, 3, 16, 16), torch.arange(4)
    for _ in range(3):
        if zero_first:
            optimizer.zero_grad()
        session.loss(torch.nn.functional.cross_entropy(session.model(x), y)).backward()
        optimizer.step()
        if not zero_first:
            optimizer.zero_grad()
        session.step()


def test_an_optimizer_made_in_time_is_left_alone() -> None:
    session = fractrain.attach("dfq", build("resnet38", 10, (3, 32, 32), 0))
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    small_loop(session, torch.optim.SGD(session.model.parameters(), lr=0.1, fused=True), range(3))
    assert any(not torch.equal(p, before[name]) for name, p in session.model.named_parameters())
