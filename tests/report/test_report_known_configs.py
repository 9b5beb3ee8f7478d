"""Configurations are kept beside a run store, so that a second table or page imports no method and no torch."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import config_of, small_store

from fractrain.engine.config import RunConfig
from fractrain.engine.index import without_collector
from fractrain.report import known_configs
from fractrain.report.known_configs import NAME, KnownConfigs
from fractrain.report.sources import NotInRelease, engine_config
from fractrain.report.spec import RunRequest
from fractrain.util.errors import ConfigError, PluginError


def request(method: str = "sbm", model: str = "resnet38", dataset: str = "digits") -> RunRequest:
    return RunRequest(method=method, model=model, dataset=dataset, profile="smoke", settings={}, recipe={})


class Maker:
    """Makes configurations and counts how often it is asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked = 0
        self.error = error

    def __call__(self, request: RunRequest, seed: int) -> RunConfig:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return config_of(request.method, seed)


def test_each_configuration_is_made_once_and_comes_back_the_same(tmp_path: Path) -> None:
    make = Maker()
    first = KnownConfigs(tmp_path / NAME, make)
    made = [first.make(request(), seed) for seed in (0, 1, 0)]
    first.save()
    second = KnownConfigs(tmp_path / NAME, make)
    assert [second.make(request(), seed) for seed in (0, 1, 0)] == made
    assert [config.run_id for config in made] == [config_of("sbm", seed).run_id for seed in (0, 1, 0)]
    assert make.asked == 2


@pytest.mark.parametrize("method", ["dfq", "slu", "dynasty", "fractrain", "sbm"])
def test_a_real_one_keeps_its_id(tmp_path: Path, method: str) -> None:
    made = engine_config(request(method), 3)
    first = KnownConfigs(tmp_path / NAME, engine_config)
    first.make(request(method), 3)
    first.save()
    known = KnownConfigs(tmp_path / NAME, Maker(AssertionError("asked again"))).make(request(method), 3)
    assert (known, known.run_id) == (made, made.run_id)


def test_why_parts_do_not_go_together_is_known_too(tmp_path: Path) -> None:
    make = Maker(ConfigError("no blocks"))
    for _ in range(2):
        known = KnownConfigs(tmp_path / NAME, make)
        with pytest.raises(ConfigError, match="no blocks"):
            known.make(request(), 0)
        known.save()
    assert make.asked == 1


@pytest.mark.parametrize("error", [NotInRelease("model", "m", ["n"]), PluginError("it is broken")])
def test_what_may_be_mended_tomorrow_is_asked_again(tmp_path: Path, error: Exception) -> None:
    make = Maker(error)
    known = KnownConfigs(tmp_path / NAME, make)
    for _ in range(2):
        with pytest.raises(type(error)):
            known.make(request(), 0)
    known.save()
    assert (make.asked, (tmp_path / NAME).exists()) == (2, False)


@pytest.mark.parametrize("parts", [{"method": "mine"}, {"model": "mine"}, {"dataset": "mine"}])
def test_what_is_not_shipped_is_always_made(tmp_path: Path, parts: dict[str, str]) -> None:
    make = Maker()
    known = KnownConfigs(tmp_path / NAME, make)
    for _ in range(2):
        known.make(request(**parts), 0)
    assert make.asked == 2


def test_other_sources_forget_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    for digest in ("one", "one", "two"):
        monkeypatch.setattr(known_configs, "sources_digest", lambda digest=digest: digest)
        known = KnownConfigs(tmp_path / NAME, make)
        known.make(request(), 0)
        known.save()
    assert make.asked == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"sources": "x"}', b"\xff"])
def test_a_spoilt_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    make = Maker()
    known = KnownConfigs(tmp_path / NAME, make)
    known.make(request(), 0)
    known.save()
    assert make.asked == 1
    assert len(json.loads((tmp_path / NAME).read_bytes())["configs"]) == 1


def test_a_store_that_cannot_be_written_works_all_the_same(tmp_path: Path) -> None:
    known = KnownConfigs(tmp_path / "absent" / NAME, Maker())
    assert known.make(request(), 0) == config_of("sbm", 0)
    known.save()


def test_the_second_page_imports_no_torch(tmp_path: Path) -> None:
    store = small_store(tmp_path / "runs")
    command = ["report", "--results", str(store.root), "--out", str(tmp_path / "out"), "--evidence", str(tmp_path)]
    code = (
        "import atexit, sys; from fractrain.cli import main; "
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); main()"
    )
    told, pages = [], []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
        told.append(done.stderr.split()[-1].removeprefix("..."))
        pages.append((tmp_path / "out" / "index.html").read_text())
    assert told == ["True", "False"]
    assert pages[0] == pages[1]


def test_the_collector_is_as_it_was() -> None:
    with without_collector(), without_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
