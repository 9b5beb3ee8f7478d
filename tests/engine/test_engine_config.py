from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from engine_fakes import FakeRegistries, fake_config
from pydantic import Field

from fractrain.data.registry import info
from fractrain.engine.config import RunConfig, collect_sets, parse_set
from fractrain.engine.recipes import Recipe, recipe_values, with_length
from fractrain.engine.schedule import Clock, learning_rate
from fractrain.util.errors import ConfigError
from fractrain.util.settings import ADDED


def create(**values):
    base = {"method": "fake", "model": "tiny", "dataset": "digits", "registries": FakeRegistries()}
    return RunConfig.create(**{**base, **values})


def test_id_is_readable_and_pinned():
    config = create()
    prefix, digest = config.run_id.rsplit("-", 1)
    assert prefix == "fake-tiny-digits-s0"
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    # A change of these values means that every stored run is run again: then raise FORMAT_VERSION and say so.
    assert config.run_id == "fake-tiny-digits-s0-512f2ed75045"


@pytest.mark.parametrize(("method", "digest"), [
    ("sbm", "4f1434e942d6"), ("pfq", "ffee598b2974"), ("dynasty", "a1cb00431f51"), ("static", "4794da058124"),
    ("cpt", "32b5215a6374"),
])  # fmt: skip
def test_ids_of_earlier_releases_stay(method, digest):
    config = RunConfig.create(method=method, model="transformer_base", dataset="wikitext103")
    assert config.run_id == f"{method}-transformer_base-wikitext103-s0-{digest}"


def test_a_setting_that_took_anothers_place_says_what_to_give_instead():
    for method, instead in (
        ("pfq", "indicator_clock"),
        ("dfq", "cp_batch"),
        ("fractrain", "indicator_loss"),
        ("slu", "closed"),
    ):
        with pytest.raises(
            ConfigError, match=f"no setting compat any more, got compat='authors': .*{instead}"
        ) as caught:
            RunConfig.create(method=method, model="resnet38", dataset="cifar10", settings={"compat": "authors"})
        assert "\n" not in str(caught.value)
        assert "epsilon" not in str(caught.value)


def test_recorded_runs_keep_their_ids():
    stored = sorted((Path(__file__).parents[2] / "results" / "evidence").rglob("config.json"))
    assert stored
    for path in stored:
        assert RunConfig.from_json(path.read_text(encoding="utf-8"), str(path)).run_id == path.parent.name


def test_default_spelled_out_gives_the_same_id():
    assert create().run_id == create(settings={"bits": 8, "noise": 0.01, "stages": [1, 2]}).run_id
    assert create().run_id == create(settings={"bits": "8"}).run_id
    assert create().run_id == create(profile="smoke", recipe={"momentum": 0.9, "iterations": 120}).run_id
    assert create(recipe={"lr": 1}).run_id == create(recipe={"lr": 1.0}).run_id


def test_every_field_changes_the_id():
    config = create()
    values = {
        "method": "other", "settings": {**config.settings, "bits": 4}, "method_version": 2, "model": "m",
        "model_version": 2, "dataset": "d", "dataset_id": "e",
        "setting": "adaptation", "profile": "paper", "seed": 1, "format_version": 2, "recipe": None,
        "source": create(seed=7), "outside_id": ("bits",), "former_settings": {"compat": "none"},
    }  # fmt: skip
    assert set(values) == set(RunConfig.model_fields)
    changes = {
        "iterations": 241, "batch_size": 65, "lr": 0.2, "momentum": 0.8, "weight_decay": 0.0, "milestones": (1,),
        "lr_decay": 0.5, "warmup": 1, "eval_every": 3, "val_fraction": 0.2, "augment": False, "deterministic": True,
        "zero_init_residual": False, "optimizer": "adam", "betas": (0.9, 0.9), "clip_norm": 0.5,
        "schedule": "inverse_sqrt", "sync_ranges": False, "sync_batch_norm": False,
    }  # fmt: skip
    assert set(changes) == set(Recipe.model_fields)
    ids = [config.run_id]
    for key, value in values.items():
        for recipe_key, recipe_value in changes.items() if key == "recipe" else [("", None)]:
            new = config.recipe.model_copy(update={recipe_key: recipe_value}) if key == "recipe" else value
            ids.append(RunConfig.model_construct(**{**dict(config), key: new}).run_id)
    for key, value in {"noise": 0.02, "bad_step": 3, "bad_kind": "x", "stages": [1, 3]}.items():
        ids.append(create(settings={key: value}).run_id)
    assert len(set(ids)) == len(ids)


