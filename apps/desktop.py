"""The desktop app's windows: a native one, Chromium's without its bars, or else a tab of the browser.

A window is a process beside the server's: it is not part of the server's memory budget, and when it crashes, no
answer is lost that the page has not kept.
"""

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import platformdirs

from edgert.terminal import show

from .session_memory import session_memory
from .window import HEIGHT, WIDTH

KINDS = ("native", "chromium", "browser")
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "brave-browser")
_FAILING_S = 10
"""A window that ends with an error after this time was closed, and did not fail to open."""
_ENDING_S = 5
"""Seconds that a window has to close when it is asked to."""
_MEASURED_S = 2
"""For how long a measurement of a window's memory is good: it takes some 25 ms."""


def data_folder() -> Path:
    """Where windows keep what the page stores, and the app its port and what its window took."""
    return Path(platformdirs.user_data_dir("edgert")) / "app"


def port_of_last_time() -> int:
    """The port that the app had; 0 for none. What a browser stores belongs to an address with its port: conversations
    are only found again under the same one."""
    port = _of_last_time("port")
    return port if port is not None and 1024 <= port < 65536 else 0


def window_memory_of_last_time() -> int | None:
    """The most bytes that the app's window was seen to take when it was open last; None if it never was."""
    return _of_last_time("window_bytes")


def remember(name: str, value: int) -> None:
    """Keep `port` or `window_bytes` for next time. Nothing happens where that cannot be written."""
    with suppress(OSError):
        data_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        (data_folder() / f"{name}.json").write_text(json.dumps({name: value}))


def _of_last_time(name: str) -> int | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        value = json.loads((data_folder() / f"{name}.json").read_text())[name]
        return value if isinstance(value, int) and value > 0 else None
    return None


class Window:
    """A window on the page at `address`. when_closed: called, in a thread, when it was closed; never for a browser's
    tab, of which nobody tells. kinds: which kinds of window to try, in that order."""

    def __init__(self, address: str, kinds: tuple[str, ...], when_closed: Callable[[], None]) -> None:
        self._address, self._kinds, self._when_closed = address, kinds, when_closed
        self._process: subprocess.Popen[str] | None = None
        self._closing = False
        self._measured: tuple[float, int] | None = None
        self._most = 0
        self._thread = threading.Thread(target=self._show, name="edgert-window", daemon=True)
        self._thread.start()

    def _show(self) -> None:
        for kind in self._kinds:
            if kind == "browser":
                show("the page is in the browser; Ctrl-C ends the server", err=True)
                webbrowser.open(_opening(self._address).as_uri())
                return
            for command, given in self._commands(kind):
                if self._run(command, given):
                    if not self._closing:
                        self._when_closed()
                    return
        show("no window can be opened here: pip install 'edgert[desktop]', or give --window browser", err=True)
        self._when_closed()

    def _commands(self, kind: str) -> Iterator[tuple[list[str], str]]:
        """The commands that open a window of a kind, and what they read."""
        if kind == "native":
            yield [sys.executable, "-P", "-m", "edgert.apps.window", str(data_folder() / "webview")], self._address
        elif program := next(filter(None, map(shutil.which, _CHROMIUM)), None):
            sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
            yield [program, f"--app={_opening(self._address).as_uri()}", f"--window-size={WIDTH},{HEIGHT}",
                   f"--user-data-dir={data_folder() / 'chromium'}", "--no-first-run", *sandbox], ""

    def _run(self, command: list[str], given: str) -> bool:
        """Show a window until it is closed; returns False if there was none."""
        if self._closing:
            return True
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        begun = time.monotonic()
        with suppress(BrokenPipeError):
            self._process.communicate(given)
        failed = self._process.returncode != 0 and time.monotonic() - begun < _FAILING_S
        return self._closing or not failed

    def memory(self) -> int | None:
        """Bytes that the window's processes take beside the server (session_memory.py); None for a browser's tab, which
        belongs to the browser, or where there is no window now."""
        process, now = self._process, time.monotonic()
        if process is None or process.poll() is not None:
            return None
        if self._measured is None or now - self._measured[0] > _MEASURED_S:
            self._measured = now, session_memory(process.pid)
            self._most = max(self._most, self._measured[1])
        return self._measured[1]

    def close(self) -> None:
        """Close the window, if it is open."""
        self._closing = True
        if self._most:
            remember("window_bytes", self._most)
        process = self._process
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        _opening_file().unlink(missing_ok=True)


def _opening_file() -> Path:
    return data_folder() / "open.html"


def _opening(address: str) -> Path:
    """A file that only its owner can read, and that leads to the page: a command line with the key is seen by all."""
    path = _opening_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(address)}">'
                   "<title>edgert</title>\n")
    return path
