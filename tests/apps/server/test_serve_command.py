"""`edgert serve` as a program: what it says, and what other commands do not pay for."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from served import Server

pytestmark = pytest.mark.xdist_group("server")


def test_what_it_says(tiny: Path, tmp_path: Path) -> None:
    server = Server(tiny, errors=tmp_path / "errors").until_ready()
    assert server.ask("/health").json() == {"status": "ok"}
    assert server.end(signal.SIGINT) == 0, "Ctrl-C is how a server is ended"
    assert re.fullmatch(r"listening at http://127\.0\.0\.1:\d+\nready\n", server.said), server.said


def test_a_budget_that_is_too_small(smollm2: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "edgert", "serve", str(smollm2), "--port", "0", "-m", "50M"],
                          capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"listening at \S+\nedgert: a budget of 50 MiB is too small: .*\n", done.stderr), done.stderr


def test_a_chat_does_not_import_the_server() -> None:
    code = ("import sys, edgert.cli, edgert.apps.command, edgert.apps.terminal_chat\n"
            "print([n for n in ('starlette', 'uvicorn', 'prometheus_client', 'h11', 'anyio') if n in sys.modules])")
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True,
                          check=True).stdout == "[]\n"


def test_the_page_and_what_it_may_do(tiny_server: Server) -> None:
    """Where the page is installed; nothing else of the disk is served."""
    first = tiny_server.ask("/", headers={"Accept": "text/html,*/*;q=0.8"})
    if first.status_code == 200:
        policy = first.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy
    for path in ("/page/../server/service.py", "/page/%2e%2e/server/service.py", "/page/..%2f__init__.py", "/page/",
                 "/page//etc/passwd", "/page/nothing.js", "/page/%00", "/page/%00.js", f"/page/{'a' * 5000}.js",
                 "/page/%ff.js"):
        assert tiny_server.ask(path).status_code == 404, path
