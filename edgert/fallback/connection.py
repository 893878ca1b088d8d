"""The connection to a llama.cpp process: a thread that speaks with it, and starts a new one where it has ended."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from edgert.errors import ModelError
from edgert.generation.grammar import grammar_bytes
from edgert.memory.budget import process_bytes
from edgert.sizes import size_text

from .child import Child, EndedError
from .control_group import ControlGroup
from .messages import Open, Opened

T = TypeVar("T")
_OWN_GROWTH = 24 << 20
"""Bytes by which edgert's own process grows while it answers: logits, sorted ones, texts."""
_LEAST = 64 << 20
"""Bytes without which llama.cpp's process does not even start."""


class Connection:
    """Runs jobs with the process, one after another, in a thread of its own.

    Ctrl-C ends the wait for a job, and not what the two tell each other. limit: bytes that this process and llama.cpp's
    may take together, which the kernel keeps; None for no limit. structured: whether answers may follow grammars, which
    takes memory here. Raises ModelError.
    """

    def __init__(self, opening: Open, limit: int | None, *, structured: bool = False) -> None:
        self._opening, self._limit, self._structured = opening, limit, structured
        self._child: Child | None = None
        self._closed, self._ident = False, 0
        self._thread = ThreadPoolExecutor(1, "edgert-llama")
        try:
            self.opened: Opened = self.run(lambda child: child.opened)
        except BaseException:
            self.close()
            raise

    def run(self, job: Callable[[Child], T], only: Child | None = None) -> T:
        """What a job makes of the process. only: a process that it goes on with, which no other can do in its place.
        Raises ModelError, and what the job raises."""
        self.check()
        try:
            waiting = self._thread.submit(self._do, job, only)
        except RuntimeError:  # closed just now
            raise self._gone() from None
        return waiting.result()

    def check(self) -> None:
        """Raises ModelError where it was closed."""
        if self._closed:
            raise self._gone()

    @property
    def memory(self) -> int:
        """Bytes that the process takes now."""
        child = self._child
        return 0 if child is None else child.memory

    @property
    def group(self) -> ControlGroup | None:
        """The control group that keeps the process within the limit."""
        return None if self._child is None else self._child.group

    def close(self) -> None:
        """End the process, also amid a job."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()
        # A model may be garbage-collected in this very thread, at the end of its last job.
        self._thread.shutdown(wait=threading.get_ident() != self._ident)
        self._let_go()

    def _do(self, job: Callable[[Child], T], only: Child | None) -> T:
        self._ident = threading.get_ident()
        child = self._living(only)
        try:
            return job(child)
        except EndedError:
            if only is not None:
                raise
            return job(self._living(None))

    def _living(self, only: Child | None) -> Child:
        """The process; a new one, where the last one has ended."""
        self.check()
        child = self._child
        if only is not None and not (child is only and only.alive):
            raise only.ended()
        if child is None or not child.alive:
            self._let_go()
            self._child = child = Child(self._control_group())
            if self._closed:
                child.kill()
            try:
                child.open(self._opening)
                if child.group is not None and self._structured:
                    child.group.lower(child.group.limit - grammar_bytes(child.opened.vocab_size))
            except BaseException:
                self._let_go()
                raise
        return child

    def _let_go(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _control_group(self) -> ControlGroup | None:
        """A group for the process that leaves room for this one. Raises ModelError."""
        if self._limit is None:
            return None
        own = process_bytes() + _OWN_GROWTH
        if self._limit - own < _LEAST:
            raise ModelError(f"--memory {size_text(self._limit)} is too little: edgert's own process takes "
                             f"{size_text(own)} of it, and llama.cpp's at least {size_text(_LEAST)}")
        _uncached(self._opening.path)
        return ControlGroup(self._limit - own)

    def _gone(self) -> ModelError:
        return ModelError("the model was closed; load it again")


def _uncached(path: str) -> None:
    """Drop a file from the page cache: what others have read already would not count in a new control group."""
    if hasattr(os, "posix_fadvise"):
        with Path(path).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
