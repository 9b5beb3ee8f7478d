from __future__ import annotations

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fractrain.data import registry
from fractrain.data.download import download
from fractrain.util.errors import DataError, MachineError

CONTENT = bytes(range(256)) * 4000  # 1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves one content on every path.

    Attributes:
        cut: how many bytes to send before the connection breaks, per request (None: all), the last one repeated.
        ranges: whether it resumes.
        starts: where each request started.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.cut, self.ranges, self.starts = content, [None], True, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
                server.starts.append(start)
                if self.path == "/none":
                    self.send_error(404)
                    return
                if start >= len(server.content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                body = server.content[start:]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: server.cut.pop(0) if len(server.cut) > 1 else server.cut[0]])

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/file"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    running = Server(CONTENT)
    yield running
    running.stop()


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_whole_file(server, tmp_path):
    download([server.url], tmp_path / "f", MD5, "by hand")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert left_in(tmp_path) == ["f"]


def test_a_broken_connection_is_resumed(server, tmp_path):
    server.cut = [300_000, 300_000, None]
    download([server.url], tmp_path / "f", MD5, "by hand")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.starts == [0, 300_000, 600_000]


def test_a_later_call_goes_on_where_the_first_stopped(server, tmp_path):
    server.cut = [300_000, 0]
    with pytest.raises(MachineError, match="closed after 300000 of 1024000 bytes") as caught:
        download([server.url], tmp_path / "f", MD5, "put it there by hand")
    assert "put it there by hand" in one_line(caught)
    assert left_in(tmp_path) == ["f.part"]
    server.cut, server.starts = [None], []
    download([server.url], tmp_path / "f", MD5, "by hand")
    assert server.starts == [300_000]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_that_cannot_resume_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "f.part").write_bytes(b"wrong beginning")
    download([server.url], tmp_path / "f", MD5, "by hand")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_complete_part_is_used(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    download([server.url], tmp_path / "f", MD5, "by hand")
    assert left_in(tmp_path) == ["f"]


def test_wrong_content_is_thrown_away(server, tmp_path):
    with pytest.raises(DataError, match=f"md5 {MD5}, expected {'0' * 32}") as caught:
        download([server.url], tmp_path / "f", "0" * 32, "by hand")
    assert server.url in one_line(caught)
    assert left_in(tmp_path) == []


def test_the_next_address_is_tried(server, tmp_path):
    dead, wrong = "http://127.0.0.1:9/nothing", server.url.replace("/file", "/none")
    download([dead, wrong, server.url], tmp_path / "f", MD5, "by hand")
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://no-such-host.invalid/x", "nonsense"])
def test_no_network_is_one_line(tmp_path, url, server):
    with pytest.raises(MachineError, match="check the network") as caught:
        download([url], tmp_path / "f", MD5, "by hand")
    assert url in one_line(caught)
    assert caught.value.exit_code == 2
    assert left_in(tmp_path) == []


def test_a_server_error_is_one_line(server, tmp_path):
    with pytest.raises(MachineError, match="Not Found"):
        download([server.url.replace("/file", "/none")], tmp_path / "f", MD5, "by hand")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_disk_full(server, tmp_path):
    (tmp_path / "f.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device") as caught:
        download([server.url], tmp_path / "f", MD5, "by hand")
    assert "f.part" in one_line(caught)
    assert not (tmp_path / "f").exists()


OFFLINE = [
    ("HF_HUB_OFFLINE", "1"),
    ("HF_DATASETS_OFFLINE", "1"),
    ("HF_HUB_OFFLINE", "TRUE"),
    ("HF_DATASETS_OFFLINE", "on"),
]


@pytest.mark.parametrize(("variable", "value"), OFFLINE)
def test_offline_asks_no_network(server, tmp_path, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(MachineError, match=f"{variable} is set; unset it, or put it there by hand") as caught:
        download([server.url], tmp_path / "f", MD5, "put it there by hand")
    assert server.url in one_line(caught)
    assert server.starts == []
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("value", ["0", "", "false", "no", "OFF"])
def test_a_variable_that_says_no_leaves_it_online(server, tmp_path, monkeypatch, value):
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(variable, value)
    download([server.url], tmp_path / "f", MD5, "by hand")
    assert server.starts == [0]


def test_offline_a_mirror_on_this_disk_is_read(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "mirror").write_bytes(CONTENT)
    mirror = (tmp_path / "mirror").as_uri()
    download([server.url, mirror], tmp_path / "f", MD5, "by hand")
    assert (tmp_path / "f").read_bytes() == CONTENT
    (tmp_path / "mirror").unlink()
    with pytest.raises(MachineError, match=r"unset HF_HUB_OFFLINE and run the same command again") as caught:
        download([mirror, server.url], tmp_path / "g", MD5, "by hand")
    one_line(caught)
    assert server.starts == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenette"])
def test_fetch_offline_is_one_line_and_connects_nowhere(tmp_path, monkeypatch, name):
    def connect(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.delenv("FRACTRAIN_DATA_MIRROR", raising=False)
    monkeypatch.setattr("socket.create_connection", connect)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    for act in (lambda d: registry.fetch(name, d), lambda d: registry.load(name, d, download=True)):
        with pytest.raises(MachineError, match="HF_DATASETS_OFFLINE is set") as caught:
            act(tmp_path / "empty")
        one_line(caught)


def test_fetch_from_a_mirror_and_load(fake_archive, monkeypatch, tmp_path):
    archive, folder = fake_archive
    monkeypatch.setenv("FRACTRAIN_DATA_MIRROR", archive.parent.as_uri())
    target = tmp_path / "new" / "place"
    assert registry.fetch("cifar10", target).ok
    assert left_in(target) == [folder.name]
    for path in folder.iterdir():
        assert (target / folder.name / path.name).read_bytes() == path.read_bytes()
    archive.unlink()
    assert registry.fetch("cifar10", target).ok  # nothing to do, so nothing is asked of the network


def test_load_with_download_mends_a_bad_file(fake_archive, monkeypatch):
    archive, folder = fake_archive
    monkeypatch.setenv("FRACTRAIN_DATA_MIRROR", archive.parent.as_uri())
    wanted = registry.load("cifar10", folder.parent).digest
    (folder / "data_batch_2").write_bytes(b"broken")
    with pytest.raises(DataError):
        registry.load("cifar10", folder.parent)
    assert registry.load("cifar10", folder.parent, download=True).digest == wanted


def test_an_archive_brought_by_hand_is_used_and_kept(fake_archive, tmp_path):
    archive, folder = fake_archive
    target = tmp_path / "target"
    target.mkdir()
    (target / archive.name).write_bytes(archive.read_bytes())
    assert registry.fetch("cifar10", target).ok
    assert left_in(target) == sorted([archive.name, folder.name])


def test_fetch_without_network_says_how_to_go_on(fake_archive, tmp_path):
    archive, _ = fake_archive
    for act in (lambda d: registry.fetch("cifar10", d), lambda d: registry.load("cifar10", d, download=True)):
        with pytest.raises(MachineError, match="check the network") as caught:
            act(tmp_path / "empty")
        assert f"put {archive.name}" in one_line(caught)
    assert left_in(tmp_path / "empty") == []


def test_fetch_where_nothing_can_be_written(fake_archive, tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match="cannot write") as caught:
            registry.fetch("cifar10", target)
        assert str(target) in one_line(caught)


def test_an_archive_with_other_content(fake_archive, monkeypatch, tmp_path):
    archive, folder = fake_archive
    monkeypatch.setenv("FRACTRAIN_DATA_MIRROR", archive.parent.as_uri())
    monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", [["test_batch", "0" * 32]])
    with pytest.raises(DataError, match="test_batch is truncated or changed") as caught:
        registry.fetch("cifar10", tmp_path / "new")
    one_line(caught)
    assert "test_batch" not in left_in(tmp_path / "new" / folder.name)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", [["no_such_file", "0" * 32]])
    with pytest.raises(DataError, match="is not the archive"):
        registry.fetch("cifar10", tmp_path / "other")
