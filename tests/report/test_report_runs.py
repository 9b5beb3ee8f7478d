"""Runs as data: made and looked at from Python, compared over seeds, listed, shown."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from scipy import stats as scipy_stats
from synthetic_runs import config_of, ledger_of, small_store, summary_of, write_run

import fractrain
from fractrain.cli import main
from fractrain.engine.index import read_index
from fractrain.engine.store import RunStore
from fractrain.engine.summary import weights_sha256
from fractrain.report.comparison import compare
from fractrain.report.run_text import target_lines
from fractrain.util.errors import CheckpointError, ConfigError, FractrainError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return small_store(tmp_path_factory.mktemp("store") / "runs")


@pytest.fixture
def cli(store: RunStore) -> Callable[..., Result]:
    def run(*args: str) -> Result:
        return CliRunner().invoke(main, [*args, "--results", str(store.root)])

    return run


# -- from Python -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings"),
    [("fp32", {}), ("fractrain", {"window": 2, "epsilon": 9.0, "scale_epochs": 1}), ("dynasty", {}), ("cpt", {})],
)
def test_a_run_is_made_found_again_and_has_its_model(method: str, settings: dict[str, object], tmp_path: Path) -> None:
    recipe = {"iterations": 3, "eval_every": 1, "batch_size": 60}
    made = fractrain.run(method, "resnet20", "digits", recipe=recipe, store=tmp_path, device="cpu", progress=False,
                         **settings)  # fmt: skip
    again = fractrain.load_run(made.id[:-4], store=tmp_path)
    assert (again.id, again.status) == (made.id, "done")
    assert weights_sha256(again.model) == made.summary["weights_sha256"]
    assert not again.model.training
    x = _inputs()
    with torch.no_grad():
        torch.testing.assert_close(again.model(x), made.model(x), rtol=0, atol=0)
    assert list(again.curve["iteration"]) == [1, 2, 3]
    assert set(again.results["quantity"]) >= {"accuracy_last", "cost_end", "cp"}
    assert again.work["effective"].sum() == pytest.approx(again.summary["cost"]["effective_macs@end"])
    text = repr(again)
    assert text.index("cost, whole model") < text.index("cp, of the gated blocks")


def _inputs() -> torch.Tensor:
    from fractrain.data import registry

    return torch.rand(2, *registry.info("digits").shape, generator=torch.Generator().manual_seed(0))


def test_a_run_without_a_checkpoint_or_with_another_one_has_no_model(store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        _ = fractrain.load_run(config_of("sbm", 0).run_id, store).model
    recipe = {"iterations": 1, "eval_every": 1, "batch_size": 60}
    run = fractrain.run("fp32", "resnet20", "digits", recipe=recipe, store=tmp_path, device="cpu", progress=False)
    summary = run.record.path / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "weights_sha256": "0" * 64}))
    with pytest.raises(FractrainError):
        _ = fractrain.load_run(run.id, tmp_path).model


def test_a_checkpoint_is_read_as_the_page_says(tmp_path: Path) -> None:
    recipe = {"iterations": 1, "eval_every": 1, "batch_size": 8}
    run = fractrain.run("sbm", "resnet20", "digits", recipe=recipe, store=tmp_path, device="cpu", progress=False)
    page = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in page.split("```py\n")[1:]]
    block = next(block for block in blocks if "checkpoint.pt" in block)
    names = {"torch": torch, "io": io}
    exec(block.replace("results/runs/RUN", str(run.record.path)), names)
    own = run.model.state_dict()
    assert set(names["weights"]) == set(own)
    assert all(torch.equal(value, own[key]) for key, value in names["weights"].items())


def test_names_are_listed_for_completion() -> None:
    assert {"attach", "run", "load_run", "results", "Ledger"} <= set(dir(fractrain))


def test_a_session_says_how_much_of_the_model_it_covers() -> None:
    import torchvision

    model = torchvision.models.resnet18(num_classes=10)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    weights = {name: layer.weight.numel() for name, layer in layers}
    session = fractrain.attach("sbm", model)
    share = 1 - weights["fc"] / sum(weights.values())  # sbm leaves the classifier alone
    assert session.covered() == pytest.approx(share)
    assert f"{100 * share:.1f} % of their weights; 0 steps, 0 epochs" in repr(session)
    assert f"sbm on ResNet: {len(weights) - 1} of {len(weights)} layers quantized" in repr(session)
    unreachable = fractrain.attach("dfq", torchvision.models.resnet18(num_classes=10), target_cp=99.0)
    assert "target cp 99 % cannot be reached: the candidates cost 1.76 to 4.69 %" in repr(unreachable)


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"target_cp": 3.0, "gate_cp": 3.2}, ["target cp 3 %: met (3.2 % in the last evaluation period)"]),
        ({"target_cp": 3.0, "gate_cp": 2.1}, ["target cp 3 %: MISSED by -30% (2.1 % in the last evaluation period)"]),
        ({"target_cp": 3.0}, []),
        ({}, []),
    ],
)
def test_a_missed_target_is_said(told: dict[str, float], words: list[str]) -> None:
    assert list(target_lines([{"method": {}}, {"method": told}])) == words
    assert list(target_lines([])) == []


# -- comparison --------------------------------------------------------------------------------------------------------


def values(method: str, key: str) -> list[float]:
    return [summary_of(config_of(method, s), ledger_of(method, s))[key] for s in range(3)]


def test_a_paired_comparison_is_the_paired_t_test(store: RunStore) -> None:
    found = compare(read_index(store), config_of("pfq", 1).run_id, config_of("fractrain", 2).run_id, paired=True)
    line = next(x for x in found.lines if x.quantity == "cp_end")
    a, b = ([store.get(config_of(m, s).run_id).summary["cost"]["cp_percent@end"] for s in range(3)]  # type: ignore
            for m in ("pfq", "fractrain"))  # fmt: skip
    test = scipy_stats.ttest_rel(b, a)
    assert line.p == pytest.approx(test.pvalue, rel=1e-9)
    interval = test.confidence_interval()
    assert (line.low, line.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert line.ratio == pytest.approx(sum(b) / sum(a))
    assert (found.seeds_a, found.seeds_b) == ([0, 1, 2], [0, 1, 2])
    assert found.test.startswith("paired t test over 3 common seeds")
    accuracy = next(x for x in found.lines if x.quantity == "accuracy_last")
    assert accuracy.ratio is None
    assert accuracy.p is None, "the made-up accuracies differ by the same in every seed: there is nothing to test"
    assert accuracy.low == accuracy.high == pytest.approx(7.5)


def test_an_unpaired_comparison_is_welchs_test(store: RunStore, tmp_path: Path) -> None:
    own = small_store(tmp_path)
    write_run(own, config_of("pfq", 7))
    found = compare(read_index(own), config_of("pfq", 0).run_id, config_of("sbm", 0).run_id, paired=False)
    line = next(x for x in found.lines if x.quantity == "accuracy_last")
    a = [*values("pfq", "test_accuracy_last"), summary_of(config_of("pfq", 7), ledger_of("pfq"))["test_accuracy_last"]]
    test = scipy_stats.ttest_ind(values("sbm", "test_accuracy_last"), a, equal_var=False)
    assert line.p == pytest.approx(test.pvalue, rel=1e-9)
    interval = test.confidence_interval()
    assert (line.low, line.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.test.startswith("Welch's t test of 4 against 3 independent seeds")
    assert compare(read_index(own), config_of("pfq", 7).run_id, config_of("sbm", 0).run_id, True).seeds_a == [0, 1, 2]


def test_one_seed_is_compared_without_a_test(store: RunStore) -> None:
    found = compare(read_index(store), config_of("sbm", 0, "short").run_id, config_of("pfq", 0).run_id, paired=True)
    assert found.test.startswith("no test")
    assert all(line.p is None and line.low is None for line in found.lines)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (config_of("sbm", 0), config_of("sbm", 1), "seeds of one configuration"),
        (config_of("sbm", 0, bits=2), config_of("pfq", 0), "nothing to compare"),
    ],
)
def test_what_cannot_be_compared_is_refused(store: RunStore, a: object, b: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(read_index(store), a.run_id, b.run_id, paired=True)  # type: ignore[attr-defined]


def test_seeds_without_a_pair_are_refused(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    one, other = write_run(store, config_of("sbm", 0)), write_run(store, config_of("pfq", 1))
    with pytest.raises(ConfigError, match="leave out --paired"):
        compare(read_index(store), one, other, paired=True)


# -- command line ------------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_result_and_cost(cli: Callable[..., Result]) -> None:
    lines = cli("list", "runs").stdout.splitlines()
    assert lines[0].split()[:5] == ["run", "status", "acc", "%", "cost"]
    assert len(lines) == 1 + 14 + 1
    assert lines[-1].startswith("14 runs in ")
    (line,) = [line for line in lines if config_of("pfq", 1).run_id in line]
    summary = summary_of(config_of("pfq", 1), ledger_of("pfq", 1))
    costs = summary["cost"]
    assert line.split()[1:5] == ["done", *(f"{v:.2f}" for v in (
        summary["test_accuracy_last"], costs["cost_percent@end"], costs["cp_percent@end"]))]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "count"),
    [(("method=sbm",), 5), (("method=sbm", "seed=0"), 3), (("status=diverged",), 1), (("bits=2",), 1),
     (("recipe.batch_size=64", "profile=short"), 1), (("method=nobody",), 0)],
)  # fmt: skip
def test_runs_are_chosen_by_what_they_are(cli: Callable[..., Result], where: tuple[str, ...], count: int) -> None:
    found = json.loads(cli("list", "runs", *(f"--where={w}" for w in where), "--json").stdout)
    assert len(found) == count


@pytest.mark.parametrize("text", ["method", "metod=sbm", "=3"])
def test_a_filter_that_means_nothing_is_refused(cli: Callable[..., Result], text: str) -> None:
    done = cli("list", "runs", "--where", text)
    assert done.exit_code == 2
    assert "expected KEY=VALUE" in done.stderr


def test_where_belongs_to_runs(cli: Callable[..., Result]) -> None:
    assert cli("list", "methods", "--where", "name=sbm").exit_code == 2


def test_show_tells_all_of_a_run(cli: Callable[..., Result], store: RunStore) -> None:
    run = config_of("fractrain", 1).run_id
    text = cli("show", run[:-3]).stdout
    summary = store.get(run).summary  # type: ignore[union-attr]
    for part in (f"{run}: done", f"last test accuracy: {summary['test_accuracy_last']:.2f} %", "iterations = 120",
                 "a processor", "ledger.json", f"{summary['cost']['cost_percent@end']:.3f}"[:4]):  # fmt: skip
        assert part in text, part
    document = json.loads(cli("show", run, "--json").stdout)
    assert document["summary"] == summary
    assert len(document["metrics"]) == 4
    failed = cli("show", config_of("sbm", 0, bits=2).run_id).stdout
    assert "diverged (went wrong)" in failed


def test_compare_names_the_test_and_the_seeds(cli: Callable[..., Result]) -> None:
    done = cli("compare", config_of("sbm", 0).run_id, config_of("pfq", 1).run_id, "--paired")
    assert done.exit_code == 0, done.stderr
    assert "paired t test over 3 common seeds" in done.stdout
    assert "(seeds 0, 1, 2)" in done.stdout
    lines = json.loads(cli("compare", config_of("sbm", 0).run_id, config_of("pfq", 1).run_id, "--json").stdout)["lines"]
    assert {line["quantity"] for line in lines} >= {"accuracy_last", "cost_end", "cp_end"}


CHOSEN = ("--method", "dfq", "--model", "resnet38", "--dataset", "digits")


def test_config_show_lists_every_key_and_what_is_no_default(cli: Callable[..., Result]) -> None:
    text = cli("config", "show", *CHOSEN, "--set", "target_cp=2", "--set", "recipe.iterations=60").stdout
    assert "  target_cp = 2.0    (default 3.0)" in text
    assert "  iterations = 60    (default 120)" in text
    assert "  lr = 0.01\n" in text
    assert "not run yet" in text
    shown = json.loads(cli("config", "show", *CHOSEN, "--set", "target_cp=2", "--json").stdout)
    dry = json.loads(cli("run", *CHOSEN, "--set", "target_cp=2", "--dry-run", "--json").stdout)
    assert dry == shown
    assert shown["settings"]["target_cp"] == 2.0


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["run", *CHOSEN, "--dry-run", "--results", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("config", "show"), "give the id of a run, or --method, --model and --dataset"),
        (("config", "show", "sbm", "--method", "sbm"), "not both"),
        (("config", "show", *CHOSEN, "--set", "lr=0.1"), "write recipe.lr"),
        (("config", "show", *CHOSEN, "--set", "recipe.epochs=3"), "known: optimizer, lr, "),
        (("run", *CHOSEN, "--epochs", "3"), "--set recipe.iterations=N"),
        (("run", *CHOSEN, "--lr", "0.5"), "write --set recipe.lr=0.5"),
        (("run", *CHOSEN, "--batch-size", "5"), "write --set recipe.batch_size=5"),
    ],
)
def test_hints_say_what_to_write(cli: Callable[..., Result], arguments: tuple[str, ...], message: str) -> None:
    done = cli(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""