def test_a_recipe_key_that_came_later_leaves_recorded_ids_alone():
    folder = Path(__file__).parents[2] / "results" / "evidence" / "cifar10-one-epoch"
    for record in (path for path in folder.iterdir() if path.is_dir()):
        text = (record / "config.json").read_text()
        assert "zero_init_residual" not in text
        assert RunConfig.from_json(text, "evidence").run_id == record.name


class Grown(FakeRegistries):
    """The fake method with one setting more."""

    def method_class(self, name):
        old = super().method_class(name)

        class Settings(old.Settings):
            rounding: str = Field("nearest", json_schema_extra=ADDED)
            pair: tuple[int, int] = Field((8, 16), json_schema_extra=ADDED)

        return type(old.__name__, (old,), {"Settings": Settings})


def test_a_setting_that_a_method_gains_leaves_ids_alone_at_its_default():
    grown = create(registries=Grown())
    assert grown.run_id == create().run_id
    assert grown.settings["rounding"] == "nearest"  # and yet the record is complete
    assert grown.outside_id == ("pair", "rounding")
    assert create(registries=Grown(), settings={"pair": [8, 16]}).run_id == create().run_id
    for settings in {"rounding": "stochastic"}, {"pair": [4, 16]}:
        other = create(registries=Grown(), settings=settings)
        assert other.run_id != create().run_id
        assert RunConfig.from_json(other.to_json(), "x") == other  # without asking the method


@pytest.mark.parametrize(("method", "digest"), [("fractrain", "7f97d2f93747"), ("pfq", "31979865acf8")])
def test_a_record_of_an_earlier_release_keeps_its_id(method, digest):
    record = json.loads(RunConfig.create(method=method, model="resnet38", dataset="cifar10").to_json())
    del record["outside_id"], record["former_settings"], record["model_version"]
    record["method_version"] = 1
    later = ("indicator_clock", "indicator_loss", "cp_batch", "keep", "layers")
    record["settings"] = {k: v for k, v in record["settings"].items() if k not in later} | {"compat": "none"}
    assert RunConfig.from_json(json.dumps(record), "x").run_id == f"{method}-resnet38-cifar10-s0-{digest}"


def test_planning_imports_no_torch():
    modules = "fractrain.engine.config, fractrain.engine.store, fractrain.execute.local, fractrain.util.progress"
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_round_trip_equality_and_hash():
    config = create(settings={"stages": [3, 4]})
    again = RunConfig.from_json(config.to_json(), "x")
    assert again == config
    assert again.run_id == config.run_id
    assert len({again, config}) == 1
    with pytest.raises(Exception, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"settings": {"bit": 3}}, ["--set", "fake", "'bit'", "did you mean 'bits'"]),
        ({"settings": {"bits": "many"}}, ["--set", "bits", "integer", "'many'"]),
        ({"settings": {"bits": 1.5}}, ["bits", "1.5"]),
        ({"recipe": {"iteration": 3}}, ["--set", "recipe", "'iteration'", "did you mean 'iterations'"]),
        ({"recipe": {"lr": -1}}, ["recipe", "lr", "greater than 0", "-1"]),
        ({"recipe": {"lr": "nan"}}, ["lr", "finite"]),
        ({"recipe": {"iterations": "x"}}, ["recipe", "iterations", "'x'"]),
        ({"recipe": {"milestones": [5, 3]}}, ["milestones", "ascend"]),
        ({"recipe": {"zzz": 1}}, ["'zzz'", "known: optimizer"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"profile": "smok"}, ["'smok'", "did you mean 'smoke'"]),
        ({"profile": "paper"}, ["'paper'", "'digits'", "--profile smoke"]),
        ({"setting": "fine-tunin"}, ["setting", "did you mean 'fine-tuning'"]),
        ({"dataset": "text"}, ["tiny cannot be trained on text"]),
        ({"method": "nope"}, ["unknown method 'nope'"]),
    ],
)
def test_errors_are_one_line_and_name_key_and_origin(values, words):
    with pytest.raises(ConfigError) as caught:
        create(origin="--set", **values)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format_version": 99}', '{"format_version": 1}'])
