"""The wheel holds one import package, and in it everything the installed command needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="the build backend is part of the extra dev")

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


def sources(folder: str) -> set[str]:
    """Files of the working tree below a folder, as posix paths; caches and hidden files do not count."""
    found = [f.relative_to(ROOT) for f in (ROOT / folder).rglob("*") if f.is_file()]
    return {f.as_posix() for f in found if "__pycache__" not in f.parts and not f.name.startswith(".")}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    target = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([sys.executable, "-c", BUILD, str(target)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(target / done.stdout.split()[-1]) as wheel:
        return set(wheel.namelist())


def test_wheel_has_one_import_package(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fractrain"}


def test_wheel_has_every_module_and_template(names: set[str]) -> None:
    missing = sources("fractrain") - names
    assert not missing, f"left out of the wheel (does .gitignore match them?): {sorted(missing)}"


@pytest.mark.parametrize(
    ("folder", "inside"),
    [
        ("baselines", "fractrain/baselines"),
        ("benchmarks", "fractrain/benchmarks"),
        ("results/published", "fractrain/published"),
    ],
)
def test_wheel_has_what_lies_beside_the_package(names: set[str], folder: str, inside: str) -> None:
    expected = {inside + name.removeprefix(folder) for name in sources(folder)}
    assert expected <= names, sorted(expected - names)


def test_wheel_has_the_tables_and_published_rows(names: set[str]) -> None:
    assert "fractrain/benchmarks/tables/table2.toml" in names
    assert "fractrain/published/published_rows.json" in names


def test_wheel_has_no_tests_and_no_caches(names: set[str]) -> None:
    assert not [name for name in names if "tests/" in name or "__pycache__" in name or name.endswith(".pyc")]
