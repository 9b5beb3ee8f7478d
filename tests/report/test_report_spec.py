"""Table specifications: table 2 as it ships, overrides, and every kind of mistake in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from fractrain.engine.length import check_profile
from fractrain.report.spec import load_spec, read_spec, table_folders, table_names
from fractrain.util.errors import ConfigError

MINIMAL = """
name = "mine"
version = 1
title = "t"
caption = "c"
source = "s"
published_table = "p"
[[pairs]]
model = "m"
dataset = "d"
model_label = "M"
dataset_label = "D"
[[rows]]
key = "a"
label = "A"
method = "ma"
precision = "8/8"
"""


@pytest.fixture
def write(tmp_path):
    def file(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return file


def test_table2_ships():
    assert "table2" in table_names()
    assert all(folder.is_dir() for folder in table_folders())


def test_a_wheel_looks_inside_the_package_only(tmp_path):
    """What else is called ``benchmarks`` beside an installed package is a stranger's."""
    outer = tmp_path / "benchmarks" / "tables"
    outer.mkdir(parents=True)
    (outer / "mine.toml").write_text(MINIMAL)
    package = tmp_path / "fractrain"
    package.mkdir()
    assert table_names(table_folders(package)) == ["mine"]
    inner = package / "benchmarks" / "tables"
    inner.mkdir(parents=True)
    assert table_folders(package) == [inner]
    assert table_names(table_folders(package)) == []


def test_table2_pairs_and_rows(spec):
    assert [(p.model, p.dataset) for p in spec.pairs] == [
        ("resnet38", "cifar10"),
        ("resnet38", "cifar100"),
        ("resnet74", "cifar10"),
        ("resnet74", "cifar100"),
    ]
    assert [r.method for r in spec.rows] == ["fp32", "wageubn", "dorefa", "sbm", "pfq", "dfq", "fractrain"]
    assert spec.row("dfq").settings == {"target_cp": 3.0}
    assert spec.row("pfq").published is None


def test_table2_stand_ins_are_for_smoke_only(spec):
    c10, c100 = spec.pairs[:2]
    assert (spec.dataset(c10, "smoke"), spec.dataset(c100, "smoke")) == ("digits", "digits100")
    for profile in ("short", "paper"):
        assert (spec.dataset(c10, profile), spec.dataset(c100, profile)) == ("cifar10", "cifar100")


def test_seed_lists_extend_each_other(spec):
    assert spec.seeds("paper") == (0, 1, 2)
    assert spec.seeds("smoke") == (0,)
    assert spec.seeds("smoke", 5)[:3] == spec.seeds("smoke", 3) == (0, 1, 2)


def test_overrides_later_ones_win(write):
    text = MINIMAL.replace('precision = "8/8"', 'precision = "8/8"\nsettings = { x = 1, y = 1, z = 1 }')
    text += """
[rows.profiles.smoke]
settings = { z = 3 }
recipe = { lr = 0.5 }
[profiles.smoke]
settings = { y = 2, z = 2 }
recipe = { iterations = 10, lr = 0.1 }
"""
    spec = read_spec(write(text))
    smoke = spec.request(spec.pairs[0], spec.rows[0], "smoke")
    assert smoke.settings == {"x": 1, "y": 2, "z": 3}
    assert smoke.recipe == {"iterations": 10, "lr": 0.5}
    paper = spec.request(spec.pairs[0], spec.rows[0], "paper")
    assert (paper.settings, paper.recipe) == ({"x": 1, "y": 1, "z": 1}, {})


def test_a_file_of_ones_own_by_path(write):
    assert load_spec(str(write(MINIMAL))).name == "mine"


def test_unknown_table_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown table 'tabel2' .did you mean 'table2'"):
        load_spec("tabel2")


def test_no_folder_at_all():
    with pytest.raises(ConfigError, match="known: none"):
        load_spec("table2", folders=[])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('caption = "c"', 'captoin = "c"', r"captoin"),
        ('method = "ma"', 'method = "ma"\nsetings = {}', r"unknown key rows\.0\.setings .did you mean 'settings'"),
        ('model = "m"', 'modle = "m"\nmodel = "m"', r"unknown key pairs\.0\.modle .did you mean 'model'"),
        ('key = "a"\n', "", r"rows\.0\.key: Field required"),
        ("version = 1", 'version = "1"', r"version: Input should be a valid integer"),
        ("version = 1", "version = 0", r"version: Input should be greater"),
        ("[[pairs]]", "[verdict]\ntolerence = 1\n[[pairs]]", r"verdict\.tolerence .did you mean 'tolerance'"),
        ("[[pairs]]", "[profiles.smok]\nseeds = 1\n[[pairs]]", r"profiles\.smok"),
        ("[[pairs]]", "[profiles.smoke]\nseed = 1\n[[pairs]]", r"profiles\.smoke\.seed .did you mean 'seeds'"),
        ("[[pairs]]", '[profiles.smoke]\ndatasets = { q = "x" }\n[[pairs]]', r"no pair uses 'q'"),
        ("[[pairs]]", '[improvement]\nsubject = "b"\nbaselines = ["a"]\n[[pairs]]', r"no row has the key 'b'"),
        ('name = "mine"', 'name = "yours"', r"name = 'yours', but the file is called 'mine'"),
        ('name = "mine"', 'name = "mine', r"not valid TOML"),
    ],
)
def test_mistakes_name_file_and_key_in_one_line(write, old, new, message):
    assert old in MINIMAL
    path = write(MINIMAL.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_spec(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_rows_with_one_key(write):
    row = MINIMAL[MINIMAL.index("[[rows]]") :]
    with pytest.raises(ConfigError, match="two rows have the same key"):
        read_spec(write(MINIMAL + row))


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_spec(str(tmp_path / "none.toml"))


def test_unknown_profile():
    assert check_profile("paper") == "paper"
    with pytest.raises(ConfigError, match=r"unknown profile 'smokey' .did you mean 'smoke'"):
        check_profile("smokey")
