"""Runs of 1/n of the paper's length: what is scaled, what stays, and how lengths are named."""

from __future__ import annotations

import pytest

from fractrain.data.registry import info
from fractrain.engine import length
from fractrain.engine.config import RunConfig
from fractrain.engine.recipes import recipe_values
from fractrain.engine.schedule import Clock, learning_rate
from fractrain.util.errors import ConfigError


def create(profile=None, method="sbm", **values):
    return RunConfig.create(method=method, model="resnet38", dataset="cifar10", profile=profile, **values)


@pytest.mark.parametrize(
    ("profile", "iterations", "milestones", "period"),
    [
        ("paper", 64_000, (32_000, 48_000), 0),
        ("1/2", 32_000, (16_000, 24_000), 0),
        ("short", 8_000, (4_000, 6_000), 0),
        ("1/16", 4_000, (2_000, 3_000), 200),
        ("1/32", 2_000, (1_000, 1_500), 100),
        ("1/64", 1_000, (500, 750), 50),
        ("1/3", 21_333, (10_666, 16_000), 0),
    ],
)
def test_iterations_milestones_and_periods_are_divided(profile, iterations, milestones, period):
    recipe = create(profile).recipe
    assert (recipe.iterations, recipe.milestones, recipe.eval_every) == (iterations, milestones, period)
    assert (recipe.batch_size, recipe.lr, recipe.lr_decay, recipe.weight_decay) == (128, 0.1, 0.1, 1e-4)
    assert Clock.from_recipe(recipe, 391).periods >= 20


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet", "wikitext103"])
def test_the_learning_rate_at_a_share_of_training_is_that_of_the_paper(dataset):
    paper, sixteenth = (
        RunConfig.model_fields["recipe"].annotation(**recipe_values(info(dataset), p)) for p in ("paper", "1/16")
    )
    for share in (0.0, 0.1, 0.3, 0.49, 0.51, 0.7, 0.9):
        rates = [learning_rate(r, int(share * r.iterations)) for r in (paper, sixteenth)]
        if dataset != "wikitext103" or share:  # a warm-up has a first step
            assert rates[0] == pytest.approx(rates[1], rel=0.02)


def test_dfq_keeps_its_weight_of_the_cost_term():
    assert create("1/64", "dfq").settings == create("paper", "dfq").settings


def test_length_is_part_of_the_id_and_names_are_one():
    profiles = ["paper", "short", "1/16", "1/64"]
    assert len({create(p).run_id for p in profiles}) == len(profiles)
    assert create("1/8").run_id == create("short").run_id
    assert create("1/1").run_id == create("paper").run_id == create().run_id
    assert create("1/64").profile == "1/64"
    with pytest.raises(ConfigError, match="'short'"):
        RunConfig.from_json(create("short").to_json().replace('"short"', '"1/8"'), "x")


@pytest.mark.parametrize(
    ("profile", "given", "meant"),
    [
        (None, None, None), ("smoke", None, "smoke"), (None, "1/64", "1/64"), ("paper", "1/64", "1/64"),
        ("short", "1/8", "short"), (None, "1/8", "short"), (None, "1", "paper"), ("paper", "1/1", "paper"),
    ],
)  # fmt: skip
def test_profile_and_length_combine(profile, given, meant):
    assert length.chosen_profile(profile, given) == meant


@pytest.mark.parametrize(
    ("profile", "given"),
    [("smoke", "1/64"), ("short", "1/64"), (None, "64"), (None, "2/3"), (None, "0.1"), (None, "1/0"), (None, "short")],
)
def test_contradictions_and_nonsense_are_refused(profile, given):
    with pytest.raises(ConfigError, match="--length"):
        length.chosen_profile(profile, given)


def test_a_share_without_room_for_its_periods_is_refused():
    with pytest.raises(ConfigError, match=r"1/64000.*1 iterations: 20 are needed"):
        create("1/64000")
    with pytest.raises(ConfigError, match="embedded"):
        RunConfig.create(method="sbm", model="resnet38", dataset="digits", profile="1/64")


def test_names_in_titles_and_files():
    assert [length.length_text(p) for p in ("smoke", "short", "paper", "1/64")] == [
        "profile smoke", "profile short (length 1/8)", "profile paper", "length 1/64",
    ]  # fmt: skip
    assert [length.profile_slug(p) for p in ("smoke", "1/64")] == ["smoke", "length-1-64"]
    assert length.longest_first(["smoke", "1/64", "short", "1/16", "paper", "1/64"]) == [
        "paper", "short", "1/16", "1/64", "smoke",
    ]  # fmt: skip
    assert [length.length_divisor(p) for p in ("smoke", "short", "paper", "1/64")] == [None, 8, 1, 64]
