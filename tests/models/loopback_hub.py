"""A Hugging Face Hub on loopback: what ``huggingface_hub`` asks it for to make a repository, upload a folder and download it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub(ThreadingHTTPServer):
    """Repositories by name, each a dictionary of files; ``token`` is the one that may write."""

    def __init__(self, token: str = "hf_right") -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.token = token
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[str] = []  # their messages
        self.cards: list[str] = []  # that were asked to be validated

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    running = LoopbackHub()
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


class _Requests(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _reply(self, value: object = None, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value if value is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, body = urlparse(self.path).path, self._body()
        if path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            return self._reply({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._reply({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self._reply({"url": f"{self.server.address}/{name}"})
        if match := re.fullmatch(r"/api/models/(.+/.+)/preupload/main", path):
            files = json.loads(body)["files"]
            # in the commit itself, as the Hub wants it of small files; large ones go to a store of its own
            mode = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            return self._reply({"files": mode})
        if match := re.fullmatch(r"/api/models/(.+/.+)/commit/main", path):
            return self._commit(match[1], body)
        return self._reply({"error": f"not found: {path}"}, 404)

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.commits.append(value["summary"])
            elif entry["key"] == "file":
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.address}/{name}/commit/{COMMIT}"
        self._reply({"commitUrl": url, "commitOid": COMMIT, "success": True, "hookOutput": ""})

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = unquote(urlparse(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            files = self.server.repositories.get(match[1])
            if files is not None:
                siblings = [{"rfilename": name} for name in files]
                return self._reply({"id": match[1], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = self.server.repositories.get(match[1], {})
            return self._reply(
                [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
            )
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = self.server.repositories.get(match[1], {}).get(match[2])
            if data is not None:
                etag = hashlib.sha256(data).hexdigest()
                return self._reply(
                    data, X_Repo_Commit=COMMIT, ETag=f'"{etag}"', X_Linked_Etag=f'"{etag}"', X_Linked_Size=str(len(data))
                )
        return self._reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
