"""Steps that a method skips: counted, but without any trace in weights, ledger and metrics."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from engine_fakes import FakeMethod, FakeRegistries, fake_config

from fractrain.engine import checkpoint
from fractrain.engine.schedule import learning_rate
from fractrain.engine.site import Site
from fractrain.engine.trainer import Trainer
from fractrain.methods.base import MethodContext
from fractrain.util.seeds import derive_seed
from fractrain.util.signals import RunInterrupted

CPU = torch.device("cpu")
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "schedule": "steps"}  # of the loop by hand
SKIPPED = {1, 2, 6, 8, 9, 10, 11}  # the third epoch (8 to 11) is skipped altogether


class Skipping(FakeMethod):
    def skip_step(self, step: int) -> bool:
        return step in SKIPPED


class Registries(FakeRegistries):
    def method(self, name, settings):
        self.made.append(Skipping(Skipping.Settings(**settings)))
        return self.made[-1]


class StopAt:
    def __init__(self, step):
        self.step = step

    def start(self, label, total, done=0):
        pass

    def update(self, done, loss=None, label=None):
        if done == self.step:
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text):
        pass

    def close(self):
        pass


def run(folder, known=None, progress=None):
    return Trainer(fake_config(**SGD), Site(folder, device="cpu"), progress, registries=known or Registries()).run()


def test_a_skipped_step_is_counted_and_calls_no_other_hook(tmp_path):
    known = Registries()
    record = run(tmp_path, known)
    calls = known.made[0].calls
    done = [s for s in range(16) if s not in SKIPPED]
    for hook in ("step_start", "step_end"):
        assert [int(c.split()[1]) for c in calls if c.startswith(hook)] == done
    assert [c for c in calls if c.startswith("epoch_end")] == [f"epoch_end {e}" for e in range(4)]
    metrics = record.metrics()
    assert [line["iteration"] for line in metrics] == [4, 8, 12, 16]
    assert [line["lr"] for line in metrics] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    ledger = record.ledger()
    sizes = [10, 10, 10, 6]  # of the batches of an epoch
    fed = [sum(sizes[s % 4] for s in range(4 * e, 4 * e + 4) if s not in SKIPPED) for e in range(4)]
    assert [ledger.sample_count("train", e) for e in range(4)] == fed


def test_an_epoch_without_a_step_has_no_loss_and_is_evaluated_all_the_same(tmp_path):
    known = Registries()
    record = run(tmp_path, known)
    third = record.metrics()[2]
    assert third["train_loss"] is None
    assert third["train_accuracy"] is None
    assert third["test_accuracy"] == record.metrics()[1]["test_accuracy"]
    assert math.isnan(known.made[0].history[2])
    assert not any(math.isnan(known.made[0].history[e]) for e in (0, 1, 3))
    json.dumps(record.metrics(), allow_nan=False)


def test_against_a_loop_written_by_hand(tmp_path):
    """Weights and mean losses of a plain loop that leaves the skipped batches out."""
    config = fake_config(**SGD)
    record = run(tmp_path)
    known, recipe = FakeRegistries(), config.recipe
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "torch"))
        stream = known.train_stream(known.data("digits", None, False, 0.1, 0), 10, 0, CPU, True)
        method = Skipping()
        model = method.prepare(known.model("tiny", "digits", 0), MethodContext())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for epoch in range(4):
            own = []
            for index in range(4):
                step = 4 * epoch + index
                if step in SKIPPED:
                    continue
                method.on_step_start(step)
                optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
                x, y = stream.batch(epoch, index)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
                extra = method.extra_loss()
                (loss if extra is None else loss + extra).backward()
                optimizer.step()
                method.on_step_end(step, loss.detach(), extra)
                own.append(loss.item())
            method.on_epoch_end(epoch, 0.0)
            losses.append(sum(own) / len(own) if own else None)
    assert [line["train_loss"] for line in record.metrics()] == [
        loss if loss is None else pytest.approx(loss, rel=1e-5) for loss in losses
    ]
    saved = checkpoint.load(record.path / "checkpoint.pt", config.run_id)["model"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stop", [2, 6, 7, 10])
def test_resumed_between_skipped_steps_bit_for_bit(tmp_path, stop):
    straight = run(tmp_path / "straight").summary
    with pytest.raises(RunInterrupted):
        run(tmp_path / "twice", progress=StopAt(stop))
    again = run(tmp_path / "twice").summary
    for key in ("weights_sha256", "ledger_sha256", "train_loss", "test_accuracy_last"):
        assert again[key] == straight[key], key
