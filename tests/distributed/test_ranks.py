"""Runs on two processes (gloo) against the same runs on one.

All runs are of 5 steps on 50 images at batches of 16: the fourth batch has 2 images, so shares differ in size from step
to step; one run has batches of 7, whose eighth has a single image, fewer than there are processes.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_fakes import FakeRegistries, fake_config
from rank_jobs import config_of, do
from rank_pairs import distance, launch, on_two_ranks
from torch import nn

from fractrain.cli import main
from fractrain.cost.ledger import Entry, Ledger
from fractrain.distributed.batch_norm import RankBatchNorm
from fractrain.distributed.ranks import BatchResult, Ranks, connect
from fractrain.engine import checkpoint
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.site import Site
from fractrain.util.errors import ConfigError

CPU = torch.device("cpu")
HERE = Path(__file__).parent
DFQ = {"gate_hidden": 4, "gate_embed": 4, "target_cp": 2.0}
SHORT = {"recipe": {"iterations": 1}, "same_norms": True}
# By plain SGD: Adam's first step goes by the sign of each gradient, of those too that are zero but for rounding.
TEXT = {
    "dataset": "docs_text",
    "recipe": {"iterations": 1, "optimizer": "sgd", "lr": 0.1, "warmup": 0, "batch_size": 5},
}
JOBS = {
    "fp32": {"method": "fp32", "recipe": {"clip_norm": 0.5}},
    "fp32-single": {"method": "fp32", "recipe": {"batch_size": 7, "iterations": 9}},
    "static8-step": {"method": "static8", **SHORT},
    "sbm-step": {"method": "sbm", **SHORT},
    "dfq-step": {"method": "dfq", "settings": DFQ, **SHORT},
    "pfq-step": {"method": "pfq", **SHORT},
    "cpt-step": {"method": "cpt", "settings": {"cycles": 1}, **SHORT},
    "dorefa-step": {"method": "dorefa", **SHORT},
    "static-step": {"method": "static", "settings": {"bits": 6}, **SHORT},
    "text-fp32-step": {"method": "fp32", **TEXT},
    "text-static8-step": {"method": "static8", **TEXT},
    "static8": {"method": "static8", "same_norms": True},
    "dfq": {"method": "dfq", "settings": DFQ, "same_norms": True},
    "fractrain": {"method": "fractrain", "settings": {**DFQ, "forward": "authors", "beta": 0.02}, "same_norms": True},
    "dfq-single": {"method": "dfq", "settings": DFQ, "recipe": {"batch_size": 7, "iterations": 9}, "same_norms": True},
    "slu": {"method": "slu"},
    "dropout": {"method": "fp32", "model": "dropout"},
    "banner": {"method": "sbm", "settings": {"variant": "banner"}},
    "wageubn": {"method": "wageubn"},
    "dynasty": {"method": "dynasty"},
    "apart": {"method": "sbm", "recipe": {"sync_ranges": False, "sync_batch_norm": False}},
}
DIFFER = ("missing", "evaluation", "seed", "data", "weights")
# How close: floating point, and the first step of a quantized run, up to the order of float32 sums. From then on a
# value that lies next to the middle between two grid points may go either way, by a whole step of the grid (rarely:
# usually these runs are as close as floating point).
TOLERANCE = {
    "fp32": 1e-4, "fp32-single": 1e-4, "static8-step": 1e-5, "sbm-step": 1e-5, "dfq-step": 1e-5, "pfq-step": 1e-5,
    "cpt-step": 1e-5, "dorefa-step": 1e-5, "static-step": 1e-5, "text-fp32-step": 1e-5, "text-static8-step": 1e-5,
    "static8": 0.02, "dfq": 0.3, "fractrain": 0.3, "dfq-single": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All jobs on one rank and on two; those that are interrupted, on one and then two, and the other way round."""
    folder = tmp_path_factory.mktemp("ranks")
    one, two = folder / "one", folder / "two"
    alone = {name: do({**job, "store": str(one)}) for name, job in JOBS.items()}
    changed = {**JOBS["dfq"], "store": str(folder / "change")}
    began = do({**changed, "stop": 3})
    assert "stopped at once" in began["error"]
    other = {**JOBS["dfq"], "store": str(folder / "other")}
    jobs = [{**job, "store": str(two)} for job in JOBS.values()]
    jobs += [changed, {**other, "stop": 3}]
    jobs += [{"method": "fp32", "store": str(folder / d), "differ": d} for d in DIFFER]
    said = on_two_ranks(folder, jobs)
    together = dict(zip([*JOBS, "changed", "stopped", *DIFFER], zip(*said, strict=True), strict=True))
    together["resumed"] = (do(other),) * 2
    return {"alone": alone, "together": together, "one": one, "two": two, "folder": folder}


