"""A thread of a model's own, in which everything that changes it runs, one job after another.

Python runs signal handlers in the main thread only, between any two of its instructions: what they raise, such as
KeyboardInterrupt, never comes into a job. Whoever waits for a job may be interrupted anywhere; the job then ends
early, or finishes, but is never left halfway, and the next one begins after it.
"""

import atexit
import contextlib
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np

from edgert.errors import ModelError
from edgert.kernels.records import CANCELLED

T = TypeVar("T")

_AFTER_CANCEL_S = 1.0
"""How long somebody who was interrupted waits for the job to end; the next job waits for it in any case."""
_AT_EXIT_S = 5.0
_LOOK_S = 1.0
"""How often somebody who waits looks whether it was in vain."""


class CancelledError(Exception):
    """Nobody wants the job's result any more."""


class _Once:
    """Happens once. Waiting may be interrupted at any instruction, which does a threading.Event no good."""

    def __init__(self) -> None:
        self.happened = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def happen(self) -> None:
        self.happened = True
        self._lock.release()

    def wait(self, timeout: float = math.inf) -> bool:
        """Whether it has happened, after so many seconds at most."""
        deadline = time.monotonic() + timeout
        while not self.happened:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._lock.acquire(timeout=min(left, _LOOK_S)):
                self._lock.release()  # where this is interrupted, others find out when they look
        return True


class Job(Generic[T]):
    """What is to be done, and what came of it.

    cancel: int64 of shape (1,), CANCELLED when nobody wants the result any more: the kernels see it too.
    """

    def __init__(self, work: "Callable[[Job[T]], T]") -> None:
        self.cancel = np.zeros(1, np.int64)
        self.done = _Once()
        self._work = work
        self._result: T | None = None
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raises CancelledError when nobody wants the result any more."""
        if self.cancel[0]:
            raise CancelledError

    def do(self) -> None:
        try:
            self._result = self._work(self)
        except BaseException as error:
            self._error = error
        finally:
            del self._work  # and what it refers to, in this thread
            self.done.happen()

    def result(self) -> T:
        """What came of it; once. Raises what the work raised."""
        try:
            if self._error is not None:
                raise self._error
            return self._result  # type: ignore[return-value]
        finally:
            del self._error, self._result


class _Life:
    """What is known of a worker's thread; it does not keep the worker alive.

    jobs: what is put there besides jobs ends the thread. So that this is done when the worker is let go, its weak
    reference puts itself there: C code, which no interrupt comes into, and which never waits.
    """

    def __init__(self, worker: "Worker") -> None:
        self.process = os.getpid()
        self.jobs: SimpleQueue[Job[Any] | object] = SimpleQueue()
        self.worker = weakref.ref(worker, self.jobs.put)
        self.closed = False
        self.ended = _Once()

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that has the thread."""
        return self.process != os.getpid()

    @property
    def ending(self) -> bool:
        return self.closed or self.worker() is None

    def end(self) -> None:
        """Have the thread end after the jobs that were put before."""
        self.closed = True
        self.jobs.put(None)


_lives: set[_Life] = set()


class Worker:
    """A thread that does jobs. When the worker is let go, or closed, the thread closes `opened` and ends.

    opened: what jobs have opened; only jobs touch it, and nothing in it refers to the worker or to whoever has it.
    """

    def __init__(self, name: str) -> None:
        self.opened = ExitStack()
        self._life = _Life(self)  # before the thread: interrupted in between, the worker is let go and the thread ends
        self._thread = threading.Thread(target=_work, args=(self._life, self.opened), daemon=True, name=name)
        self._thread.start()

    def check(self) -> None:
        """Raises ModelError when the worker has been closed or belongs to another process."""
        if self._life.foreign:
            raise ModelError(f"this model was loaded by process {self._life.process}, of which this one is a fork, "
                             "without the threads that compute; load the model after forking")
        if self._life.ending:
            raise _closed()

    def run(self, work: Callable[[Job[T]], T]) -> T:
        """Do a job in the thread, and wait for it. An exception in here, such as KeyboardInterrupt, cancels the job.

        Raises what the job raises, and what `check` raises.
        """
        self.check()
        life, job = self._life, Job(work)
        try:
            life.jobs.put(job)
            while not job.done.wait(_LOOK_S):
                if life.ended.happened and not job.done.happened:
                    raise _closed()
        except BaseException:
            job.cancel[0] = CANCELLED
            job.done.wait(_AFTER_CANCEL_S)
            raise
        return job.result()

    def close(self) -> None:
        """Close what jobs have opened and end the thread, after the jobs that were asked for before.

        Raises what closing raises. In a fork nothing happens: all belongs to the process that made the worker.
        """
        life, opened = self._life, self.opened
        if life.foreign:
            return
        job = Job(lambda job: opened.close())
        if not life.ending:
            life.jobs.put(job)
        life.end()
        life.ended.wait()
        self._thread.join()
        if job.done.happened:
            job.result()


def _closed() -> ModelError:
    return ModelError("the model has been closed; load it again")


def _work(life: _Life, opened: ExitStack) -> None:
    """The thread."""
    _lives.add(life)
    try:
        while isinstance(job := life.jobs.get(), Job):
            job.do()
            del job  # before waiting: it may be the last to know whose model this is
    finally:
        with contextlib.suppress(Exception):
            opened.close()
        _lives.discard(life)
        life.ended.happen()


def settle() -> None:
    """Wait until models that have been let go have given their memory back."""
    for life in list(_lives):
        if life.ending and not life.foreign:
            life.ended.wait()


@atexit.register
def _end_all() -> None:
    """Threads that compute must not outlive the memory that they compute in."""
    for life in list(_lives):
        if not life.foreign:
            life.end()
            life.ended.wait(_AT_EXIT_S)