def test_a_file_that_is_no_config(text):
    with pytest.raises(ConfigError, match="some/file"):
        RunConfig.from_json(text, "some/file")


def test_profiles_of_a_real_data_set():
    paper = create(dataset="cifar10").recipe
    assert (paper.iterations, paper.batch_size, paper.milestones) == (64_000, 128, (32_000, 48_000))
    assert (paper.lr, paper.lr_decay, paper.momentum, paper.weight_decay, paper.warmup) == (0.1, 0.1, 0.9, 1e-4, 0)
    assert create(dataset="cifar10").profile == "paper"
    short = create(dataset="cifar100", profile="short").recipe
    assert (short.iterations, short.milestones) == (8_000, (4_000, 6_000))
    smoke = create(dataset="cifar10", profile="smoke").recipe
    assert smoke.iterations < 1000
    assert create().profile == "smoke"


def test_other_length_scales_the_schedule_unless_it_is_given():
    assert create(dataset="cifar10", recipe={"iterations": 640}).recipe.milestones == (320, 480)
    assert create(dataset="cifar10", recipe={"iterations": 640, "milestones": [9]}).recipe.milestones == (9,)
    assert with_length(recipe_values(info("cifar10"), "paper") | {"warmup": 6400}, 10)["warmup"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bits=4", ("settings", "bits", 4)),
        ("target_cp=1.5", ("settings", "target_cp", 1.5)),
        ("gate.width = 16", ("settings", "gate.width", 16)),
        ("recipe.lr=0.05", ("recipe", "lr", 0.05)),
        ("bits=3,4,6,8", ("settings", "bits", [3, 4, 6, 8])),
        ("bits=[3,4]", ("settings", "bits", [3, 4])),
        ("augment=true", ("settings", "augment", True)),
        ("name=a=b", ("settings", "name", "a=b")),
        ("name=", ("settings", "name", "")),
    ],
)
def test_parse_set(text, expected):
    assert parse_set(text) == expected


@pytest.mark.parametrize("text", ["bits", "=3", "recipe=3", "recipe.=3", ""])
def test_parse_set_errors(text):
    with pytest.raises(ConfigError, match="--set"):
        parse_set(text)


def test_collect_sets():
    assert collect_sets(["a.b=1", "a.c=2", "recipe.lr=1", "d=x"]) == ({"a": {"b": 1, "c": 2}, "d": "x"}, {"lr": 1})
    for bad in (["a=1", "a=2"], ["a=1", "a.b=2"]):
        with pytest.raises(ConfigError, match="--set"):
            collect_sets(bad)


def test_learning_rate_is_the_papers_and_a_function_of_the_step():
    recipe = create(dataset="cifar10").recipe
    by_hand = {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    for step, rate in by_hand.items():
        assert learning_rate(recipe, step) == pytest.approx(rate, rel=1e-12)
    warm = recipe.model_copy(update={"warmup": 4})
    assert [learning_rate(warm, s) for s in range(5)] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_clock_against_counting():
    clock = Clock.from_recipe(fake_config(iterations=23, eval_every=5).recipe, batches=4)
    assert clock.periods == 5
    steps = [step for epoch in range(clock.periods) for step in range(clock.start(epoch), clock.end(epoch))]
    assert steps == list(range(23))
    assert clock.end(4) == 23
    assert [clock.data(step) for step in (0, 3, 4, 22)] == [(0, 0), (0, 3), (1, 0), (5, 2)]
    assert Clock.from_recipe(fake_config().recipe, batches=4).period == 4