def weights(store, name):
    config = config_of(JOBS[name])
    return checkpoint.load(store / config.run_id / checkpoint.NAME, config.run_id)["model"]


@pytest.mark.parametrize("name", TOLERANCE)
def test_two_ranks_equal_one(runs, name):
    alone, (first, second) = runs["alone"][name], runs["together"][name]
    assert first == second
    assert "error" not in first
    far = distance(weights(runs["one"], name), weights(runs["two"], name))
    assert far < TOLERANCE[name], far
    near = min(0.05, 10 * TOLERANCE[name])
    for one, two in zip(alone["metrics"], first["metrics"], strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=near)
        assert one["test_loss"] == pytest.approx(two["test_loss"], rel=near)
        assert one["method"] == pytest.approx(two["method"], rel=near)


@pytest.mark.parametrize("name", TOLERANCE)
def test_the_ledger_is_that_of_one_rank(runs, name):
    assert runs["together"][name][0]["summary"]["ledger_sha256"] == runs["alone"][name]["summary"]["ledger_sha256"]


@pytest.mark.parametrize("name", ["slu", "dropout", "apart", "banner", "wageubn", "dynasty"])
def test_what_is_each_ranks_own_runs_all_the_same(runs, name):
    """Statistics of each rank's own, and masks drawn from torch's generator: other numbers, same amount of work."""
    alone, (first, second) = runs["alone"][name], runs["together"][name]
    assert first == second
    assert "error" not in first
    assert distance(weights(runs["one"], name), weights(runs["two"], name)) > 1e-4
    assert first["metrics"][-1]["train_loss"] == pytest.approx(alone["metrics"][-1]["train_loss"], rel=0.2)
    if name != "slu":
        assert first["summary"]["ledger_sha256"] == alone["summary"]["ledger_sha256"]


@pytest.mark.parametrize("name", ["changed", "resumed"])
def test_resume_on_another_number_of_ranks(runs, name):
    config = config_of(JOBS["dfq"])
    found, _ = runs["together"][name]
    folder = runs["folder"] / ("change" if name == "changed" else "other") / config.run_id
    state = checkpoint.load(folder / checkpoint.NAME, config.run_id)["model"]
    assert distance(weights(runs["one"], "dfq"), state) < TOLERANCE["dfq"]
    assert found["summary"]["ledger_sha256"] == runs["alone"]["dfq"]["summary"]["ledger_sha256"]
    assert runs["together"]["stopped"][0]["code"] == 130


@pytest.mark.parametrize(("what", "word"), [("seed", "run"), ("data", "data"), ("weights", "weights")])
def test_ranks_that_disagree(runs, what, word):
    """One line, the same on both, exit code 2, and nothing hangs."""
    first, second = runs["together"][what]
    assert first == second
    assert first["code"] == 2
    assert "\n" not in first["error"]
    assert f"disagree about the {word}: rank 0 has " in first["error"]
    assert "rank 1 has " in first["error"]


@pytest.mark.parametrize(("what", "said"), [("missing", "no data here"), ("evaluation", "photo.jpg cannot be decoded")])
def test_what_fails_on_one_rank_alone_is_told_by_all(runs, what, said):
    """And they go on together: the jobs that follow on the same two processes are done."""
    first, second = runs["together"][what]
    assert second == {"error": said, "code": 2}
    assert first == {"error": f"rank 1: {said}", "code": 2}


