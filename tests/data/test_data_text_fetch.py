"""A text whose fetching is interrupted, and machines that are offline: the real client and a hub on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_server import HubServer, wikitext_files
from text_corpus import load

from fractrain.cli import main
from fractrain.data import registry, text
from fractrain.data.places import OFFLINE_VARIABLES
from fractrain.util.errors import MachineError

# What a process of its own does: the clients read their variables once, when they are loaded.
CHILD = """
import json, os, signal, socket, sys
from pathlib import Path
from fractrain.data import text_cache
from fractrain.util.errors import FractrainError
from text_corpus import entry_of, load
texts, root, how = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], sys.argv[3]

def refuse(self, address):
    print("SOCKET", address, flush=True)
    os._exit(0)

if how == "no sockets":
    socket.socket.connect = socket.socket.connect_ex = refuse
if how == "die while writing":
    write = text_cache._write_tokens
    def dies(path, *rest):
        if path.name == "val.npy":
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, *rest)
    text_cache._write_tokens = dies
try:
    print(load(entry_of(texts), root, download=True).digest)
except FractrainError as error:
    print(f"{type(error).__name__}: {error}")
"""
VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "FRACTRAIN_CACHE", *OFFLINE_VARIABLES)


@pytest.fixture
def child(corpus, tmp_path):
    """Start the script above on the texts of ``corpus``: child(root, how, **variables)."""
    _, texts, _ = corpus
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    here, package = Path(__file__).parents[1] / "support", Path(text.__file__).parents[2]
    clean = {k: v for k, v in os.environ.items() if k not in VARIABLES and not k.lower().endswith("_proxy")}
    base = {**clean, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": f"{package}{os.pathsep}{here}"}

    def start(root, how="", **variables):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "texts.json"), str(root), how]
        return subprocess.Popen(
            command, env={**base, **variables}, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return start


def answer(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]
    return out.strip()


# -- interrupted -------------------------------------------------------------------------------------------------------


def test_a_fetch_that_was_killed_goes_on_with_what_it_has(corpus, child, tmp_path):
    """Three processes with the real client, which each import, take about 10 s."""
    root, texts, entry = corpus
    digest, new = load(entry, root).digest, tmp_path / "new"
    files = wikitext_files("wikitext-2-v1", texts)
    test, train, val = (f"wikitext-2-v1/{split}-00000-of-00001.parquet" for split in ("test", "train", "validation"))
    hub = HubServer("Salesforce/wikitext", text._REVISION, files)
    try:
        hub.stall = train
        first = child(new, HF_ENDPOINT=hub.url)
        assert hub.stalled.wait(600)
        first.send_signal(signal.SIGKILL)
        assert first.wait(600) == -signal.SIGKILL
        first.communicate()
        assert hub.delivered[-1] == test
        assert train not in hub.delivered
        assert not [path for path in new.rglob("*") if "tokens-" in path.name and not path.name.endswith(".lock")]
        assert text.locate(entry, new)[0] is None

        hub.cut = train  # once more, but the process lives: its client takes it up again
        assert answer(child(new, HF_ENDPOINT=hub.url)) == digest
        assert (hub.begun.count(test), hub.begun.count(train), hub.begun.count(val)) == (1, 3, 1)
        assert sorted(hub.delivered)[-3:] == [test, train, val]
    finally:
        hub.stop()

    (folder,) = new.rglob("record.json")
    assert load(entry, new).digest == digest  # from here on without the hub
    for path in folder.parent.iterdir():
        path.unlink()
    folder.parent.rmdir()
    assert answer(child(new, "no sockets", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")) == digest


def test_a_process_killed_while_it_prepares_leaves_nothing_that_counts(corpus, child):
    root, _, entry = corpus
    process = child(root, "die while writing")
    process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL
    assert not list(root.rglob("record.json"))
    drafts = [path for path in root.rglob(".tokens-*") if path.is_dir()]
    assert len(drafts) == 1  # a killed process cannot clear up
    assert (drafts[0] / "train.npy").is_file()
    made = load(entry, root)
    assert made.folder.is_dir()
    assert not [path for path in root.rglob(".tokens-*") if path.is_dir()]  # the next one does it
    assert load(entry, root).digest == made.digest


def test_only_drafts_of_the_same_text_are_cleared(corpus):
    root, _, entry = corpus
    other = root / "wikitext-2" / ".tokens-wikitext2-0000000000000000-abc"
    other.mkdir()
    load(entry, root)
    assert other.is_dir()


# -- offline -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_sockets(monkeypatch):
    """Return the addresses that anybody tries to reach."""
    asked = []

    def refuse(self, address):
        asked.append(address)
        raise OSError("no sockets here")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    return asked


@pytest.mark.parametrize("variable", OFFLINE_VARIABLES)
def test_an_offline_machine_opens_no_socket_and_names_the_variable(corpus, child, tmp_path, variable):
    """The real clients, in a process that was started offline, with nothing in their caches."""
    hub = HubServer("Salesforce/wikitext", text._REVISION, {})
    try:
        said = answer(child(tmp_path / "new", "no sockets", HF_ENDPOINT=hub.url, **{variable: "1"}))
    finally:
        hub.stop()
    assert "SOCKET" not in said
    assert len(said.splitlines()) == 1
    assert said.startswith("MachineError: cannot get Salesforce/wikitext@")
    assert f"{variable} is set" in said
    assert "put the official token files in place by hand" in said


def test_the_guard_against_sockets_sees_a_process_that_is_online(corpus, child, tmp_path):
    said = answer(child(tmp_path / "new", "no sockets", HF_ENDPOINT="http://127.0.0.1:9"))
    assert said == "SOCKET ('127.0.0.1', 9)"


@pytest.mark.parametrize("value", ["1", "2"])  # the clients take 2 for a no, and have read theirs before
@pytest.mark.parametrize("variable", OFFLINE_VARIABLES)
def test_a_variable_that_the_clients_have_not_seen_counts_too(
    corpus, tmp_path, monkeypatch, no_sockets, variable, value
):
    import datasets

    _, _, entry = corpus
    monkeypatch.setattr(registry, "info", lambda name: entry)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # as it is where it was loaded online
    monkeypatch.setenv(variable, value)
    new = tmp_path / "new"
    for use in (lambda: load(entry, new, download=True), lambda: registry.fetch("wikitext2", new)):
        with pytest.raises(
            MachineError, match=rf"^cannot get .*wikitext-2-v1 \(train\): {variable} is set; unset it, or"
        ) as caught:
            use()
        assert "\n" not in str(caught.value)
    shown = CliRunner().invoke(main, ["data", "fetch", "wikitext2", "--data-dir", str(new)])
    assert f"{variable} is set" in shown.output
    assert no_sockets == []
    assert not [path for path in new.rglob("*") if path.is_dir() and "tokens-" in path.name]
