"""As much of the Hugging Face hub as the package ``datasets`` asks for, on this machine; its connections may break."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pyarrow import parquet, table


class HubServer:
    """Serves one data set repository at one revision.

    Attributes:
        files: content by path.
        stall: end of a path whose next transfer stops half way and keeps the connection open.
        cut: end of a path whose next transfer breaks half way.
        stalled: set when ``stall`` has been reached.
        delivered: paths that were sent to their end, in order.
        begun: paths of which any byte was sent.
    """

    def __init__(self, repository: str, revision: str, files: dict[str, bytes]) -> None:
        self.files, self.stall, self.cut = files, "", ""
        self.stalled, self._go_on = threading.Event(), threading.Event()
        self.delivered: list[str] = []
        self.begun: list[str] = []
        self._base, self._revision = f"/api/datasets/{repository}", revision
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub._answer(self, self.command == "HEAD")

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """End, also for those who wait."""
        self._go_on.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, to: BaseHTTPRequestHandler, head: bool) -> None:
        path, _, query = to.path.partition("?")
        path = urllib.parse.unquote(path)
        if f"/resolve/{self._revision}/" in path:
            self._file(to, path.split(f"/resolve/{self._revision}/")[1], head)
        elif path.startswith(f"{self._base}/tree/{self._revision}"):
            folder = path.removeprefix(f"{self._base}/tree/{self._revision}").strip("/")
            _send(to, json.dumps(self._tree(folder, "recursive=false" in query)).encode())
        elif path == f"{self._base}/revision/{self._revision}":
            siblings = [{"rfilename": name} for name in self.files]
            _send(to, json.dumps({"id": "x/y", "sha": self._revision, "tags": [], "siblings": siblings}).encode())
        else:
            _send(to, b"{}", 404)

    def _tree(self, folder: str, flat: bool) -> list[dict[str, object]]:
        found: dict[str, dict[str, object]] = {}
        for name, content in self.files.items():
            if folder and not name.startswith(f"{folder}/"):
                continue
            rest = name.removeprefix(f"{folder}/") if folder else name
            if flat and "/" in rest:
                child = name.removesuffix(rest) + rest.split("/")[0]
                found[child] = {"type": "directory", "path": child, "size": 0, "oid": "0" * 40}
            else:
                found[name] = {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
        return list(found.values())

    def _file(self, to: BaseHTTPRequestHandler, name: str, head: bool) -> None:
        content = self.files.get(name)
        if content is None:
            _send(to, b"", 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": self._revision}
        if head:
            _send(to, content, 200, headers, head=True)
            return
        self.begun.append(name)
        half = [kind for kind in ("stall", "cut") if getattr(self, kind) and name.endswith(getattr(self, kind))]
        if not half:
            _send(to, content, 200, headers)
            self.delivered.append(name)
            return
        setattr(self, half[0], "")
        _send(to, content, 200, headers, stop_after=len(content) // 2)
        if half == ["stall"]:
            self.stalled.set()
            self._go_on.wait(600)
        to.close_connection = True


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _send(
    to: BaseHTTPRequestHandler, body: bytes, code: int = 200, headers: dict[str, str] | None = None,
    head: bool = False, stop_after: int | None = None,
) -> None:  # fmt: skip
    to.send_response(code)
    for key, value in (headers or {"Content-Type": "application/json"}).items():
        to.send_header(key, value)
    to.send_header("Content-Length", str(len(body)))
    to.end_headers()
    if not head and to.command != "HEAD":
        to.wfile.write(body[:stop_after])
        to.wfile.flush()


def wikitext_files(config: str, texts: dict[str, str]) -> dict[str, bytes]:
    """Texts as the hub has WikiText: a row a line, empty lines as empty rows, and a card that names the files."""
    files = {}
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
    for split, part in (("test", "test"), ("train", "train"), ("validation", "valid")):
        rows = [line if line.strip() else "" for line in texts[part].splitlines(keepends=True)]
        buffer = io.BytesIO()
        parquet.write_table(table({"text": rows}), buffer)
        files[f"{config}/{split}-00000-of-00001.parquet"] = buffer.getvalue()
        card += f"  - split: {split}\n    path: {config}/{split}-*\n"
    return {"README.md": f"{card}---\n".encode(), **files}