def test_a_process_whose_peer_is_killed_says_so_in_one_line(tmp_path):
    """What the network said, with paths of torch's build, is in the error's cause: for FRACTRAIN_DEBUG alone."""
    script = tmp_path / "peer.py"
    script.write_text(
        "import os, torch\n"
        "from fractrain.distributed.ranks import connect\n"
        "from fractrain.util.errors import RunError\n"
        "with connect('cpu') as ranks:\n"
        "    ranks.sum(torch.ones(1))\n"
        "    if not ranks.is_main:\n"
        "        os._exit(9)\n"
        "    try:\n"
        "        ranks.sum(torch.ones(1))\n"
        "    except RunError as error:\n"
        "        print(str(error))\n"
        "        assert 'gloo' in str(error.__cause__)\n"
        "        os._exit(error.exit_code)\n"
    )
    (code, out, errors), (killed, _, _) = launch([str(script)])
    assert (code, killed) == (1, 9), errors
    (line,) = out.splitlines()
    assert line.startswith("another process of this run has ended")
    assert "FRACTRAIN_DEBUG=1" in line
    assert "gloo" not in line


def test_command_line_of_two_ranks_that_disagree(tmp_path):
    command = ["-m", "fractrain", "run", "--method", "fp32", "--model", "resnet38", "--dataset", "digits"]
    command += ["--results", str(tmp_path), "--device", "cpu"]
    ended = launch(command, extra=(["--seed", "0"], ["--seed", "1"]), cwd=HERE.parents[1])
    for code, out, errors in ended:
        assert code == 2
        assert out == ""
        assert errors.count("fractrain: error: the processes of this run disagree about the run") == 1
        assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


# -- the parts, on one process ---------------------------------------------------------------------------------------


