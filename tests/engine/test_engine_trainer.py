from __future__ import annotations

import os
import re
import signal
import threading

import pytest
import torch
import torch.nn.functional as F
from engine_fakes import FakeMethod, FakeRegistries, fake_config

from fractrain.commands.runs import run_command
from fractrain.engine import checkpoint
from fractrain.engine.divergence import BadLoss, LossWatch
from fractrain.engine.evaluate import evaluate
from fractrain.engine.schedule import learning_rate
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.engine.trainer import Trainer
from fractrain.methods.base import MethodContext
from fractrain.util import files
from fractrain.util.digests import state_sha256, weights_sha256
from fractrain.util.errors import CheckpointError, ConfigError, DataError, NonFiniteError, StoreError
from fractrain.util.signals import RunInterrupted

CPU = torch.device("cpu")
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "schedule": "steps"}  # of the loop by hand


class SignalAt:
    """A progress display that sends a signal to this process when a step has been reached."""

    def __init__(self, *steps: int, number: int = signal.SIGINT) -> None:
        self.steps, self.number = list(steps), number

    def start(self, label, total, done=0):
        pass

    def update(self, done, loss=None, label=None):
        while self.steps and done >= self.steps[0]:
            self.steps.pop(0)
            os.kill(os.getpid(), self.number)

    def note(self, text):
        pass

    def close(self):
        pass


