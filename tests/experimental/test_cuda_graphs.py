"""Recorded training steps, on a pretended device: the same bits as steps that are not, whatever changes in between."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pretend import DEVICE, Device, pretending, real
from small_registries import SmallRegistries
from torch import nn

from fractrain.distributed.ranks import Ranks
from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.registries import Registries
from fractrain.engine.site import Site
from fractrain.experimental import cuda_graphs as recording
from fractrain.experimental import int8_conv, int8_gemm
from fractrain.kernels.geometry import Geometry
from fractrain.methods.registry import names
from fractrain.numerics.backend import Quantized
from fractrain.numerics.grid import Grid
from fractrain.numerics.stochastic_rounding import NoiseTable, noise_key

STAGES = {"window": 2, "epsilon": 1e6, "scale_epochs": 1}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("fp32", {}),
    ("sbm", {}),
    ("sbm", {"variant": "banner"}),
    ("static8", {}),
    ("static", {"bits": 4, "grad_bits": 12}),
    ("dorefa", {}),
    ("wageubn", {}),
    ("pfq", STAGES),
    ("cpt", {"cycles": 1, "bits": (7, 8)}),
    ("dfq", {}),
    ("fractrain", STAGES),
]
NOT_RECORDED = {
    "slu": "asks which samples are open", "dynasty": "plans by what it reads",
    "adam8bit": "has an optimizer of its own", "bf16_sr": "has an optimizer of its own",
    **dict.fromkeys(
        ("fp8", "mx", "nvfp4", "quartet2", "luq", "jetfire", "switchback", "int8_rowwise"), "never tried on a GPU"
    ),
}  # fmt: skip


def config(method: str, settings: dict[str, Any], **recipe: Any) -> RunConfig:
    """Stages move after every second evaluation; where there are none, fewer steps show as much.

    SGD, because its step has the same bits whether the rate is a number or the float32 tensor that recordings read.
    """
    length = {"iterations": 8, "eval_every": 2} if settings.get("window") else {"iterations": 4, "eval_every": 2}
    sgd = {"optimizer": "sgd", "lr": 0.03, "schedule": "steps", "milestones": [3]}
    recipe = {**length, **sgd, "batch_size": 60, "val_fraction": 0.0, **recipe}
    return RunConfig.create(method=method, model="resnet38", dataset="digits", settings=settings, recipe=recipe)


def loop_of(run: RunConfig, device: Device, recorded: bool = True, known: Registries | None = None) -> TrainingLoop:
    return TrainingLoop(
        run, Site(kernels="reference"), known or SmallRegistries(), ranks=Ranks(DEVICE),
        recorder=device if recorded else None,
    )  # fmt: skip


def trained(loop: TrainingLoop) -> dict[str, Any]:
    while not loop.finished:
        loop.advance()
    loop.check_finite()
    assert loop.method.state.bad_site() is None
    return outcome(loop)


def outcome(loop: TrainingLoop) -> dict[str, Any]:
    lines = [{k: v for k, v in line.items() if "second" not in k} for line in loop.lines]
    weights = {n: real(t).clone() for n, t in loop.model.state_dict().items()}
    return {"weights": weights, "ledger": loop.ledger.digest(), "lines": lines}


def test_a_table_of_keys_has_the_keys_of_every_step() -> None:
    table = NoiseTable(7, torch.device("cpu"), room=3)
    tensors = ["a.E", "b.E#1", "c"]
    for step in (0, 5, 2**40):
        table.set_step(step)
        for name in tensors:
            found, right = table.key(name, 3), noise_key(7, step, name, 3)
            assert (int(found.k0), int(found.k1), found.base) == (right.k0, right.k1, right.base)
    with pytest.raises(LookupError, match="no row for the rounding of d"):
        table.key("d")
    table.recording = 1
    assert int(table.key("c").k0) == noise_key(7, 2**40, "c").k0


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    different = [n for n, t in a["weights"].items() if not torch.equal(t, b["weights"][n])]
    assert not different
    assert a["ledger"] == b["ledger"]
    figures = [
        {k: v for k, v in line.items() if not any(word in k for word in ("per_s", "wait", "step"))}
        for line in (*a["lines"], *b["lines"])
    ]
    half = len(figures) // 2
    assert figures[:half] == figures[half:]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """One step of a kind before it is recorded; the generators are as they were afterwards."""
    monkeypatch.setattr(recording, "WARM_UP", 1)
    with torch.random.fork_rng(devices=[]):
        yield


class Recorded:
    """Recorded runs of the default length, each made once."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[dict[str, Any], int, int]] = {}

    def __call__(self, method: str, settings: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
        """The outcome, and how often the device recorded and replayed."""
        key = f"{method} {settings}"
        if key not in self._made:
            with pretending() as device:
                self._made[key] = trained(loop_of(config(method, settings), device)), device.records, device.replays
        return self._made[key]


@pytest.fixture(scope="module")
def recorded_run() -> Recorded:
    return Recorded()


@pytest.mark.parametrize(("method", "settings"), CASES)
def test_recorded_steps_give_the_bits_of_steps_done_anew(
    method: str, settings: dict[str, Any], recorded_run: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, records, replays = recorded_run(method, settings)
    assert records
    assert replays >= 2
    gated = method in ("dfq", "fractrain")  # with all candidates live, sums have more terms than in plain steps
    monkeypatch.setattr(recording, "WARM_UP", 1000)
    with pretending() as device:
        same(recorded, trained(loop_of(config(method, settings), device, recorded=gated)))
        assert device.replays == 0


@pytest.mark.parametrize("method", ["dfq", "fractrain"])
def test_a_step_with_all_candidates_live_is_that_with_those_that_were_chosen(method: str) -> None:
    """Up to the order of sums, which stochastic rounding makes visible: so for one step only."""
    run = config(method, {}, iterations=1, eval_every=1, milestones=[])
    with pretending() as device:
        recorded, plain = (trained(loop_of(run, device, r)) for r in (True, False))
    assert recorded["ledger"] == plain["ledger"]
    for name, value in recorded["weights"].items():
        other = plain["weights"][name]
        if name.endswith("num_batches_tracked"):  # counts passes, frozen ones included
            continue
        assert torch.allclose(value.double(), other.double(), rtol=0, atol=1e-5 * float(other.abs().max() + 1)), name


def test_every_method_is_recorded_or_it_is_known_why_not() -> None:
    assert {m for m, _ in CASES} | NOT_RECORDED.keys() == set(names())
    with pretending() as device:
        for method in NOT_RECORDED:
            assert loop_of(config(method, {}), device).recorded is None
        assert loop_of(config("dfq", {"forward": "selected"}), device).recorded is None


@pytest.mark.parametrize(("method", "stops"), [("pfq", (3, 6)), ("fractrain", (5,)), ("fp32", (3,))])
def test_a_run_that_is_stopped_and_loaded_ends_with_the_same_bits(
    method: str, stops: tuple[int, ...], recorded_run: Recorded
) -> None:
    settings = STAGES if method != "fp32" else {}
    run = config(method, settings)
    straight, *_ = recorded_run(method, settings)
    with pretending() as device:
        loop = loop_of(run, device)
        for stop in stops:
            while loop.step < stop:
                loop.advance()
            state = loop.state_dict()
            loop = loop_of(run, device)
            loop.load_state_dict(state)
        same(straight, trained(loop))


@pytest.mark.parametrize(("method", "settings"), [("sbm", {}), ("pfq", STAGES)])
def test_adam_at_rates_that_float32_has_gives_the_bits_of_steps_that_are_never_recorded(
    method: str, settings: dict[str, Any]
) -> None:
    """Other rates are rounded to float32 when recorded, and Adam computes with them in double."""
    run = config(method, settings, optimizer="adamw", lr=2.0**-7, lr_decay=0.5)
    with pretending() as device:
        recorded = trained(loop_of(run, device))
        assert device.replays >= 2
        same(recorded, trained(loop_of(run, device, recorded=False)))


def test_adam_at_any_rate_differs_in_the_last_bits_only() -> None:
    """One step, since Adam makes what is in the last bits of small gradients as large as the rate in the next one."""
    run = config("fp32", {}, optimizer="adamw", lr=0.01, iterations=1, eval_every=1)
    with pretending() as device:
        of_tensor, of_number = (trained(loop_of(run, device, r)) for r in (True, False))
    assert of_tensor["ledger"] == of_number["ledger"]
    for name, value in of_tensor["weights"].items():
        assert torch.allclose(value.double(), of_number["weights"][name].double(), rtol=1e-6, atol=1e-8), name


class ShortPasses(SmallRegistries):
    """Trains on 44 images."""

    def data(self, *arguments: Any) -> Any:
        data = super().data(*arguments)
        return replace(data, train=data.train.take(np.arange(44)))


def test_adam_clipping_and_a_smaller_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config("sbm", {}, optimizer="adamw", lr=1e-3, clip_norm=0.5, batch_size=16, iterations=9, eval_every=9)
    with pretending() as device:
        recorded = trained(loop_of(run, device, known=ShortPasses()))
        assert device.records == 2  # of the batches of 16, and of the last of each pass
        monkeypatch.setattr(recording, "WARM_UP", 1000)
        same(recorded, trained(loop_of(run, device, known=ShortPasses())))


def test_a_recording_that_does_something_else_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    run = config("sbm", {}, iterations=6, eval_every=3)
    with pretending() as device, caplog.at_level(logging.WARNING):
        whole = device.record

        def half(work):
            _, result = whole(work)
            return (lambda: None), result  # a replay that does nothing

        device.record = half  # type: ignore[method-assign]
        loop = loop_of(run, device)
        while loop.step < recording.WARM_UP + 1:
            loop.advance()
        assert loop.recorded is not None
        before = outcome(loop)["weights"]
        loop.advance()
        assert not loop.recorded.on
        assert any(not torch.equal(t, before[n]) for n, t in outcome(loop)["weights"].items())
        assert loop.method.state.table is None
        trained(loop)
    assert len([r for r in caplog.records if "differs from the same update" in r.getMessage()]) == 1


THREE = {"iterations": 3, "eval_every": 3, "milestones": []}  # warming up, recording in vain, and one more


@pytest.fixture(scope="module")
def three_plain_steps() -> dict[str, Any]:
    with pretending() as device, torch.random.fork_rng(devices=[]):
        return trained(loop_of(config("sbm", {}, **THREE), device, recorded=False))


@pytest.mark.parametrize("watches", [True, False])
@pytest.mark.parametrize("what", ["reads", "grows", "copies"])
def test_what_cannot_be_recorded_is_done_step_by_step_with_one_line(
    what: str,
    watches: bool,
    three_plain_steps: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pretending() as device, caplog.at_level(logging.WARNING):
        device.watches = watches
        loop = loop_of(config("sbm", {}, **THREE), device)
        step = loop.task.step

        def odd(model, x, y, of=None):
            done = step(model, x, y)
            if what == "reads":
                float(done.loss.detach())
            elif what == "grows":
                (y == 1).nonzero()
            else:
                torch.arange(3).to(y.device)
            return done

        monkeypatch.setattr(loop.task, "step", odd)
        same(trained(loop), three_plain_steps)
        assert device.replays == 0
    lines = [r.getMessage() for r in caplog.records if "are not recorded" in r.getMessage()]
    assert len(lines) == 1
    assert "\n" not in lines[0]


class LinearRegistries(SmallRegistries):
    """Layers whose int8 products a GPU makes."""

    def model(self, name: str, dataset: str, seed: int) -> nn.Module:
        info = self.dataset_info(dataset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = (nn.Linear(math.prod(info.shape), 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
            return nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, info.classes))


def test_int8_products_are_recorded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the first step waits for the device: it tries whether they are exact."""
    monkeypatch.setattr(recording, "WARM_UP", 2)
    int8_gemm._tried.cache_clear()
    made = []
    sums = int8_gemm._sums
    monkeypatch.setattr(int8_gemm, "DEVICES", {DEVICE.type})
    monkeypatch.setattr(int8_gemm, "_sums", lambda x, y: made.append(x.shape) or sums(x, y))
    run = config("static", {"bits": 8, "grad_bits": 8}, batch_size=64)

    def loop(device: Device, recorded: bool) -> TrainingLoop:
        return TrainingLoop(
            run, Site(), LinearRegistries(), ranks=Ranks(DEVICE), recorder=device if recorded else None
        )  # fmt: skip

    with pretending() as device:
        recorded = trained(loop(device, True))
        assert device.replays >= 2
        assert {(64, 48), (32, 64)} <= {tuple(shape) for shape in made}  # FW and GC of the second layer
        same(recorded, trained(loop(device, False)))


class Convolutions:
    """Stands for the launcher of int8 convolutions, which needs a GPU: products of values."""

    def __init__(self) -> None:
        self.made: set[str] = set()

    def convolve(self, x: Quantized, w: Quantized, bias: Any, g: Geometry, back: bool = False) -> torch.Tensor:
        self.made.add("EB" if back else "FW")
        if back:
            a = torch.zeros(x.codes.shape[0], *g.image, device=x.codes.device)
            return self.backward(x.values(), a, w.values(), g)[0]
        return nn.functional.conv2d(x.values(), w.values(), bias, g.stride, g.padding)

    def correlate(self, e: Quantized, a: Quantized, g: Geometry) -> torch.Tensor:
        self.made.add("GC")
        w = torch.zeros(g.filters, g.image[0], *g.kernel, device=e.codes.device)
        return self.backward(e.values(), a.values(), w, g)[1]

    def backward(self, e: torch.Tensor, a: torch.Tensor, w: torch.Tensor, g: Geometry) -> Any:
        args = (None, g.stride, g.padding, (1, 1), False, (0, 0), 1, (True, True, False))
        return torch.ops.aten.convolution_backward(e, a, w, *args)


@pytest.mark.parametrize(
    ("method", "settings", "made"),
    [("sbm", {}, {"FW", "GC"}), ("sbm", {"variant": "banner"}, {"FW", "EB"}), ("dfq", {}, {"FW", "GC"})],
)
def test_int8_convolutions_are_recorded_too(
    method: str, settings: dict[str, Any], made: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = Convolutions()
    monkeypatch.setattr(int8_conv, "DEVICES", {DEVICE.type})
    monkeypatch.setattr(int8_conv, "load", lambda: launcher)
    monkeypatch.setattr(int8_conv, "_tried", lambda g, product, device: True)
    monkeypatch.setattr(int8_conv, "LEAST_MACS", 1)
    run = config(method, settings)

    def loop(device: Device) -> TrainingLoop:
        return TrainingLoop(
            run, Site(), SmallRegistries(), ranks=Ranks(DEVICE), recorder=device
        )  # fmt: skip

    with pretending() as device:
        recorded = trained(loop(device))
        assert (replays := device.replays) >= 2
        assert launcher.made == made
        monkeypatch.setattr(recording, "WARM_UP", 1000)
        same(recorded, trained(loop(device)))
        assert device.replays == replays


def test_launching_int8_convolutions_does_not_wait() -> None:
    launched = []

    class Nothing:
        """Kernels that note where their tensors are."""

        def __getattr__(self, name: str) -> Any:
            class Launch:
                def __getitem__(_, programs: tuple[int, ...]) -> Any:
                    return lambda **args: launched.append((name, [t for t in args.values() if torch.is_tensor(t)]))

            return Launch()

    def codes(*shape: int, rows: bool = False) -> Quantized:
        scale = torch.ones((shape[0], 1, 1, 1) if rows else (), device=DEVICE)
        whole = (torch.zeros((), device=DEVICE) for _ in range(3))
        return Quantized(torch.zeros(shape, dtype=torch.uint8, device=DEVICE), Grid(scale, *whole))

    g = Geometry((3, 6, 5), 4, (3, 3), (2, 1), (1, 1))
    launcher = int8_conv.ConvLauncher(Nothing())  # type: ignore[arg-type]
    with pretending() as device:
        a, e = codes(2, *g.image), codes(2, g.filters, *g.output)
        w, one, bias = codes(4, 3, 3, 3, rows=True), codes(4, 3, 3, 3), torch.zeros(4, device=DEVICE)
        works = (lambda: launcher.convolve(a, w, bias, g), lambda: launcher.convolve(e, one, None, g, back=True),
                 lambda: launcher.correlate(e, a, g))  # fmt: skip
        shapes = [tuple(device.record(work)[1].shape) for work in works]
    assert shapes == [(2, 4, *g.output), (2, *g.image), (4, 3, 3, 3)]
    assert [name for name, _ in launched] == ["pack", "convolve"] * 2 + ["correlate"] * 2 + ["finish"]
    assert all(t.device == DEVICE for _, tensors in launched for t in tensors)


def test_the_device_of_these_tests_refuses_what_a_graph_cannot_hold() -> None:
    with pretending() as device:
        x = torch.ones(3, device=DEVICE)
        for work in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.cpu(), lambda: torch.ones(3).to(DEVICE),
                     lambda: x.tolist(), lambda: bool((x > 0).all()), lambda: x + torch.ones(3)):  # fmt: skip
            with pytest.raises(RuntimeError, match=r"waits for the device|between host and device"):
                device.record(work)
        replay, out = device.record(lambda: x.add_(1) * 2)
        assert real(x).tolist() == [1.0, 1.0, 1.0]
        replay()
        replay()
        assert real(x).tolist() == [3.0, 3.0, 3.0]
        assert real(out).tolist() == [6.0, 6.0, 6.0]
