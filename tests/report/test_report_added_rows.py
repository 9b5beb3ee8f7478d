"""Methods added to a table, and tables of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fractrain.cli import main
from fractrain.report import spec as specs
from fractrain.report.added_rows import with_added
from fractrain.report.spec import load_spec, read_spec
from fractrain.util.errors import ConfigError

PLUGIN = '''
"""Four bits."""
from fractrain import Affine, Method, MethodSettings, Operand, Precision, convert

class FourBits(Method):
    """Four bits everywhere."""

    name = "fourbits"
    source = "a test"
    Settings = MethodSettings

    def convert(self, model, context):
        return convert(model, Precision.of(a=Operand(4, Affine()), w=Operand(4, Affine()), e=Operand(4, Affine())),
                       self.state, keep_first=True, keep_last=True)
'''
LENGTH = "recipe = { iterations = 2, eval_every = 2, batch_size = 8 }"


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("FRACTRAIN_RESULTS", str(tmp_path / "runs"))
    monkeypatch.delenv("FRACTRAIN_PLUGINS", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(main, [str(arg) for arg in args])


def short_table(path: Path) -> None:
    """Four steps a run."""
    path.write_text(path.read_text().replace("[profiles.smoke]", f"[profiles.smoke]\n{LENGTH}"))


def test_a_new_table_with_a_method_of_ones_own_shows_its_gain(cli: Callable[..., Result], tmp_path: Path) -> None:
    made = cli("new-table", "mine", "--method", "sbm")
    assert made.exit_code == 0, made.stderr
    short_table(tmp_path / "mine.toml")
    (tmp_path / "fourbits.py").write_text(PLUGIN)
    options = ("mine.toml", "--plugin", "fourbits.py", "--add", "fourbits", "--against", "sbm")
    first = cli("reproduce", "mine.toml", "--device", "cpu", "--jobs", 1)
    assert first.exit_code == 0, first.stderr
    done = cli("reproduce", *options, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.stderr
    assert "2 runs: 1 cached, 1 to run" in done.stderr  # what is there is not run again
    table = json.loads(done.stdout)["table"]
    rows = {row["cells"]["method"]["text"]: row["cells"] for row in table["rows"]}
    runs = {name: json.loads((tmp_path / "runs" / row["runs"]["text"] / "summary.json").read_text())
            for name, row in rows.items()}  # fmt: skip
    macs = {name: run["cost"]["macs_paper@end"] for name, run in runs.items()}
    assert rows["fourbits"]["macs_end_relative"]["value"] == pytest.approx(macs["sbm"] / macs["fourbits"])
    gain = runs["fourbits"]["test_accuracy_best"] - runs["sbm"]["test_accuracy_best"]
    assert rows["fourbits"]["accuracy_best_test_relative"]["value"] == pytest.approx(gain)
    assert "value" not in rows["sbm"]["macs_end_relative"]
    written = {file.name for file in (tmp_path / "results" / "tables").glob("*.md")}
    assert written == {"mine-smoke.md", "mine+fourbits-smoke.md"}
    assert cli("table", *options).stdout == (tmp_path / "results" / "tables" / "mine+fourbits-smoke.md").read_text()


def test_rows_of_settings_stand_beside_the_tables_own() -> None:
    spec = with_added(load_spec("table2"), ["dfq:target_cp=2", "cpt", "sbm:bits=6:recipe.iterations=9"], "sbm")
    assert [(r.key, r.against) for r in spec.rows[-3:]] == [
        ("dfq-target_cp-2", "sbm"), ("cpt", "sbm"), ("sbm-bits-6-recipe.iterations-9", "sbm"),
    ]  # fmt: skip
    assert spec.rows[-1].recipe == {"iterations": 9}
    assert spec.rows[:-3] == load_spec("table2").rows
    assert spec.relative == load_spec("table2").relative
    assert any("Added to table2" in note for note in spec.notes)


def test_headings_do_not_name_another_rival_than_the_rows() -> None:
    spec = with_added(load_spec("table2"), ["cpt"], "pfq")  # the others stand against sbm
    assert [r.label for r in spec.relative][:2] == ["Accuracy over rival", "Paper's MACs rival/this"]
    alone = with_added(load_spec("overview"), ["dfq:target_cp=2"], "fp32")  # sets nothing against anything
    assert [(r.quantity, r.short) for r in alone.relative] == [
        ("accuracy_best_test", "over FP32"), ("perplexity_best_test", "over FP32"), ("macs_best", "macs FP32/this"),
    ]  # fmt: skip


def test_a_figure_has_a_series_for_an_added_method() -> None:
    spec = with_added(load_spec("figure-dfq"), ["cpt"])
    assert spec.figure is not None
    assert (spec.figure.series[-1].key, spec.rows[-1].series) == ("cpt", "cpt")


@pytest.mark.parametrize(
    ("table", "added", "against", "words"),
    [
        ("table2", [], "sbm", "add a method with --add"),
        ("table2", ["cptt"], "", "cpt"),
        ("table2", ["dfq:targetcp=2"], "", "did you mean 'target_cp'"),
        ("table2", ["cpt"], "sbn", "did you mean 'sbm'"),
        ("table2", ["sbm"], "", "has a row 'sbm' already"),
        ("table2", ["cpt", "cpt"], "", "has a row 'cpt' already"),
        ("table7", ["cpt"], "", "trains nothing"),
    ],
)
def test_what_cannot_be_added_is_refused(table: str, added: list[str], against: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_added(load_spec(table), added, against)


def test_nothing_is_added_to_a_campaign(cli: Callable[..., Result]) -> None:
    for verb in (("plan", "scaling", "--no-times"), ("table", "scaling"), ("reproduce", "scaling", "--dry-run")):
        done = cli(*verb, "--add", "cpt")
        assert (done.exit_code, done.stdout) == (2, "")
        assert "--add goes with tables" in done.stderr


def test_a_new_table_is_valid_and_never_replaces(cli: Callable[..., Result], tmp_path: Path) -> None:
    assert cli("new-table", "mine", "--method", "dfq", "--method", "cpt").exit_code == 0
    spec = read_spec(tmp_path / "mine.toml")
    assert [(row.key, row.against) for row in spec.rows] == [("sbm", ""), ("dfq", "sbm"), ("cpt", "sbm")]
    before = (tmp_path / "mine.toml").read_text()
    for arguments, words in (
        (("mine",), "exists already"),
        (("table2",), "there is a table"),
        (("a/b",), "cannot be a table's name"),
        (("other", "--method", "dfk"), "dfk"),
        (("other", "--model", "resnet18"), "resnet18"),
    ):
        refused = cli("new-table", *arguments)
        assert refused.exit_code == 2
        assert words in refused.stderr
    assert (tmp_path / "mine.toml").read_text() == before
    assert not (tmp_path / "other.toml").exists()


def test_the_page_on_tables_names_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "add-a-table.md").read_text()
    kinds = (specs.TableSpec, specs.Pair, specs.RowSpec, specs.ProfileSpec, specs.VerdictRule, specs.Relative,
             specs.Improvement, specs.FigureSpec)  # fmt: skip
    for kind in kinds:
        for key in kind.model_fields:
            assert f"`{key}" in page or f"[{key}" in page, (kind.__name__, key)
