"""Adaptation and fine-tuning: the parts of the data, the source run, the weights that go from one to the other."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from fractrain.data import registry
from fractrain.data.images import ImageData, Split
from fractrain.data.transfer_splits import half_of_classes, part_data, part_info, unsuitable_reason
from fractrain.engine import checkpoint
from fractrain.engine.config import RunConfig
from fractrain.engine.init_weights import head_name, source_weights, start_from
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.recipes import TRANSFER_NOTE
from fractrain.engine.registries import Registries
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.engine.trainer import Trainer
from fractrain.execute.local import LocalExecutor
from fractrain.methods import registry as methods
from fractrain.util.digests import weights_sha256
from fractrain.util.errors import CheckpointError, ConfigError
from fractrain.util.seeds import derive_seed
from fractrain.util.signals import RunInterrupted

CPU = torch.device("cpu")
INFO = registry.info("digits100")
SETTINGS = ("adaptation", "fine-tuning")


class Tiny(nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


class TinyModels(Registries):
    """The package's methods and data, a tiny model."""

    width = 4

    def mismatch(self, model, dataset):
        return None

    def model(self, name, dataset, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            return Tiny(self.dataset_info(dataset).classes, self.width)


def make(setting, seed=0, method="sbm", steps=4, source_steps=3, **recipe):
    values = {"eval_every": 2, "zero_init_residual": False}
    return RunConfig.create(
        method=method, model="tiny", dataset="digits100", setting=setting, seed=seed, registries=TinyModels(),
        recipe={**values, "iterations": steps, **recipe},
        source_recipe={**values, "iterations": source_steps} if setting in SETTINGS else None,
    )  # fmt: skip


def trainer(config, folder, checkpoint_seconds=60.0, **options):
    site = Site(folder, device="cpu", checkpoint_seconds=checkpoint_seconds)
    return Trainer(config, site, registries=TinyModels(), **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with an adaptation and a fine-tuning, and what they started from."""
    folder = tmp_path_factory.mktemp("settings")
    for setting in SETTINGS:
        trainer(make(setting), folder).run()
    return RunStore(folder)


@pytest.fixture
def copy(store, tmp_path):
    """A copy of it to spoil, without the runs that came second."""
    for setting in SETTINGS:
        source = make(setting).source
        shutil.copytree(store.path(source.run_id), tmp_path / source.run_id)
    return tmp_path


# -- parts -----------------------------------------------------------------------------------------------------------


def small_data(per_class=4):
    labels = torch.arange(100).repeat(per_class)
    images = torch.arange(len(labels), dtype=torch.int64)  # each image carries its number in two pixels
    pixels = torch.zeros(len(labels), 3, 8, 16, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = (images // 256).to(torch.uint8), (images % 256).to(torch.uint8)
    split = Split(pixels, labels)
    return ImageData(INFO, split, split, split)


def numbers(split):
    return (split.images[:, 0, 0, 0].long() * 256 + split.images[:, 0, 0, 1].long()).tolist()


@pytest.mark.parametrize("seed", [0, 5])
def test_adaptation_divides_the_classes(seed):
    data = small_data()
    parts = [part_data(data, setting, seed) for setting in ("adaptation-source", "adaptation")]
    classes = half_of_classes(INFO, seed)
    assert sorted(np.concatenate(classes).tolist()) == list(range(100))
    for part, own in zip(parts, classes, strict=True):
        assert part.info.classes == 50
        for name in ("train", "val", "test"):
            split = getattr(part, name)
            true = data.train.labels[numbers(split)].tolist()
            assert set(true) == set(own.tolist())
            assert [own.tolist().index(label) for label in true] == split.labels.tolist()
    assert sorted(numbers(parts[0].train) + numbers(parts[1].train)) == list(range(400))


def test_fine_tuning_divides_the_images_of_every_class():
    data = small_data()
    parts = [part_data(data, setting, 3) for setting in ("fine-tuning-source", "fine-tuning")]
    assert sorted(numbers(parts[0].train) + numbers(parts[1].train)) == list(range(400))
    for part in parts:
        assert part.info.classes == 100
        assert torch.bincount(part.train.labels).tolist() == [2] * 100
        assert numbers(part.test) == numbers(part.val) == list(range(400))


def test_splits_are_functions_of_the_seed():
    data = small_data()
    for setting in SETTINGS:
        first, again, other = (numbers(part_data(data, setting, seed).train) for seed in (1, 1, 2))
        assert first == again != other


def test_standard_is_the_data_set_itself():
    data = small_data()
    assert part_data(data, "standard", 0) is data
    assert part_info(INFO, "standard") is INFO


def test_data_sets_that_cannot_be_divided():
    assert "memory" in unsuitable_reason(registry.info("imagenet"), "fine-tuning")
    with pytest.raises(ConfigError, match="cannot be used for adaptation"):
        RunConfig.create(method="fp32", model="resnet18", dataset="imagenet", setting="adaptation")


# -- configs ---------------------------------------------------------------------------------------------------------


def test_a_config_brings_its_source_along():
    config = RunConfig.create(method="fractrain", model="resnet38", dataset="cifar100", setting="adaptation", seed=2)
    source = config.source
    assert (source.method, source.setting, source.seed, source.model) == ("fp32", "adaptation-source", 2, "resnet38")
    assert (source.recipe.iterations, source.recipe.lr, source.source) == (64_000, 0.1, None)
    assert (config.recipe.iterations, config.recipe.milestones) == (32_000, (16_000, 24_000))
    assert config.recipe.lr == pytest.approx(0.01)
    assert RunConfig.from_json(config.to_json(), "x") == config
    assert RunConfig.from_json(config.to_json(), "x").run_id == config.run_id


def test_ids_tell_settings_and_sources_apart():
    configs = [make("standard"), make("adaptation"), make("fine-tuning"), make("adaptation", source_steps=5)]
    configs += [config.source for config in configs if config.source]
    assert len({config.run_id for config in configs}) == len(configs)
    assert make("adaptation").source.run_id == make("adaptation", method="fp32", steps=9).source.run_id


def test_a_config_without_its_source_is_refused():
    text = make("adaptation").model_copy(update={"source": None}).to_json()
    with pytest.raises(ConfigError, match="'adaptation' needs a source run"):
        RunConfig.from_json(text, "x")
    with pytest.raises(ConfigError, match="setting 'standard' has none"):
        RunConfig.create(method="fp32", model="resnet38", dataset="digits100", source_recipe={"lr": 1})


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_starts_from_the_end_of_its_source(store, setting):
    config = make(setting)
    source = store.get(config.source.run_id)
    assert source.status == store.get(config.run_id).status == "done"
    assert source.summary["iterations"] == 3
    weights = source_weights(store, config.source)
    assert weights_sha256(_Holder(weights)) == source.summary["weights_sha256"]
    known, started = TinyModels(), []

    def start(model):
        started.append({name: value.clone() for name, value in model.state_dict().items()})
        start_from(model, weights, config.source.run_id, setting == "adaptation")

    with torch.random.fork_rng(devices=[]):
        loop = TrainingLoop(config, Site(device="cpu"), known, start=start)
    state, fresh = loop.model.state_dict(), started[0]
    assert torch.equal(state["conv.weight"], weights["conv.weight"])
    assert torch.equal(state["bn.running_var"], weights["bn.running_var"])
    assert not torch.equal(state["conv.weight"], fresh["conv.weight"])
    if setting == "adaptation":
        assert state["head.weight"].shape == (50, 4)
        assert torch.equal(state["head.weight"], fresh["head.weight"])
    else:
        assert state["head.weight"].shape == (100, 4)
        assert torch.equal(state["head.weight"], weights["head.weight"])


class _Holder:
    def __init__(self, state):
        self._state = state

    def state_dict(self):
        return self._state


@pytest.mark.parametrize("setting", SETTINGS)
def test_resume_is_bit_for_bit(store, copy, setting, monkeypatch):
    config = make(setting)
    real = TrainingLoop.advance

    def until_two(loop):
        if loop.config == config and loop.step == 3:
            raise KeyboardInterrupt
        real(loop)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "advance", until_two)
        with pytest.raises(RunInterrupted):
            trainer(config, copy, checkpoint_seconds=0).run()
    shutil.rmtree(copy / config.source.run_id)  # is not needed any more
    summary = trainer(config, copy).run().summary
    for key in ("weights_sha256", "ledger_sha256"):
        assert summary[key] == store.get(config.run_id).summary[key]
    assert not (copy / config.source.run_id).exists()


def test_an_interrupted_source_goes_on(store, tmp_path, monkeypatch):
    config, real = make("fine-tuning"), TrainingLoop.advance

    def until_two(loop):
        if loop.step == 2 and loop.epoch == 1:
            raise KeyboardInterrupt
        real(loop)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "advance", until_two)
        with pytest.raises(RunInterrupted, match=config.source.run_id):
            trainer(config, tmp_path, checkpoint_seconds=0).run()
    assert (
        trainer(config, tmp_path).run().summary["weights_sha256"]
        == (store.get(config.run_id).summary["weights_sha256"])
    )


def test_the_executor_runs_a_source_once_and_first(store, tmp_path, monkeypatch):
    import fractrain.execute.local as module

    order = []

    def here(config, site, progress):
        order.append(config)
        return module.Outcome(config.run_id, "failed" if config.seed else "done", "why")

    monkeypatch.setattr(module, "run_here", here)
    configs = [make("adaptation"), make("adaptation", method="fp32"), make("adaptation", seed=1), make("standard")]
    outcomes = LocalExecutor(isolate=False).run(configs, Site(tmp_path))
    sources = [config.source for config in configs if config.source]
    assert order == [sources[0], sources[2], configs[0], configs[1], configs[3]]
    assert [o.status for o in outcomes] == ["done", "done", "failed", "done"]
    assert outcomes[2].message == f"its source run {sources[2].run_id}: failed: why"
    assert [o.run_id for o in outcomes] == [config.run_id for config in configs]
    order.clear()
    LocalExecutor(isolate=False).run([make("adaptation")], Site(store.root))
    assert order == []  # all done


# -- what can be wrong -----------------------------------------------------------------------------------------------


def refused(config, folder, *words):
    with pytest.raises(CheckpointError) as caught:
        trainer(config, folder).run()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_missing_weights(copy):
    config = make("adaptation")
    for file in (copy / config.source.run_id).glob("checkpoint*"):
        file.unlink()
    refused(config, copy, config.source.run_id, "missing", "move")


def test_damaged_weights(copy):
    config = make("adaptation")
    for file in (copy / config.source.run_id).glob("checkpoint*"):
        file.write_bytes(file.read_bytes()[:-5])
    refused(config, copy, "damaged", "away")


def test_earlier_weights(copy):
    config = make("adaptation")
    path = copy / config.source.run_id / checkpoint.NAME
    state = checkpoint.load(path, config.source.run_id)
    state["model"]["conv.weight"][0] += 1
    checkpoint.save(path, state, config.source.run_id)
    refused(config, copy, "not hold the final weights")


def test_weights_of_another_run(copy):
    config, other = make("adaptation"), make("fine-tuning")
    shutil.copy(copy / other.source.run_id / checkpoint.NAME, copy / config.source.run_id / checkpoint.NAME)
    refused(config, copy, "belongs to run", other.source.run_id)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("bn.weight"), "they lack 'bn.weight'"),
        (lambda w: w.update({"conv.weight": torch.zeros(8, 3, 3, 3)}), r"'conv.weight' has shape \[8, 3, 3, 3\]"),
        (lambda w: w.update({"conv2.weight": torch.zeros(1)}), "the model has no 'conv2.weight'"),
    ],
)
def test_weights_of_another_model(change, words):
    model = Tiny(50)
    before = weights_sha256(model)
    weights = {**Tiny(100).state_dict(), "conv.running_low": torch.zeros(())}
    change(weights)
    with pytest.raises(CheckpointError, match=f"of another model: {words}"):
        start_from(model, weights, "some-run", new_head=True)
    assert weights_sha256(model) == before
    with pytest.raises(CheckpointError, match="of another model"):  # fine-tuning keeps the classifier
        start_from(model, Tiny(100).state_dict(), "some-run", new_head=False)


def test_the_head_is_the_last_linear_layer():
    assert head_name(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))) == "2"
    with pytest.raises(CheckpointError, match="no linear layer"):
        head_name(nn.Conv2d(1, 1, 1))


def test_a_table_says_setting_and_protocol():
    from fractrain.report.build import build_table
    from fractrain.report.grid import plan
    from fractrain.report.spec import load_spec

    spec = load_spec("table2")
    pair = next(p for p in spec.pairs if p.dataset == "cifar100")
    pairs = tuple(pair.model_copy(update={"setting": s}) for s in ("standard", *SETTINGS))
    spec = spec.model_copy(update={"pairs": pairs, "improvement": None})
    runs = [r for r in plan(spec, "smoke", 1) if r.row == spec.rows[0]]
    assert [r.config.setting for r in runs] == ["standard", *SETTINGS]
    table = build_table(spec, None, "smoke", 1)
    assert TRANSFER_NOTE in table.notes
    groups = list(dict.fromkeys(row.group for row in table.rows))
    assert [g.rpartition(", ")[2] for g in groups[1:]] == list(SETTINGS)
    assert TRANSFER_NOTE not in build_table(load_spec("table2"), None, "smoke", 1).notes


# -- the real thing --------------------------------------------------------------------------------------------------


def test_command_line_on_digits100(tmp_path):
    import json

    from click.testing import CliRunner

    from fractrain.cli import main

    arguments = [
        "run", "--method", "static8", "--model", "resnet38", "--dataset", "digits100", "--setting", "adaptation",
        "--results", str(tmp_path), "--device", "cpu", "--json",
        *(x for key in ("recipe", "source") for x in ("--set", f"{key}.iterations=2", "--set", f"{key}.batch_size=8")),
        "--set", "recipe.eval_every=2", "--set", "source.eval_every=2",
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    summary = json.loads(result.stdout)
    assert summary["status"] == "done"
    records = list(RunStore(tmp_path).records())
    assert sorted(r.config.setting for r in records) == ["adaptation", "adaptation-source"]
    model = checkpoint.load(tmp_path / summary["run_id"] / checkpoint.NAME, summary["run_id"])["model"]
    assert [v.shape[0] for v in model.values() if v.dim() == 2][-1] == 50


def _whole_numbers() -> list[tuple[str, str, object]]:
    """(method, setting, its default) of every setting that is a whole number or several."""
    found = []
    for name in methods.names():
        for key, value in methods.create(name, {}).settings.model_dump().items():
            first = value[0] if isinstance(value, tuple | list) and value else value
            if isinstance(first, int) and not isinstance(first, bool):
                found.append((name, key, value))
    return found


@pytest.mark.parametrize("number", [2**31, 2**63, -(2**63), 10**400])
def test_whole_numbers_beyond_sense_are_refused_in_one_line(number):
    for method, key, default in _whole_numbers():
        value = [number] * len(default) if isinstance(default, tuple | list) else number
        with pytest.raises(ConfigError) as caught:
            RunConfig.create(method=method, model="resnet38", dataset="digits", settings={key: value})
        assert key in str(caught.value), method
        assert len(str(caught.value)) < 500
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="iterations"):
        RunConfig.create(method="fp32", model="resnet38", dataset="digits", recipe={"iterations": abs(number)})


@pytest.mark.parametrize("key", ["gate_hidden", "gate_embed", "gate_state"])
@pytest.mark.parametrize("method", ["dfq", "fractrain"])
def test_a_gate_has_a_size_that_fits_into_memory(method, key):
    with pytest.raises(ConfigError, match=key):
        RunConfig.create(method=method, model="resnet38", dataset="digits", settings={key: 2**31 - 1})


def test_one_value_for_a_list_says_how_a_list_is_written():
    with pytest.raises(ConfigError, match=r"milestones: expected a list, for example 4,5 or \[4\], got 4"):
        RunConfig.create(method="fp32", model="resnet38", dataset="digits", recipe={"milestones": 4}, origin="--set")
