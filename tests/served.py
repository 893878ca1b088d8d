"""Servers as users start them: programs of their own, asked over sockets."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI


class Server:
    """`edgert serve` on a free port, and what it says."""

    def __init__(self, bundle: Path, *options: str, errors: Path) -> None:
        self.errors = errors
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgert", "serve", str(bundle), "--port", "0", "-t", "2", *options],
                stderr=file, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None)
        self.url = self._said(r"listening at (http://\S+)")[1]

    def _said(self, pattern: str, seconds: float = 60) -> "re.Match[str]":
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.said)):
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.02)
        return found

    def until_ready(self) -> "Server":
        self._said("^ready$|\nready$")
        return self

    @property
    def said(self) -> str:
        return self.errors.read_text()

    def ask(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """A GET, or with a body a POST."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return httpx.request("GET" if body is None else "POST", self.url + path, content=content, timeout=60, **options)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.ask("/edgert/status").json()
        return status

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def end(self, by: int = signal.SIGTERM) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, by)
        return self.process.wait(20)
