"""A program on a terminal of so many columns, as its user sees it: pyte emulates the terminal."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte

UP, LEFT, ALT_ENTER, CTRL_A, CTRL_C, CTRL_D, CTRL_G, CTRL_L, CTRL_R = (
    "\x1b[A", "\x1b[D", "\x1b\r", "\x01", "\x03", "\x04", "\x07", "\x0c", "\x12")


def _hear_interrupts() -> None:
    """What starts tests in the background ignores Ctrl-C, and its children inherit that. The terminal is the
    program's own, so that Ctrl-C in it is a signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """A program on a pseudo-terminal. It is a context manager."""

    def __init__(self, command: Sequence[str | Path], columns: int = 80, rows: int = 24, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._screen.write_process_input = self._send  # the terminal's answer to a program that asks for the cursor
        self._stream = pyte.ByteStream(self._screen)
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                        preexec_fn=_hear_interrupts,
                                        env={**os.environ, "TERM": "xterm-256color", **environment})
        os.close(slave)

    def _send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def press(self, keys: str) -> None:
        """Type keys: text, or what a terminal sends for them."""
        self._send(keys)

    def enter(self, text: str = "") -> None:
        """Type a line and Enter."""
        self.press(text)
        if text:
            self.until(text.splitlines()[-1][-10:])
        self.press("\r")

    def rows(self) -> list[str]:
        """What is shown, without what has scrolled away; a wide character is one."""
        return [row.rstrip() for row in self._screen.display]

    def text(self) -> str:
        """What is shown."""
        return "\n".join(self.rows()).rstrip()

    def shows(self, text: str) -> bool:
        """Whether the screen shows a text, which may go on in the next row where one is full."""
        return text in self.text() or text in "".join(self._screen.display)

    def until(self, shown: str | Callable[[], bool], seconds: float = 30) -> str:
        """Wait until the screen shows a text, or what is asked for is so. Returns what it shows."""
        end = time.monotonic() + seconds
        while not (shown() if callable(shown) else self.shows(shown)):
            assert time.monotonic() < end, f"{shown!r} did not come:\n{self.text()}"
            self._take(0.1)
        return self.text()

    def prompt(self, number: int) -> str:
        """Wait until the screen shows so many prompts, the last of them empty, and nothing more comes."""
        self.until(lambda: sum(row.startswith(">>>") for row in self.rows()) >= number and self.rows()[
            self._screen.cursor.y] == ">>>")
        return self.text()

    def ended(self, seconds: float = 30) -> int:
        """Wait until the program has ended; returns its exit status."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it has not ended:\n{self.text()}"
            self._take(0.1)
        return self.process.returncode

    def _take(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            try:
                self._stream.feed(os.read(self._master, 65536))
            except OSError:  # the other side has closed
                time.sleep(seconds)

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
