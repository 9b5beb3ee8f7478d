"""Help, listing and what they may load."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import Result

import fractrain
from fractrain.cli import main
from fractrain.commands.catalog import KINDS


def verbs(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [path]
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = verbs(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
        found += inner
    return found


def test_all_designed_verbs_are_there() -> None:
    assert set(main.list_commands(click.Context(main))) >= {
        "list",
        "run",
        "reproduce",
        "table",
        "plan",
        "publish",
        "data",
        "doctor",
    }


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("path", verbs(main), ids=" ".join)
def test_every_verb_has_help(cli: Any, path: tuple[str, ...], flag: str) -> None:
    result: Result = cli(*path, flag)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Usage: fractrain " + " ".join(path))
    assert len(result.stdout.splitlines()) > 4


def test_no_short_help_is_cut_off(cli: Any) -> None:
    assert "..." not in cli("--help").stdout.split("Commands:")[1]


def test_version(cli: Any) -> None:
    assert fractrain.__version__ in cli("--version").stdout


LIGHT = [["--help"], ["list", "models"], ["list", "datasets"], ["list", "tables"], ["list", "hardware"]]


def test_help_and_listing_load_nothing_heavy() -> None:
    code = f"""
import sys
from fractrain.cli import main
for args in {LIGHT!r}:
    try:
        main(args)
    except SystemExit as end:
        assert end.code == 0, args
    heavy = {{"torch", "wandb", "datasets", "pandas", "sklearn", "matplotlib"}} & set(sys.modules)
    assert not heavy, (args, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_list_json_is_one_document_that_names_what_the_text_names(cli: Any, kind: str) -> None:
    result = cli("list", kind, "--json")
    assert result.exit_code == 0, result.stderr
    entries = json.loads(result.stdout)
    assert entries
    text = cli("list", kind).stdout
    for entry in entries:
        assert any(line.split()[:1] == [entry["name"]] for line in text.splitlines())


def test_list_models_json_has_exact_macs(cli: Any) -> None:
    """Hand count of the paper's networks, counted from their definition: 83,280,512 and 168,215,168 on CIFAR-10."""
    models = {m["name"]: m for m in json.loads(cli("list", "models", "--json").stdout)}
    assert models["resnet38"]["forward_macs"]["cifar10"] == 83_280_512
    assert models["resnet74"]["forward_macs"]["cifar10"] == 168_215_168
    assert models["resnet38"]["parameters"]["cifar10"] > 0


def test_list_methods_json_has_settings_and_source(cli: Any) -> None:
    methods = {m["name"]: m for m in json.loads(cli("list", "methods", "--json").stdout)}
    assert {"fp32", "static8", "sbm", "pfq", "dfq", "fractrain"} <= set(methods)
    assert all(m["description"] and m["source"] and m["version"] >= 1 for m in methods.values())
    bits = next(s for s in methods["sbm"]["settings"] if s["name"] == "bits")
    assert bits["default"] == 8
    assert bits["type"]


def test_list_without_a_kind_lists_all(cli: Any) -> None:
    assert set(json.loads(cli("list", "--json").stdout)) == set(KINDS)
    assert {"methods", "models", "datasets"} <= set(cli("list").stdout.splitlines())


def test_a_broken_plugin_is_listed_and_hides_no_other(cli: Any, tmp_path: Any) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("import no_such_module_anywhere\n", encoding="utf-8")
    methods = {m["name"]: m for m in json.loads(cli("list", "methods", "--plugin", plugin, "--json").stdout)}
    assert "no_such_module_anywhere" in methods["broken"]["problem"]
    assert "problem" not in methods["sbm"]
    again = json.loads(cli("list", "methods", "--json").stdout)
    assert "broken" not in {m["name"] for m in again}, "--plugin must not outlive its command"
