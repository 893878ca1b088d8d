"""A Hugging Face hub on loopback: as much of its API as `snapshot_download` and `hf_hub_download` use."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `files` as the repository `org/name`; `org/gated` is gated, and nothing else exists.

    cut: how many times a file's content is broken off half way. requests: the method, path and Range header of each.
    """

    def __init__(self, files: dict[str, bytes], cut: int = 0) -> None:
        self.files, self.cut = files, cut
        self.requests: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, folder: Path) -> dict[str, str]:
        """An environment in which huggingface_hub talks to this hub and keeps its cache in the folder."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "EDGERT_"))
                and not key.lower().endswith("_proxy")}
        return {**kept, "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_HOME": str(folder),
                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(request.path.split("?")[0])
        self.requests.append((request.command, path, request.headers.get("Range")))
        if "/org/gated/" in path:
            self.send(request, 403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif "/org/name/" not in path:
            self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif re.fullmatch(f"/api/models/org/name/revision/(main|{COMMIT})", path):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            self.send(request, 200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            tree = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in self.files.items()]
            self.send(request, 200, json.dumps(tree).encode())
        elif (match := re.fullmatch(f"/org/name/resolve/(main|{COMMIT})/(.+)", path)) is None:
            self.send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif match[2] not in self.files:
            self.send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self.send_file(request, self.files[match[2]])

    def send_file(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "bytes=0-"))
        assert asked is not None
        start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else len(content)
        partial = end - start < len(content)
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        body = content[start:end]
        if request.command == "GET" and self.cut:
            self.cut -= 1
            self.send(request, 206 if partial else 200, body, headers, sent=len(body) // 2)
        else:
            self.send(request, 206 if partial else 200, body, headers)

    def send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None,
             sent: int | None = None) -> None:
        request.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json", "Content-Length": len(body)}.items():
            request.send_header(name, str(value))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:sent])
        request.close_connection = sent is not None


def run(code: str, environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Python code in a process of its own: huggingface_hub reads its environment once, when it is imported."""
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True,
                          timeout=120, check=False)