def trainer(config, folder, registries=None, checkpoint_seconds=60.0, **options):
    site = Site(folder, "cpu", checkpoint_seconds=checkpoint_seconds)
    return Trainer(config, site, registries=registries or FakeRegistries(), **options)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Summary of an uninterrupted run."""
    return trainer(fake_config(), tmp_path_factory.mktemp("straight")).run().summary


def test_hook_order(tmp_path):
    known = FakeRegistries()
    trainer(fake_config(iterations=6), tmp_path, known).run()

    def step(k):
        return [f"step_start {k}", "extra_loss", f"step_end {k}"]

    assert known.made[0].calls == [
        "prepare",
        "epoch_start 0", *step(0), *step(1), *step(2), *step(3), "epoch_end 0",
        "epoch_start 1", *step(4), *step(5), "epoch_end 1",
    ]  # fmt: skip


def test_evaluation_comes_before_the_method_moves_on(tmp_path):
    record = trainer(fake_config(), tmp_path).run()
    assert [line["method"]["stage"] for line in record.metrics()] == [0, 1, 2, 3]
    rows = {(row.epoch, row.phase): row.bits1 for row in record.ledger().rows() if row.product == "FW"}
    assert rows == {(e, phase): 8 + e for e in range(4) for phase in ("train", "eval")}


def test_against_a_loop_written_by_hand(tmp_path):
    """The engine gives the weights, losses and accuracies of a plain loop without an engine."""
    config = fake_config(**SGD)
    record = trainer(config, tmp_path).run()

    known, recipe = FakeRegistries(), config.recipe
    with torch.random.fork_rng(devices=[]):
        from fractrain.util.seeds import derive_seed

        torch.manual_seed(derive_seed(config.seed, "torch"))
        data = known.data("digits", None, False, 0.1, 0)
        stream = known.train_stream(data, 10, 0, CPU, True)
        method = FakeMethod()
        model = method.prepare(known.model("tiny", "digits", 0), MethodContext())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        losses, accuracies, rates = [], [], []
        for epoch in range(4):
            total = 0.0
            for index in range(4):
                step = 4 * epoch + index
                method.on_step_start(step)
                rates.append(0.1 if step < 8 else 0.01)
                optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
                x, y = stream.batch(epoch, index)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
                extra = method.extra_loss()
                (loss if extra is None else loss + extra).backward()
                optimizer.step()
                method.on_step_end(step, loss.detach(), extra)
                total += loss.item()
            model.eval()
            with torch.no_grad():
                x, y = data.test
                accuracies.append(100 * (model(x).argmax(1) == y).double().mean().item())
            model.train()
            losses.append(total / 4)
            method.on_epoch_end(epoch, total / 4)
    metrics = record.metrics()
    assert [line["train_loss"] for line in metrics] == pytest.approx(losses, rel=1e-5)
    assert [line["test_accuracy"] for line in metrics] == pytest.approx(accuracies)
    assert [line["lr"] for line in metrics] == pytest.approx(rates[3::4])
    saved = checkpoint.load(record.path / "checkpoint.pt", config.run_id)["model"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)


def test_record_of_a_finished_run(tmp_path):
    config = fake_config()
    record = trainer(config, tmp_path).run()
    summary, metrics = record.summary, record.metrics()
    tests = [line["test_accuracy"] for line in metrics]
    vals = [line["val_accuracy"] for line in metrics]
    assert record.status == "done"
    assert summary["test_accuracy_last"] == tests[-1]
    assert summary["test_accuracy_best"] == max(tests)
    assert "paper protocol" in summary["test_accuracy_best_protocol"]
    assert summary["best_test_epoch"] == tests.index(max(tests))
    assert summary["best_test_iteration"] == 4 * (tests.index(max(tests)) + 1)
    assert summary["test_accuracy_at_best_val"] == tests[vals.index(max(vals))]
    assert summary["cost"]["best_epoch"] == summary["best_test_epoch"]
    assert summary["ledger_sha256"] == record.ledger().digest()
    assert summary["iterations"] == 16
    assert summary["peak_host_bytes"] > 1_000_000
    ledger = record.ledger()
    assert [ledger.sample_count("train", e) for e in range(4)] == [36] * 4
    assert [ledger.sample_count("eval", e) for e in range(4)] == [9 + 12] * 4
    assert ledger.meta == {"forward_macs": 110, "blocks": ["conv"], "batch_size": 10}
    for key in ("python", "packages", "cpu", "threads", "git", "device"):
        assert key in record.environment


def test_without_a_validation_part_there_is_no_best_on_validation(tmp_path):
    record = trainer(fake_config(val_fraction=0.0), tmp_path).run()
    assert record.summary["test_accuracy_at_best_val"] is None
    assert record.summary["val_accuracy_best"] is None
    assert all(line["val_accuracy"] is None for line in record.metrics())


def test_a_done_run_is_not_trained_again(tmp_path):
    known = FakeRegistries()
    first = trainer(fake_config(), tmp_path, known).run()
    assert trainer(fake_config(), tmp_path, known).run().summary == first.summary
    assert len(known.made) == 1


def test_same_seed_same_bits_other_seed_other_bits_and_the_callers_generator_is_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    a = trainer(fake_config(), tmp_path / "a").run().summary
    assert torch.equal(torch.rand(2), expected)
    b = trainer(fake_config(), tmp_path / "b").run().summary
    c = trainer(fake_config(seed=1), tmp_path / "c").run().summary
    assert a["weights_sha256"] == b["weights_sha256"]
    assert a["ledger_sha256"] == b["ledger_sha256"]
    assert a["weights_sha256"] != c["weights_sha256"]


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGTERM), (4, signal.SIGINT), (6, signal.SIGINT)])
def test_interrupt_then_go_on_gives_the_same_bits(tmp_path, straight, step, number):
    before = signal.getsignal(number)
    with pytest.raises(RunInterrupted, match=f"stopped at step {step} of 16") as caught:
        trainer(fake_config(), tmp_path / "cut", progress=SignalAt(step, number=number)).run()
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is before
    record = RunStore(tmp_path / "cut").get(fake_config().run_id)
    assert (record.status, record.summary) == ("interrupted", None)
    known = FakeRegistries()
    again = trainer(fake_config(), tmp_path / "cut", known).run().summary
    first = {1: "step_start 1", 4: "epoch_end 0", 6: "step_start 6"}[step]  # nothing is done twice, nothing left out
    assert known.made[0].calls[1] == first
    for key in ("weights_sha256", "ledger_sha256", "train_loss", "cost"):
        assert again[key] == straight[key]


def test_interrupt_inside_an_evaluation_throws_only_the_evaluation_away(tmp_path, straight):

    class Interrupting(FakeRegistries):
        def eval_stream(self, data, split, batch_size, device):
            stream = super().eval_stream(data, split, 4, device)
            if split != "test":
                return stream

            class Slow:
                def __iter__(self):
                    for number, item in enumerate(stream):
                        if number == 1:
                            os.kill(os.getpid(), signal.SIGINT)
                        yield item

            return Slow()

    with pytest.raises(RunInterrupted, match="step 4 of 16"):
        trainer(fake_config(), tmp_path / "cut", Interrupting()).run()
    again = trainer(fake_config(), tmp_path / "cut").run().summary
    for key in ("weights_sha256", "ledger_sha256", "cost"):
        assert again[key] == straight[key]


def test_second_interrupt_stops_at_once(tmp_path):
    with pytest.raises(RunInterrupted, match="at once") as caught:
        trainer(fake_config(), tmp_path, progress=SignalAt(5, 5)).run()
    assert caught.value.exit_code == 130
    assert RunStore(tmp_path).get(fake_config().run_id).status == "interrupted"


def test_outside_the_main_thread_no_handler_is_needed(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(trainer(fake_config(), tmp_path).run().status))
    thread.start()
    thread.join()
    assert found == ["done"]


@pytest.mark.parametrize(("kind", "layer"), [("loss", "conv"), ("layer", "body.bn")])
def test_divergence_names_layer_and_step_and_is_no_result(tmp_path, kind, layer):
    config = fake_config({"bad_step": 6, "bad_kind": kind})
    for _ in range(2):  # the second time it goes on from what there is, and diverges again
        with pytest.raises(NonFiniteError, match=f"diverged.*step 6.*'{layer}'") as caught:
            trainer(config, tmp_path, checkpoint_seconds=0).run()
        assert (caught.value.layer, caught.value.step, caught.value.exit_code) == (layer, 6, 1)
        record = RunStore(tmp_path).get(config.run_id)
        assert (record.status, record.summary) == ("diverged", None)
        assert f"'{layer}'" in record.message


def test_a_loss_read_only_now_and_then_still_names_the_first_bad_step():
    watch = LossWatch(CPU, every=4)
    for step, loss in enumerate([1.0, 2.0, float("inf")]):
        watch.record_loss(step, torch.tensor(loss))
    assert watch.last is None
    with pytest.raises(BadLoss) as caught:
        watch.record_loss(3, torch.tensor(float("nan")))
    assert caught.value.step == 2
    watch = LossWatch(CPU, every=4)
    watch.read()
    for step in range(8):
        watch.record_loss(step, torch.tensor(float(step)))
    assert watch.last == 7.0
    watch.record_loss(8, torch.tensor(float("nan")))
    with pytest.raises(BadLoss):
        watch.read()


def test_divergence_from_a_learning_rate_too_large(tmp_path):
    with pytest.raises(NonFiniteError, match="diverged"):
        trainer(fake_config(lr=1e30), tmp_path).run()


def test_disk_full_while_a_checkpoint_is_written(tmp_path, straight, monkeypatch):
    real, calls = os.fsync, []

    def sometimes_full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", sometimes_full)
    with pytest.raises(StoreError, match="disk is full"):
        trainer(fake_config(), tmp_path / "full", checkpoint_seconds=0).run()
    monkeypatch.undo()
    folder = tmp_path / "full" / fake_config().run_id
    assert not list(folder.glob(".*.tmp"))
    again = trainer(fake_config(), tmp_path / "full").run().summary
    assert again["weights_sha256"] == straight["weights_sha256"]
    assert again["ledger_sha256"] == straight["ledger_sha256"]


def test_failure_is_recorded_and_tried_again(tmp_path):
    class Missing(FakeRegistries):
        def data(self, *arguments):
            raise DataError("no files\nhere")

    with pytest.raises(DataError):
        trainer(fake_config(), tmp_path, Missing()).run()
    record = RunStore(tmp_path).get(fake_config().run_id)
    assert (record.status, record.message) == ("failed", "DataError: no files here")
    assert trainer(fake_config(), tmp_path).run().status == "done"


def test_changed_data_or_method_is_refused(tmp_path):
    with pytest.raises(RunInterrupted):
        trainer(fake_config(), tmp_path, progress=SignalAt(3)).run()
    with pytest.raises(CheckpointError, match="data has changed"):
        trainer(fake_config(), tmp_path, FakeRegistries(digest="other")).run()

    class Newer(FakeRegistries):
        def method(self, name, settings):
            made = super().method(name, settings)
            made.version = 2
            return made

    with pytest.raises(ConfigError, match="version 1 of fake, installed is version 2"):
        trainer(fake_config(), tmp_path, Newer()).run()


def test_what_a_refused_checkpoint_recommends_is_there(tmp_path):
    """The options that the messages name are options of the command they name."""
    loop = trainer(fake_config(), tmp_path)
    with pytest.raises(RunInterrupted):
        trainer(fake_config(), tmp_path, progress=SignalAt(3)).run()
    path = tmp_path / fake_config().run_id / checkpoint.NAME
    state = checkpoint.load(path, fake_config().run_id)
    del state["model"]["head.bias"]
    messages = []
    with pytest.raises(CheckpointError, match="delete the run's folder") as found:
        trainer(fake_config(), tmp_path, FakeRegistries(digest="other")).run()
    messages.append(str(found.value))
    checkpoint.save(path, state, fake_config().run_id)
    with pytest.raises(CheckpointError, match="does not fit the installed code") as found:
        loop.run()
    messages.append(str(found.value))
    known = {option for parameter in run_command.params for option in parameter.opts}
    for message in messages:
        assert "`fractrain run` with --force" in message
        assert set(re.findall(r"--[a-z-]+", message)) <= known
    assert trainer(fake_config(), tmp_path, fresh=True).run().status == "done"


def test_fresh_starts_again_and_touches_no_other_run(straight, tmp_path):
    other = trainer(fake_config(seed=1), tmp_path).run()
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in other.path.iterdir()}
    done = trainer(fake_config(), tmp_path).run()
    known = FakeRegistries()
    assert trainer(fake_config(), tmp_path, known).run().summary == done.summary  # done: nothing is trained
    assert known.made == []
    again = trainer(fake_config(), tmp_path, known, fresh=True).run()
    assert len(again.metrics()) == 4
    assert known.made[0].calls.count("prepare") == 1
    assert "step_end 0" in known.made[0].calls
    assert again.summary["weights_sha256"] == straight["weights_sha256"]
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in other.path.iterdir()} == before


def test_a_finished_run_keeps_one_checkpoint(tmp_path):
    with pytest.raises(RunInterrupted):
        trainer(fake_config(), tmp_path, checkpoint_seconds=0, progress=SignalAt(3)).run()
    folder = tmp_path / fake_config().run_id
    names = ["checkpoint.prev.pt", "checkpoint.pt"]
    assert sorted(p.name for p in folder.glob("checkpoint*")) == names
    record = trainer(fake_config(), tmp_path, checkpoint_seconds=0).run()
    assert [p.name for p in folder.glob("checkpoint*")] == ["checkpoint.pt"]
    state = checkpoint.load(folder / checkpoint.NAME, record.run_id)["model"]
    assert state_sha256(state) == record.summary["weights_sha256"]


def test_both_checkpoints_damaged(tmp_path):
    with pytest.raises(RunInterrupted):
        trainer(fake_config(), tmp_path, progress=SignalAt(3), checkpoint_seconds=0).run()
    for path in (tmp_path / fake_config().run_id).glob("checkpoint*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        trainer(fake_config(), tmp_path).run()


def test_evaluate_against_one_big_batch():
    known = FakeRegistries()
    data = known.data("digits", None, False, 0.0, 0)
    method = FakeMethod()
    model = method.prepare(known.model("tiny", "digits", 0)).train()
    ledger = method.context.ledger
    scores = evaluate(model, known.eval_stream(data, "test", 5, CPU), ledger)
    assert model.training
    x, y = data.test
    model.eval()
    with torch.no_grad():
        out = model(x).double()
    assert scores.samples == 12
    assert scores.accuracy == pytest.approx(100 * (out.argmax(1) == y).double().mean().item())
    assert scores.loss == pytest.approx(F.cross_entropy(out, y).item(), rel=1e-5)


def test_weights_digest():
    layer = torch.nn.Conv2d(3, 4, 3)
    before = weights_sha256(layer)
    assert weights_sha256(layer.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = torch.nextafter(layer.weight[0, 0, 0, 0], torch.tensor(9.0))  # one bit
    assert weights_sha256(layer) != before
