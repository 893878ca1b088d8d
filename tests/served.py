"""Servers as users start them: programs of their own, asked over sockets."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from openai import OpenAI

_TOOL = Path(os.environ.get("EDGERT_TOOLS") or Path(__file__).resolve().parents[2] / "shared/tools") / "limit-memory"


def limited(size: str) -> list[str]:
    """A program, with its argument, that has the kernel keep what it runs within `size`; none where there is none."""
    usable = os.geteuid() == 0 and _TOOL.exists() and not subprocess.run(
        [_TOOL, "100M", "true"], capture_output=True, check=False).returncode
    return [str(_TOOL), size] if usable else []


class Server:
    """`edgert serve` on a free port, and what it says. before: a program that runs it, with its arguments. command:
    what is called in place of serve, and listens at a free port anyway."""

    def __init__(self, bundle: Path | None, *options: str, errors: Path, before: Sequence[str] = (),
                 command: str = "serve", environment: dict[str, str] | None = None) -> None:
        self.errors = errors
        arguments = [command, *([] if bundle is None else [str(bundle)]),
                     *(["--port", "0"] if command == "serve" else []), "-t", "2", *options]
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "edgert", *arguments], stderr=file, env=environment,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None)
        self.url = self.wait_for(r"(?:listening|the page is) at (http://\S+)")[1]

    def wait_for(self, pattern: str, seconds: float = 60) -> "re.Match[str]":
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.said)):
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.02)
        return found

    def until_ready(self) -> "Server":
        self.wait_for("^ready$|\nready$")
        return self

    @property
    def serving(self) -> psutil.Process:
        """The program that serves, also where another one runs it."""
        process = psutil.Process(self.process.pid)
        return next((child for child in process.children(recursive=True) if "edgert" in child.cmdline()), process)

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
        with contextlib.suppress(psutil.NoSuchProcess):
            self.serving.send_signal(by)
        return self.process.wait(20)
