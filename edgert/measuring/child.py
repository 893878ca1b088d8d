"""A process that measures, so that each engine has one of its own: requests and answers are lines of JSON."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from edgert.errors import EdgertError


class Child:
    """A process that runs a module of this package. Use as a context manager, or close it."""

    error: type[EdgertError] = EdgertError
    """What is raised where it fails, with the last line that it wrote on standard error."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        # Not a pipe: nobody reads it before the end, and a full pipe would stop the process.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen([sys.executable, "-P", "-m", f"edgert.measuring.{module}", *arguments],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request; returns the answer. Raises `error`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and said why
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that it writes. Raises `error`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or ["it ended without a word"]
            raise self.error(last[0].rpartition("Error: ")[2])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
