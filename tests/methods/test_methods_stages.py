"""PFQ's precision and FracTrain's target in each stage, and both through a checkpoint."""

from __future__ import annotations

import pytest
import torch

from fractrain.layers.batch_norm import CompactBatchNorm2d
from fractrain.layers.convert import quant_layers
from fractrain.methods.base import MethodContext
from fractrain.methods.fractrain import FracTrain
from fractrain.methods.pfq import PFQ
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.util.errors import ConfigError


def prepared(method, seed=0, total_steps=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method, method.prepare(ResNetCifar(1, 4), MethodContext(seed=seed, total_steps=total_steps))


def seen_by_layers(method, model) -> set[tuple[str, int]]:
    """(layer, operand widths) that the layers report while one step runs."""
    seen = set()

    def observer(layer, name, op, original, quantized):
        levels = 2 ** (op.bits if isinstance(op.bits, int) else 0)
        groups = quantized.reshape(len(quantized), -1) if name == "fw_w" else quantized.reshape(1, -1)
        assert max(len(row.unique()) for row in groups) <= levels
        seen.add((layer.site, name, op.bits))

    for layer in quant_layers(model):
        layer.observer = observer
        layer.forget_weights()
    model(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    return seen


CONVS = {"stem.0"} | {
    f"groups.{g}.0.{c}" for g in range(3) for c in ("conv1", "conv2", *(("shortcut.0",) if g else ()))
}


def expected(bits, grad_bits):
    # A and E are quantized once per pass, W once; the same quantized tensors serve both of their products
    return {(s, n, b) for s in CONVS for n, b in (("fw_a", bits), ("fw_w", bits), ("E", grad_bits))}


def test_pfq_layers_run_at_the_precision_of_the_stage_from_the_next_step_on():
    method, model = prepared(PFQ())
    stages = [(3, 6), (4, 6), (6, 8), (8, 8)]
    for stage, widths in enumerate(stages):
        assert seen_by_layers(method, model) == expected(*widths)
        assert method.metrics() == {"stage": stage, "bits": widths[0], "grad_bits": widths[1]}
        for epoch in range(5):
            assert method.metrics()["stage"] == stage, epoch
            method.on_epoch_end(epoch, 1.0)
    assert seen_by_layers(method, model) == expected(8, 8)


def test_pfq_classifier_and_batch_norm_stay_in_floating_point():
    _, model = prepared(PFQ())
    assert model.head.precision.is_float
    assert all(type(m) is CompactBatchNorm2d for n, m in model.named_modules() if "bn" in n.rpartition(".")[2])


def test_pfq_state_restores_stage_and_layers():
    method, _model = prepared(PFQ())
    for epoch in range(12):
        method.on_epoch_end(epoch, 1.0)
    other, twin = prepared(PFQ())
    other.load_state_dict(method.state_dict())
    assert other.metrics()["stage"] == 2
    assert seen_by_layers(other, twin) == expected(6, 8)
    moves = [[], []]
    for epoch in range(12, 20):
        for m, told in zip((method, other), moves, strict=True):
            m.on_epoch_end(epoch, 1.0)
            told.append(m.metrics()["stage"])
    assert moves[0] == moves[1] == [2, 2, 3, 3, 3, 3, 3, 3]


def test_fractrain_target_rises_by_half_a_percent_per_stage():
    method, _ = prepared(FracTrain())
    targets = []
    for epoch in range(20):
        targets.append(method.target())
        method.on_epoch_end(epoch, 2.0)
    assert targets == [1.5] * 5 + [2.0] * 5 + [2.5] * 5 + [3.0] * 5
    assert method.metrics()["stage"] == 3


def test_fractrain_defaults_are_the_authors():
    s = FracTrain().settings
    assert (s.bits, s.grad_bits, s.weight_bits) == ((3, 4, 4, 6, 6), (6, 6, 8, 8, 12), 4)
    assert (s.epsilon, s.alpha, s.window, s.scale_epochs, s.stages) == (0.05, 0.3, 5, 10, 4)
    assert (s.beta, s.relax, s.sharp, s.running) == (1e-3, 0.0, True, 0.1)


def test_fractrain_state_restores_the_stage():
    method, _ = prepared(FracTrain())
    for epoch in range(7):
        method.on_epoch_end(epoch, 2.0)
    other, _ = prepared(FracTrain())
    other.load_state_dict(method.state_dict())
    assert other.target() == 2.0
    for epoch in range(3):
        other.on_epoch_end(epoch, 2.0)
    assert other.target() == 2.5


@pytest.mark.parametrize(
    ("cls", "total", "period"),
    [(PFQ, 64_000, 400), (FracTrain, 64_000, 390), (PFQ, 1_000, 6), (FracTrain, 4_000, 24), (PFQ, 64, 1)],
)
def test_the_authors_clock_counts_a_fixed_share_of_the_run_and_nothing_else(cls, total, period):
    method, _ = prepared(cls(indicator_clock="authors"), total_steps=total)
    loss = torch.tensor(1.0)
    for epoch in range(30):
        method.on_epoch_end(epoch, 1.0)
    assert method.metrics()["stage"] == 0
    stages = []
    for step in range(5 * period + 1):
        stages.append(method.metrics()["stage"])
        method.on_step_end(step, loss)
    assert stages == [0] * (5 * period) + [1]


def test_a_number_divides_the_run_into_so_many_periods():
    method, _ = prepared(PFQ(indicator_clock=14, window=2), total_steps=224)
    stages = []
    for step in range(100):
        method.on_step_end(step, torch.tensor(1.0))
        stages.append(method.metrics()["stage"])
    assert stages == [0] * 31 + [1] * 32 + [2] * 32 + [3] * 5


@pytest.mark.parametrize("clock", ["epochs", "authors"])
@pytest.mark.parametrize(("watched", "value"), [("task", 1.0), ("total", 1.5)])
def test_indicator_of_fractrain_sees_the_loss_it_is_told_to(clock, watched, value):
    method, _ = prepared(FracTrain(indicator_clock=clock, indicator_loss=watched), total_steps=64_000)
    fed = []
    method._clock.indicator.update = lambda loss: fed.append(loss) or False
    for step in range(390):
        method.on_step_end(step, torch.tensor(1.0), torch.tensor(0.5))
    method.on_epoch_end(0, 1.0)
    assert fed == [pytest.approx(value * (390 / 391 if clock == "authors" else 1), rel=1e-12)]


def test_the_mean_of_the_total_loss_survives_a_checkpoint():
    fed = []
    for stop in (0, 3):
        method, _ = prepared(FracTrain(indicator_loss="total"))
        for step in range(7):
            if step == stop:
                state, (method, _) = method.state_dict(), prepared(FracTrain(indicator_loss="total"))
                method.load_state_dict(state)
            method.on_step_end(step, torch.tensor(1.0 / (step + 1)), torch.tensor(0.1 * step))
        method._clock.indicator.update = lambda loss: fed.append(loss) or False
        method.on_epoch_end(0, 9.0)
        method.on_epoch_end(1, 8.0)  # without a step of its own
    assert fed[:2] == fed[2:]
    assert fed[1] == 8.0


def test_the_authors_clock_needs_the_length_of_training():
    with pytest.raises(ConfigError, match="total_steps"):
        prepared(PFQ(indicator_clock="authors"))
