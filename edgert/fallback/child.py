"""A llama.cpp process, as the program sees it that has started it."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO, BinaryIO, TypeVar, cast

import numpy as np
import psutil

from edgert.errors import ModelError
from edgert.pipes import send
from edgert.sizes import size_text

from .control_group import ControlGroup
from .messages import Compute, Failed, Keep, Kept, Logits, Open, Opened, Reply, Request, receive_reply

_JOIN = 'echo $$ > "$0" && exec "$@"'
"""A shell's line: join the group first, so that all memory counts."""
_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that others send, of which the process itself says nothing."""
_ENDING_S = 5
"""Seconds in which a process that has closed its pipes ends by itself."""
_LAST = 4096
"""Bytes of what it has printed that are looked at, when it has ended."""

R = TypeVar("R", bound=Reply)


class EndedError(ModelError):
    """The process has ended."""


class Child:
    """A process that has a model open. All but `kill` is called by one thread at a time.

    held: the tokens that it has computed, and keeps. opened: what it said of the model. group: its control group, if it
    has a limit; it belongs to this object. Raises ModelError where no process can be started.
    """

    opened: Opened

    def __init__(self, group: ControlGroup | None) -> None:
        self.held: list[int] = []
        self.group = group
        program = [sys.executable, "-P", "-m", "edgert.fallback.process"]
        joining = [] if group is None else ["/bin/sh", "-c", _JOIN, str(group.processes)]
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        try:
            self._process = subprocess.Popen([*joining, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             bufsize=0, stderr=self._said, start_new_session=True)
        except OSError as error:
            self._said.close()
            if group is not None:
                group.remove()
            raise ModelError(f"no process can be started for llama.cpp: {error.strerror or error}") from None
        self._input = cast(BinaryIO, self._process.stdin)
        self._output = cast(BinaryIO, self._process.stdout)

    def open(self, opening: Open) -> None:
        """Have it load a model. Raises ModelError."""
        self.opened = self.ask(opening, Opened)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def memory(self) -> int:
        """Bytes that are resident now."""
        with suppress(psutil.Error):
            return int(psutil.Process(self._process.pid).memory_info().rss)
        return 0

    def ask(self, request: Request, kind: type[R]) -> R:
        """The answer to a request that brings no logits. Raises ModelError, also EndedError."""
        return self._asked(request, kind)[0]

    def truncate(self, keep: int) -> None:
        """Forget all tokens but the first `keep`, or all, where it cannot forget only some. Raises ModelError."""
        if keep < len(self.held):
            del self.held[self.ask(Keep(keep), Kept).count:]

    def compute(self, tokens: list[int], wanted: int) -> np.ndarray:
        """Compute tokens after those that are held; the logits of the last `wanted` ones. Raises ModelError."""
        _, logits = self._asked(Compute(tokens, wanted), Logits)
        self.held += tokens
        return logits

    def _asked(self, request: Request, kind: type[R]) -> tuple[R, np.ndarray]:
        try:
            send(self._input.fileno(), request)
            reply, logits = receive_reply(self._output.fileno())
        except (EOFError, OSError, ValueError):  # it has ended, or was
            raise self.ended() from None
        if isinstance(reply, Failed):
            raise ModelError(reply.why)
        assert isinstance(reply, kind)
        return reply, logits

    def ended(self) -> EndedError:
        """Why it has ended, in one sentence."""
        try:
            status = self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:  # it only says nothing more
            self._process.kill()
            status = self._process.wait()
        if self.group is not None and self.group.killed:
            return EndedError(f"llama.cpp's process was ended by the kernel: it needs more than the "
                              f"{size_text(self.group.limit)} that --memory leaves it; raise that, or take a smaller "
                              "context")
        how = f"status {status}"
        if status < 0:
            how = next((known.name for known in signal.Signals if known == -status), f"signal {-status}")
        last = "" if -status in _SENT else self._last_line()
        return EndedError(f"llama.cpp's process ended with {how}{last}; ask again, and a new one is started")

    def _last_line(self) -> str:
        """The last line that it has printed, to go on a sentence with."""
        try:
            self._said.seek(max(self._said.seek(0, os.SEEK_END) - _LAST, 0))
            lines = [line.strip() for line in self._said.read().decode("utf-8", "replace").splitlines()]
        except (OSError, ValueError):
            return ""
        told = [line for line in lines if "assert" in line.lower() or "error" in line.lower()] or lines
        return f" ({told[-1][:200]})" if told and told[-1] else ""

    def kill(self) -> None:
        """End the process: it has nothing that is worth being kept. What waits for an answer gets a ModelError."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, and let everything go that belongs to it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._input, self._output, self._said):
            with suppress(OSError):
                stream.close()
        if self.group is not None:
            self.group.remove()