def test_one_process_is_left_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    x, y = torch.randn(5, 3), torch.arange(5)
    with connect("cpu") as ranks:
        assert (ranks.rank, ranks.world, ranks.is_main, ranks.context(True)) == (0, 1, True, {})
        with ranks.shard_batch(lambda: (x, y)) as (a, b):
            assert a is x
            assert b is y
            assert ranks.samples is None
        assert ranks.sum(x) is x
        loss, extra = torch.ones(()), torch.full((), 2.0)
        done = ranks.combine(BatchResult(loss, None, 5), None)
        assert done.objective is loss
        assert float(ranks.combine(BatchResult(loss, None, 5), extra).total) == 3.0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WORLD_SIZE", "zwei", "WORLD_SIZE='zwei': expected a number"),
        ("WORLD_SIZE", "", "WORLD_SIZE='': expected a number"),
        ("RANK", "-1", "RANK='-1': expected a number"),
        ("LOCAL_RANK", "first", "LOCAL_RANK='first': expected a number"),
        ("MASTER_PORT", "http", "MASTER_PORT='http': expected a number"),
        ("WORLD_SIZE", "0", "RANK=0, WORLD_SIZE=0: the rank must be below"),
        ("RANK", "2", "RANK=2, WORLD_SIZE=2: the rank must be below"),
    ],
)
def test_variables_that_torchrun_never_sets(monkeypatch, capsys, name, value, words):
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for key, text in {**torchrun, name: value}.items():
        monkeypatch.setenv(key, text)
    command = ["run", "--method", "fp32", "--model", "resnet38", "--dataset", "digits", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fractrain: error: environment variable")
    assert words in line


@pytest.mark.parametrize(("samples", "batch", "world", "last"), [(33, 16, 2, 1), (50, 8, 3, 2), (5, 16, 8, 5)])
def test_shares_that_would_be_empty_are_refused_before_the_first_step(samples, batch, world, last, monkeypatch):
    monkeypatch.setattr(Ranks, "on_all_ranks", lambda ranks, action: action())  # the other ranks are not there

    class Pair(tuple):
        def __len__(self):
            return len(self[1])

    class Shared(FakeRegistries):
        def data(self, *arguments):
            found = super().data(*arguments)
            return SimpleNamespace(**{**vars(found), "train": Pair(found.train)})

        def train_stream(self, data, batch_size, *rest):
            stream = super().train_stream(data, batch_size, *rest)
            stream.world = self.world
            return stream

    def loop(world):
        known = Shared(train=samples)
        return TrainingLoop(fake_config(batch_size=batch), Site(), known, ranks=Ranks(CPU, 0, world))

    with pytest.raises(ConfigError, match=rf"leave {last} for the last one, fewer than the {world} processes"):
        loop(world)
    Ranks(CPU, 0, last).must_share(samples, batch)
    Ranks(CPU, 0, batch).must_share(2 * batch, batch)


@pytest.mark.parametrize(("total", "world"), [(10, 2), (7, 2), (7, 3), (16, 5), (3, 3)])
def test_shares_make_up_the_batch(total, world):
    x, y = torch.arange(total * 2).view(total, 2), torch.arange(total)
    rows = []
    for rank in range(world):
        ranks = Ranks(CPU, rank, world)
        with ranks.shard_batch(lambda: (x, y)) as (own, targets):
            assert torch.equal(own, x[ranks.start : ranks.start + len(targets)])
            assert (ranks.rows, ranks.samples) == (len(targets), total)
            rows += targets.tolist()
    assert rows == y.tolist()


def test_fewer_samples_than_ranks_are_done_by_all_and_counted_once():
    counted = []
    for rank in range(4):
        ranks = Ranks(CPU, rank, 4)
        with ranks.shard_batch(lambda: (torch.zeros(3, 1), torch.zeros(3))) as (x, _):
            assert len(x) == 3
            assert ranks.sum(x) is x
            counted.append(ranks.counts)
    assert counted == [True, False, False, False]


def test_batches_are_dealt_out():
    dealt = [list(Ranks(CPU, rank, 3).own_batches(range(8))) for rank in range(3)]
    assert dealt == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_ledgers_add_up():
    whole, parts = Ledger(), [Ledger(), Ledger()]
    for part, units in zip(parts, (3, 4), strict=True):
        for ledger in (whole, part):
            ledger.begin("train", 1)
            ledger.samples(units)
            ledger.count("a", units, lambda: [Entry("a", "FW", 8, 8, 10)])
            ledger.count_selected(("b", "c"), torch.tensor([units, 1]), lambda k: [Entry("b", "GC", k + 2, 4, 5)])
    states = [part.state_dict() for part in parts]
    parts[0].clear()
    assert not list(parts[0].rows())
    for state in states:
        parts[0].add(state)
    assert parts[0].digest() == whole.digest()


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_batch_norm_against_torch(kind, momentum):
    torch.manual_seed(0)
    shape = (6, 4) if kind is nn.BatchNorm1d else (6, 4, 3, 2)
    plain = kind(4, momentum=momentum).double()
    nn.init.normal_(plain.weight)
    twin = kind(4, momentum=momentum).double()
    twin.load_state_dict(plain.state_dict())
    own = RankBatchNorm(twin, Ranks(CPU))
    for _ in range(3):
        x = (3 * torch.randn(shape, dtype=torch.float64) + 5).requires_grad_()
        z, g = x.detach().clone().requires_grad_(), torch.randn(shape, dtype=torch.float64)
        plain.zero_grad()
        own.zero_grad()
        a, b = plain(x), own(z)
        a.backward(g)
        b.backward(g)
        assert torch.allclose(a, b)
        assert torch.allclose(x.grad, z.grad)
        assert torch.allclose(plain.weight.grad, own.weight.grad)
        assert torch.allclose(plain.bias.grad, own.bias.grad)
    assert own.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.allclose(value.double(), own.state_dict()[name].double()), name
    assert torch.allclose(plain.eval()(x), own.eval()(x))
