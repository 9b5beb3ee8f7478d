"""Every run whose method watches the loss from period to period has enough periods for its changes of precision."""

from __future__ import annotations

from pathlib import Path

import pytest

from fractrain.data import registry
from fractrain.engine.config import RunConfig
from fractrain.engine.length import PROFILES
from fractrain.engine.recipes import PERIODS, recipe_values
from fractrain.engine.registries import Registries
from fractrain.engine.schedule import Clock
from fractrain.engine.store import RunStore
from fractrain.report.grid import plan
from fractrain.report.spec import load_spec, table_names


def periods(config: RunConfig) -> int:
    """Evaluation periods of a run on the data set as published."""
    info = Registries().for_setting(config.setting, config.seed).dataset_info(config.dataset)
    samples = (info.train_size - info.shape[0]) // info.shape[0] if info.kind == "text" else info.train_size
    return Clock.from_recipe(config.recipe, max(1, -(-samples // config.recipe.batch_size))).periods


@pytest.mark.parametrize("profile", ["short", "1/64"])
@pytest.mark.parametrize("table", table_names())
def test_a_short_run_can_change_its_precision(table: str, profile: str, tmp_path: Path) -> None:
    spec = load_spec(table)
    runs = [run.config for run in plan(spec, profile, 1, RunStore(tmp_path)) if run.config is not None]
    for config in runs:
        if config.method in ("pfq", "fractrain"):
            assert periods(config) >= PERIODS == 20, config.run_id


@pytest.mark.parametrize(
    ("dataset", "every"),
    [("wikitext103", 250), ("wikitext2", 32), ("imagenet", 2_816), ("imagenette", 28), ("cifar10", 0), ("cifar100", 0)],
)
def test_evaluation_periods_of_short_runs(dataset: str, every: int) -> None:
    """Where the paper's profile names a period there are as many; hand-computed: 50,000/8/25, ceil(5,100/8/20), ..."""
    short, paper = (recipe_values(registry.info(dataset), profile) for profile in ("short", "paper"))
    assert short["eval_every"] == every
    if paper.get("eval_every"):
        count = [-(-values["iterations"] // values["eval_every"]) for values in (short, paper)]
        assert count[0] == count[1]


def test_other_profiles_keep_their_periods() -> None:
    """The ids of runs of the paper's profile, and of those that show that real data works, are those they were."""
    kept = {"wikitext103": 2_000, "wikitext2": 255}
    for dataset in (*kept, "imagenet", "imagenette", "cifar10", "cifar100"):
        for profile in PROFILES:
            if profile != "short":
                assert recipe_values(registry.info(dataset), profile).get("eval_every", 0) == kept.get(dataset, 0)
