"""A stand-in for a wandb server on this machine: it keeps what ``wandb sync`` reads out of offline files and sends."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Received:
    """What arrived, by run id: settings, lines of history by their step, the summary; and names of artifacts."""

    def __init__(self) -> None:
        self.config: dict[str, dict[str, Any]] = {}
        self.projects: dict[str, str] = {}
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.artifacts: list[str] = []
        self.address = ""

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Reply to one GraphQL operation; what is not known is empty."""
        if operation == "UpsertBucket":
            name, project = variables["name"], variables.get("project")
            if variables.get("config"):
                self.config[name] = json.loads(variables["config"])
            if project:
                self.projects[name] = project
            bucket = {
                "id": "run", "name": name, "displayName": name, "description": "", "config": "{}", "sweepName": None,
                "historyLineCount": 0, "project": {"id": "p", "name": project, "entity": {"id": "e", "name": "lab"}},
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateArtifact":
            self.artifacts.append(variables["input"]["artifactCollectionName"])
            known = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}
            return {"createArtifact": {"artifact": known}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.address}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        return {}

    def stream(self, run: str, files: dict[str, Any]) -> None:
        """Take lines of history and the summary."""
        for line in files.get("wandb-history.jsonl", {}).get("content", ()):
            values = json.loads(line)
            self.history.setdefault(run, {})[values["_step"]] = values
        for line in files.get("wandb-summary.json", {}).get("content", ()):
            self.summary.setdefault(run, {}).update(json.loads(line))


def _handler(kept: Received) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionResetError):  # the client ends without a word
                super().handle()

        def _reply(self, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._reply({})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._reply({})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            while content.startswith(b"\x1f\x8b"):  # some are packed twice
                content = gzip.decompress(content)
            if self.path == "/graphql":
                query = json.loads(content)
                self._reply({"data": kept.answer(query.get("operationName", ""), query.get("variables") or {})})
            elif self.path.endswith("/file_stream"):
                kept.stream(self.path.split("/")[-2], json.loads(content).get("files") or {})
                self._reply({"exitcode": None, "limits": {}})
            else:  # telemetry
                self._reply({})

    return Handler


@contextmanager
def wandb_server() -> Iterator[tuple[str, Received]]:
    """Serve on a free port; give the address and what is kept."""
    kept = Received()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(kept))
    kept.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kept.address, kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
