"""The terminal chat, on a real terminal (a pseudo-terminal) and with standard input from elsewhere."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CHAT = [sys.executable, "-m", "edgert", "chat"]


def hear_interrupts() -> None:
    """What starts tests in the background ignores Ctrl-C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, bundle: Path, *options: str) -> None:
        master, slave = pty.openpty()
        self.process = subprocess.Popen([*CHAT, str(bundle), "--seed", "1", *options], stdin=slave, stdout=slave,
                                        stderr=slave, start_new_session=True, preexec_fn=hear_interrupts,
                                        env={**os.environ, "TERM": "dumb"})
        os.close(slave)
        self._master = master

    def until(self, pattern: str, seconds: float = 30) -> str:
        """What is shown until a pattern is."""
        shown, end = "", time.monotonic() + seconds
        while not re.search(pattern, shown):
            assert time.monotonic() < end, f"{pattern!r} did not come: {shown!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                shown += os.read(self._master, 4096).decode(errors="replace").replace("\r\n", "\n")
        return shown

    def type(self, line: str) -> None:
        os.write(self._master, line.encode() + b"\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(smollm2: Path) -> Iterator[Terminal]:
    chat = Terminal(smollm2, "-n", "400", "--temperature", "0")
    chat.until(">>> ")
    yield chat
    chat.close()


def test_a_conversation(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("/system Answer in one word.")
    assert "Answer in one word." in terminal.until("\n>>> ")
    terminal.type("Say yes.")
    terminal.until("Say yes.\n")
    terminal.until(r"\w[\s\S]*\n>>> ")
    terminal.type("/stats")
    shown = terminal.until("\n>>> ")
    assert "tokens/s" in shown
    assert "MiB" in shown
    file = tmp_path / "chat.json"
    terminal.type(f"/save {file}")
    terminal.until("saved.*\n>>> ")
    messages = json.loads(file.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    terminal.type("/reset")
    terminal.until("new conversation\\)\n>>> ")
    terminal.type("/save /no/such/folder/chat.json")
    assert "cannot be saved" in terminal.until("cannot be saved.*\n>>> ")
    terminal.type("/exit")
    assert terminal.process.wait(timeout=20) == 0


def test_ctrl_c_stops_the_answer_not_the_program(terminal: Terminal) -> None:
    terminal.type("Write a very long story about a river.")
    terminal.until(r"river\.\n[\s\S]{40,}")
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.until(r"\(stopped\)\n>>> ")
    time.sleep(0.5)  # the prompt is shown a moment before it listens
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.until(r"Ctrl-D.*\n>>> ")
    terminal.type("Say yes.")
    terminal.until(r"\w[\s\S]*\n>>> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=20) == 0


def test_standard_input_is_answered(smollm2: Path) -> None:
    done = subprocess.run([*CHAT, str(smollm2), "-n", "8"], input="Name a colour.", capture_output=True, text=True,
                          timeout=60, check=True)
    assert done.stdout.strip()
    done = subprocess.run([*CHAT, str(smollm2)], input=" \n", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "standard input is empty" in done.stderr
