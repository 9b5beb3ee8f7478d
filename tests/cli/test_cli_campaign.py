"""``fractrain reproduce scaling``: the plan, what cannot be asked of a campaign, and runs in order."""

from __future__ import annotations

import json

import pytest

from fractrain.report import campaign as campaigns
from fractrain.report.spec import benchmark_folders


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The campaign's file with two methods and one seed, a few steps long."""
    text = (benchmark_folders("campaigns")[0] / "scaling.toml").read_text()
    lines = '[[lines]]\ndataset = "cifar10"\nlength = "1/64"\nmethods = ["fp32", "sbm"]\nseeds = [0]\n'
    (tmp_path / "campaigns").mkdir()
    (tmp_path / "campaigns" / "scaling.toml").write_text(text[: text.index("[[lines]]")] + lines)
    monkeypatch.setattr(campaigns, "benchmark_folders", lambda *names: [tmp_path / name for name in names])


def test_dry_run_shows_the_runs_in_order(cli):
    result = cli("reproduce", "scaling", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    runs = json.loads(result.stdout)["runs"]
    assert [r["method"] for r in runs[:5]] == ["fp32", "sbm", "dfq", "fractrain", "fp32"]
    assert [r["seed"] for r in runs[:5]] == [0, 0, 0, 0, 1]
    assert runs[12]["profile"] == "1/32"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("scaling", "table2"), "scaling is a campaign, a list of runs in its own order: name it alone"),
        (("scaling", "--seeds", "5"), "its lengths and seeds are in its file"),
        (("scaling", "--length", "1/8"), "its lengths and seeds are in its file"),
    ],
)
@pytest.mark.parametrize("verb", ["reproduce", "plan"])
def test_what_a_campaign_has_itself_cannot_be_given(cli, verb, args, message):
    result = cli(verb, *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_missing_data_is_told_before_anything_runs(cli, tiny):
    result = cli("reproduce", "scaling", "--data-dir", "nowhere")
    assert result.exit_code == 2
    assert "cifar10" in result.stderr


def test_plan_of_a_campaign(cli, tiny):
    result = cli("plan", "scaling", "--no-times")
    assert result.exit_code == 0, result.stderr
    assert "2 runs: 2 to run" in result.stdout


@pytest.mark.parametrize("origin", ["store", "evidence"])
def test_table_of_a_campaign_without_any_run(cli, origin):
    result = cli("table", "scaling", "--from", origin)
    assert result.exit_code == 0, result.stderr
    assert "0 of 75 runs of the campaign are done" in result.stdout
    assert "NOT A REPRODUCTION" in result.stdout


def test_a_table_reads_the_committed_records(cli, tmp_path):
    """Records lie in folders of campaigns; a table finds them by run id."""
    from test_cli_evidence import COMMITTED, RUN

    from fractrain.report.evidence import EvidenceStore

    assert EvidenceStore(COMMITTED).get(RUN).config.method == "fractrain"
    result = cli("table", "table2", "--profile", "paper", "--from", "evidence", "--evidence", COMMITTED)
    assert result.exit_code == 0, result.stderr
    assert "not run" in result.stdout
