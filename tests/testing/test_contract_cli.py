"""``fractrain check-method`` and ``fractrain new-method``."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from fractrain.commands.new import METHOD, class_name


def error(result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("fractrain: error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stdout == ""
    return lines[0]


def test_check_method_json_and_exit_codes(cli, tmp_path: Path):
    good = cli("check-method", "static8", "--check", "settings_validated", "--check", "cost", "--json")
    assert good.exit_code == 0, good.stderr
    document = json.loads(good.stdout)
    assert document["ok"] is True
    assert document["counts"] == {"total": 2, "pass": 2, "fail": 0, "skip": 0, "expected failure": 0}
    assert [c["name"] for c in document["checks"]] == ["settings_validated", "cost"]
    assert "2/2 steps" in good.stderr
    assert good.stdout.count("cost") == 1

    path = tmp_path / "careless.py"
    path.write_text(METHOD.format(name="careless", kind="Careless").replace("ge=2, le=16, ", ""), encoding="utf-8")
    bad = cli("check-method", path, "--check", "settings_validated")
    assert bad.exit_code == 1
    assert "fail  settings_validated" in bad.stdout
    assert "1 failed" in bad.stdout
    assert "NOT OK" in bad.stdout
    # An expected failure alone passes nothing; beside a check that passes it is fine.
    excused = (
        "check-method",
        path,
        "--check",
        "settings_validated",
        "--expect-fail",
        "settings_validated=being mended",
    )
    assert cli(*excused).exit_code == 1
    mended = cli(*excused, "--check", "cost", "--json")
    assert mended.exit_code == 0, mended.stdout
    assert json.loads(mended.stdout)["checks"][0]["status"] == "expected failure"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["smb"], "did you mean 'sbm'"),
        (["nowhere.py"], "nowhere"),
        (["sbm", "--expect-fail", "learns"], "CHECK=REASON"),
        (["sbm", "--expect-fail", "learned=x"], "did you mean 'learns'"),
        (["sbm", "--check", "costs"], "did you mean 'cost'"),
        (["sbm", "--model", "resnet83"], "resnet38"),
        (["sbm", "--set", "bits=99"], "bits"),
        (["sbm", "--set", "recipe.lr=1"], "settings of the method only"),
    ],
)
def test_check_method_bad_input_exits_2(cli, args, message):
    result = cli("check-method", *args)
    assert result.exit_code == 2, result.stdout
    assert message in error(result)


def test_new_method_writes_a_working_method_and_test(cli, tmp_path: Path):
    made = cli("new-method", "my_method", "--dir", tmp_path / "here")
    assert made.exit_code == 0, made.stderr
    method, test = tmp_path / "here" / "my_method.py", tmp_path / "here" / "test_my_method.py"
    assert sorted(p.name for p in method.parent.iterdir()) == [method.name, test.name]
    scope = runpy.run_path(str(test))
    scope["test_contract"]("settings_validated")
    scope["test_contract"]("cost")
    body = method.read_text(encoding="utf-8")
    assert len([line for line in body.splitlines() if line.strip()]) <= 30

    before = test.read_text(encoding="utf-8")
    again = cli("new-method", "my_method", "--dir", tmp_path / "here")
    assert again.exit_code == 2
    assert "exists already" in error(again)
    test.write_text("kept", encoding="utf-8")
    method.unlink()
    assert cli("new-method", "my_method", "--dir", tmp_path / "here").exit_code == 2
    assert test.read_text(encoding="utf-8") == "kept" != before
    assert not method.exists()


@pytest.mark.parametrize(
    "name", ["sbm", "my-method", "2fast", "class", "MyMethod", "_own", "test_it", "größe", "a b", ""]
)
def test_new_method_refuses_bad_names(cli, tmp_path: Path, name: str):
    result = cli("new-method", name)
    assert result.exit_code == 2
    assert error(result)
    assert list(tmp_path.iterdir()) == []


def test_class_name():
    assert class_name("my_best_method2") == "MyBestMethod2"
