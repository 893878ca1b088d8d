"""The process that computes embeddings (process.py), as its parent sees it."""

import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from edgert.errors import EmbeddingError
from edgert.pipes import receive, send

_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "OPENBLAS_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false"}
"""What is freed goes back to the system at once, and no library has threads that are not asked for."""


def environment() -> dict[str, str]:
    """The environment of processes that load a model with onnxruntime."""
    return {**os.environ, **_ENVIRONMENT}


class Child:
    """Starts the process and waits until it has loaded the model; a context manager. One request at a time.

    model, prepared, threads, idle_s: its arguments. name: of the model, for errors. It ends with this object, and with
    this process, however that ends: then its standard input ends. Raises EmbeddingError.
    """

    def __init__(self, model: Path, name: str, prepared: Path, threads: int, idle_s: float) -> None:
        self._name = name
        command = [sys.executable, "-P", "-m", "edgert.embeddings.process", str(model), str(prepared), str(threads),
                   str(idle_s)]
        try:
            # In a session of its own: Ctrl-C is for those who ask.
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                                             stderr=subprocess.DEVNULL, env=environment(), start_new_session=True)
        except OSError as error:
            raise EmbeddingError(f"{name}: no process can be started that computes embeddings: "
                                 f"{error.strerror or error}") from None
        self._end = weakref.finalize(self, _end, self._process)
        self.idle = False
        """Whether the process has ended because nobody asked."""
        threading.Thread(target=self._process.wait, name="edgert-embeddings", daemon=True).start()  # leave no zombie
        try:
            self._receive()
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, message: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """The answer to a message, and its array. However it is interrupted, the process ends then: what it still
        writes would be taken for the next answer. Raises EmbeddingError."""
        assert self._process.stdin is not None
        try:
            try:
                send(self._process.stdin.fileno(), message)
            except OSError:
                self._ended()
            return self._receive()
        except EmbeddingError:
            raise
        except BaseException:
            self.end()
            raise

    def _receive(self) -> tuple[dict[str, Any], np.ndarray]:
        assert self._process.stdout is not None
        try:
            message, vectors = receive(self._process.stdout.fileno())
        except (EOFError, OSError):
            self._ended()
        if "error" in message:
            raise EmbeddingError(f"{self._name}: {message['error']}" if self._name not in message["error"]
                                 else message["error"])
        return message, vectors

    def _ended(self) -> NoReturn:
        status = self._process.wait()
        self.idle = status == 0
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise EmbeddingError(f"{self._name}: the process that computes embeddings {how}; if there is enough memory, "
                             "ask again, and it is started anew")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """End the process, and wait for that."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
