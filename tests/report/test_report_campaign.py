"""Campaigns: the issue's order, runs that are those of tables, and files that are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fractrain.report.campaign import done_in_order, load_campaign, plan_campaign
from fractrain.report.grid import plan
from fractrain.report.spec import load_spec
from fractrain.util.errors import ConfigError

ORDER = [  # methods, data set, length: each for three seeds, seed by seed
    ("fp32 sbm dfq fractrain", "cifar10", "1/64"),
    ("fp32 sbm dfq fractrain", "cifar10", "1/32"),
    ("pfq slu dynasty static-4-6 fractrain-script", "cifar10", "1/64"),
    ("fp32 sbm dfq fractrain", "cifar10", "1/16"),
    ("fp32 sbm dfq fractrain", "cifar100", "1/64"),
    ("fp32 sbm dfq fractrain", "cifar100", "1/32"),
]


@dataclass(frozen=True)
class Record:
    run_id: str
    status: str = "done"


class Store(dict):
    """Records by run id."""

    def put(self, *ids: str) -> Store:
        self.update({run_id: Record(run_id) for run_id in ids})
        return self


@pytest.fixture(scope="module")
def scaling():
    return load_campaign("scaling")


@pytest.fixture(scope="module")
def runs(scaling):
    return plan_campaign(scaling)


def test_the_order_is_the_stated_one(runs):
    expected = [
        (method, data, length, seed)
        for methods, data, length in ORDER for seed in range(3) for method in methods.split()
    ]  # fmt: skip
    assert [(r.row.key, r.request.dataset, r.request.profile, r.seed) for r in runs] == expected
    assert {r.state for r in runs} == {"to run"}
    assert len({r.run_id for r in runs}) == len(runs)


def test_runs_are_those_of_the_tables(runs):
    for table, rows in (("table2", {"fp32", "sbm", "dfq", "fractrain", "pfq"}), ("table5", {"slu"})):
        wanted = {r.run_id for r in plan(load_spec(table), "1/64", 3)}
        own = [r for r in runs if r.row.key in rows and r.request.profile == "1/64"]
        assert len(own) >= 3
        assert {r.run_id for r in own} <= wanted


def test_lengths_are_shares_of_the_papers_iterations_with_its_schedule(runs):
    for run in runs:
        n = int(run.request.profile.removeprefix("1/"))
        recipe = run.config.recipe
        assert recipe.iterations == 64_000 // n
        assert recipe.milestones == (32_000 // n, 48_000 // n)
        assert (recipe.batch_size, recipe.lr) == (128, 0.1)


def test_both_thresholds_of_the_authors_are_run(runs):
    settings = {r.row.key: r.config.settings for r in runs if r.row.key.startswith("fractrain")}
    assert (settings["fractrain"]["epsilon"], settings["fractrain"]["alpha"]) == (0.05, 0.3)
    assert (settings["fractrain-script"]["epsilon"], settings["fractrain-script"]["alpha"]) == (0.15, 0.4)


def test_what_is_done_is_found_and_counted_as_a_prefix(scaling, runs):
    ids = [r.run_id for r in runs]
    partly = plan_campaign(scaling, Store().put(*ids[:5], ids[7]))
    assert [r.state for r in partly[:8]] == ["cached"] * 5 + ["to run"] * 2 + ["cached"]
    assert done_in_order(partly) == 5
    assert done_in_order(plan_campaign(scaling, Store().put(*ids))) == len(ids)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('row = "table2/sbm"', 'row = "table2/sbn"', r"table2 has no row 'sbn' \(did you mean 'sbm'\?\)"),
        ('row = "table2/sbm"', "", "sbm: give `row` or `method`"),
        ('key = "dfq"', 'key = "sbm"', "two have the same key"),
        ('length = "1/16"', 'length = "1/0"', "unknown profile '1/0'"),
        ('length = "1/16"', 'length = "smoke"', "'smoke' is no share of the paper's length"),
        ('dataset = "cifar100"', 'dataset = "svhn"', "no name is given for the data set 'svhn'"),
        ('"fp32", "sbm", "dfq", "fractrain"', '"fp23"', r"no method has the key 'fp23' \(did you mean 'fp32'\?\)"),
        ("version = 1", "versoin = 1", "unknown key versoin"),
    ],
)
def test_wrong_files_are_named_in_one_line(tmp_path, old, new, message):
    from fractrain.report.spec import benchmark_folders

    text = (benchmark_folders("campaigns")[0] / "scaling.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new, 1))
    assert file.read_text() != text
    with pytest.raises(ConfigError, match=message) as caught:
        plan_campaign(load_campaign(str(file)))
    assert "\n" not in str(caught.value)


def test_an_unknown_campaign_is_told_what_there_is():
    with pytest.raises(ConfigError, match=r"unknown campaign 'scalling' \(did you mean 'scaling'\?\); known: scaling"):
        load_campaign("scalling")
