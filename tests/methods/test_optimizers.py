"""Methods that act on the optimizer: 8-bit Adam, and weights in bfloat16 with stochastic rounding."""

from __future__ import annotations

import io
import math
import sys
from typing import Any

import pytest
import torch
from layer_models import Residual, batches, seeded
from small_registries import SmallRegistries
from torch import nn

import fractrain
from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.schedule import learning_rate
from fractrain.engine.site import Site
from fractrain.engine.summary import tensor_bytes
from fractrain.layers.kept import kept_bytes
from fractrain.methods import registry
from fractrain.methods.optimizer_recipe import OptimizerRecipe
from fractrain.numerics.stochastic_rounding import noise_key, round_to_bfloat16_, to_bfloat16
from fractrain.util.errors import ConfigError, MachineError

NO_TORCHAO = "torchao is not installed (extra: adam8bit)"


def wide(seed: int = 0) -> nn.Linear:
    """A layer whose weight torchao keeps in 8 bits (8,192 values), its bias not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(64, 128)


def with_gradients(layer: nn.Linear, step: int) -> None:
    g = torch.Generator().manual_seed(step)
    for p in layer.parameters():
        p.grad = torch.randn(p.shape, generator=g)


def adam8bit(layer: nn.Module, **recipe: Any) -> torch.optim.Optimizer:
    pytest.importorskip("torchao", reason=NO_TORCHAO)
    values = {"optimizer": "adam", "lr": 0.01, **recipe}
    return registry.create("adam8bit").optimizer(layer.parameters(), OptimizerRecipe(**values))


# -- rounding ----------------------------------------------------------------------------------------------------------


def test_numbers_of_bfloat16_inf_and_nan_stay() -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    x = every.view(torch.float32)
    got = to_bfloat16(x, noise_key(0, 0, "x"))
    assert torch.equal(got.view(torch.int32), every)
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32)  # all ones: a carry would make it zero
    assert to_bfloat16(bits.view(torch.float32), noise_key(0, 0, "x")).isnan().all()


@pytest.mark.parametrize("value", [1.001, -1.001, 3e-40, -1e30, 1 + 1 / 1024])
def test_the_mean_of_many_roundings_is_the_value(value: float) -> None:
    x = torch.full((1 << 18,), value)
    got = to_bfloat16(x, noise_key(1, 2, "x")).double()
    exact = float(x[0])
    low, high = sorted({float(v) for v in got.unique()})
    assert low < exact < high
    assert torch.tensor([low, high]).bfloat16().double().tolist() == [low, high]
    share = (exact - low) / (high - low)
    sigma = math.sqrt(share * (1 - share) / len(x))
    assert abs(float((got == high).double().mean()) - share) < 5 * sigma + 2.0**-16


def test_above_the_largest_number_infinity_is_a_neighbour() -> None:
    largest = torch.finfo(torch.bfloat16).max
    x = torch.full((4096,), torch.finfo(torch.float32).max)
    assert set(to_bfloat16(x, noise_key(0, 0, "x")).tolist()) <= {largest, math.inf}


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (4, 3, 3, 3)])
def test_pieces_and_memory_layout_change_nothing(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    want = to_bfloat16(x, noise_key(0, 1, "x"))
    for piece in (1, 9, 1 << 22):
        y = x.clone()
        round_to_bfloat16_(y, noise_key(0, 1, "x"), piece)
        assert torch.equal(y, want)
    if len(shape) == 4:
        y = x.clone().contiguous(memory_format=torch.channels_last)
        round_to_bfloat16_(y, noise_key(0, 1, "x"))
        assert torch.equal(y, want)


# -- bf16_sr -----------------------------------------------------------------------------------------------------------


def is_bfloat16(model: nn.Module) -> bool:
    return all(torch.equal(p, p.bfloat16().float()) for p in model.parameters())


def test_every_weight_is_a_bfloat16_number_before_and_after_a_step() -> None:
    session = fractrain.attach("bf16_sr", seeded(Residual))
    optimizer = session.optimizer(lr=1e-3)
    assert is_bfloat16(session.model)
    before = [p.detach().clone() for p in session.model.parameters()]
    x, y = next(batches(1))
    session.loss(nn.functional.cross_entropy(session.model(x), y)).backward()
    optimizer.step()
    session.step()
    assert is_bfloat16(session.model)
    assert any(not torch.equal(p, b) for p, b in zip(session.model.parameters(), before, strict=True))


def test_updates_too_small_for_nearest_rounding_add_up() -> None:
    """Steps of 1/50 of the distance of two numbers: by nearest rounding nothing would move."""
    method = registry.create("bf16_sr")
    weight = nn.Parameter(torch.ones(20_000))
    optimizer = method.optimizer([weight], OptimizerRecipe(lr=1.0, momentum=0.0, weight_decay=0.0))
    size = 2.0**-7 / 50
    assert torch.equal((weight + size).bfloat16().float(), weight)
    for step in range(40):
        method.on_step_start(step)
        weight.grad = torch.full_like(weight, -size)
        optimizer.step()
    moved = float(weight.detach().double().mean()) - 1
    assert moved == pytest.approx(40 * size, rel=0.02)


def test_a_weight_without_a_gradient_is_left_alone() -> None:
    method = registry.create("bf16_sr")
    moving, still = nn.Parameter(torch.tensor([1.001])), nn.Parameter(torch.tensor([1.001]))
    optimizer = method.optimizer([moving, still], OptimizerRecipe(lr=0.1))
    moving.grad = torch.ones(1)
    optimizer.step()
    assert torch.equal(still, torch.tensor([1.001]))
    assert torch.equal(moving, moving.bfloat16().float())


# -- adam8bit ----------------------------------------------------------------------------------------------------------


def test_large_moments_are_in_eight_bits_and_small_ones_in_float() -> None:
    layer = wide()
    optimizer = adam8bit(layer)
    with_gradients(layer, 0)
    optimizer.step()
    weight, bias = optimizer.state_dict()["state"].values()
    assert weight["exp_avg"]["codes"].dtype == weight["exp_avg_sq"]["codes"].dtype == torch.uint8
    assert weight["exp_avg"]["scale"].shape == (64 * 128 // 256,)
    assert (weight["exp_avg"]["signed"], weight["exp_avg_sq"]["signed"]) == (True, False)
    assert bias["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_it_stays_near_adam_and_where_moments_are_in_float_equals_it(name: str, kind: type) -> None:
    ours, theirs = wide(), wide()
    optimizer = adam8bit(ours, optimizer=name, betas=(0.9, 0.98), weight_decay=0.1)
    other = kind(theirs.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=0.1)
    start = theirs.weight.detach().clone()
    for step in range(5):
        for layer in (ours, theirs):
            with_gradients(layer, step)
        optimizer.step()
        other.step()
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-6)
    way = (theirs.weight - start).norm()
    assert 0 < (ours.weight - theirs.weight).norm() < 0.1 * way


def test_its_state_is_plain_tensors_and_goes_on_with_the_same_bits() -> None:
    straight, layer = wide(), wide()
    one, first = adam8bit(straight), adam8bit(layer)
    for step in range(3):
        with_gradients(straight, step)
        with_gradients(layer, step)
        one.step()
        first.step()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    types = {
        type(v)
        for kept in loaded["state"].values()
        for m in kept.values()
        for v in (m.values() if isinstance(m, dict) else [m])
    }
    assert types == {torch.Tensor, bool}
    second = adam8bit(layer)
    second.load_state_dict(loaded)
    for step in range(3, 6):
        with_gradients(straight, step)
        with_gradients(layer, step)
        one.step()
        second.step()
    assert torch.equal(straight.weight, layer.weight)
    assert torch.equal(straight.bias, layer.bias)


def test_it_follows_the_schedule_at_its_share_of_a_rate_of_sgd() -> None:
    pytest.importorskip("torchao", reason=NO_TORCHAO)
    recipe = {"iterations": 4, "batch_size": 8, "eval_every": 4, "optimizer": "sgd", "lr": 0.4,
              "schedule": "steps", "milestones": [2], "val_fraction": 0.0}  # fmt: skip
    config = RunConfig.create(
        method="adam8bit", model="resnet38", dataset="digits", settings={"sgd_share": 0.05}, recipe=recipe
    )
    loop = TrainingLoop(config, Site(device="cpu"))
    for step in range(4):
        loop.advance()
        rate = float(loop.optimizer.param_groups[0]["lr"])
        assert rate == pytest.approx(0.05 * learning_rate(config.recipe, step), rel=1e-6)
    assert rate == pytest.approx(0.05 * 0.04)


def test_without_torchao_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(MachineError, match=r"adam8bit needs torchao: pip install 'fractrain\[adam8bit\]'") as error:
        fractrain.attach("adam8bit", seeded(Residual)).optimizer(lr=0.1)
    assert "\n" not in str(error.value)


# -- what a run notes of its memory -----------------------------------------------------------------------------------


def test_bytes_of_the_optimizer_are_those_of_codes_scales_and_small_moments() -> None:
    layer = wide()
    optimizer = adam8bit(layer)
    with_gradients(layer, 0)
    optimizer.step()
    codes, scales, bias, steps = 2 * 64 * 128, 2 * 4 * 64 * 128 // 256, 2 * 4 * 128, 2 * 4
    assert tensor_bytes(optimizer.state_dict()["state"]) == codes + scales + bias + steps


def test_a_run_notes_what_its_first_step_keeps_and_remembers_it() -> None:
    recipe = {"iterations": 3, "batch_size": 8, "eval_every": 3, "val_fraction": 0.0}
    config = RunConfig.create(method="fp32", model="resnet38", dataset="digits", recipe=recipe)
    loop, other = (TrainingLoop(config, Site(device="cpu"), SmallRegistries()) for _ in range(2))
    x, y = other.stream.batch(*other.clock.data(0))
    want = kept_bytes(lambda: other.task.step(other.model, x, y), other.model) / 8
    loop.advance()
    assert loop.kept_bytes == want > 0
    other.load_state_dict(loop.state_dict())
    assert other.kept_bytes == want


# -- in a loop of one's own --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam8bit", "bf16_sr"])
def test_another_optimizer_is_refused(name: str) -> None:
    session = fractrain.attach(name, seeded(Residual))
    optimizer = torch.optim.SGD(session.model.parameters(), 0.1)
    x, y = next(batches(1))
    session.loss(nn.functional.cross_entropy(session.model(x), y)).backward()
    optimizer.step()
    with pytest.raises(ConfigError, match=rf"{name} acts through an optimizer of its own"):
        session.step()


def test_a_wrong_value_is_refused_in_one_line() -> None:
    session = fractrain.attach("sbm", seeded(Residual))
    with pytest.raises(ConfigError, match=r"session.optimizer has no setting 'momentun' \(did you mean 'momentum'\?\)"):
        session.optimizer(lr=0.1, momentun=0.9)
    with pytest.raises(ConfigError, match=r"session.optimizer: setting lr = -1"):
        session.optimizer(lr=-1)
    assert type(session.optimizer(lr=0.1, optimizer="adamw")) is torch.optim.AdamW
