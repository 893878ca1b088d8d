"""A thread for each model, in which everything that changes the model runs, one job after another.

Python runs signal handlers only in the main thread, between any two of its instructions: an exception that they raise,
such as KeyboardInterrupt, never occurs inside a job. The thread that waits for a job may be interrupted anywhere; the
job then ends early, or finishes, but is never left halfway, and the next job starts after it.
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
"""Seconds that an interrupted caller waits for the job to end; the next job waits for it in any case."""
_AT_EXIT_S = 5.0
"""Seconds to wait for a thread when the program ends."""
_LOOK_S = 1.0
"""How often, in seconds, a waiting thread checks that it does not wait in vain."""


class CancelledError(Exception):
    """The job was cancelled: nobody wants its result any more."""


class _Once:
    """An event that happens once. Unlike threading.Event, a wait may be interrupted at any instruction."""

    def __init__(self) -> None:
        self.happened = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def happen(self) -> None:
        self.happened = True
        self._lock.release()

    def wait(self, timeout: float = math.inf) -> bool:
        """Wait for at most `timeout` seconds; returns whether it has happened."""
        deadline = time.monotonic() + timeout
        while not self.happened:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._lock.acquire(timeout=min(left, _LOOK_S)):
                self._lock.release()  # if this is interrupted, other waiting threads notice at their next check
        return True


class Job(Generic[T]):
    """A function to be called in the thread, and its result.

    cancel: int64 of shape (1,), set to CANCELLED when nobody wants the result any more; the kernels check it too.
    """

    def __init__(self, work: "Callable[[Job[T]], T]") -> None:
        self.cancel = np.zeros(1, np.int64)
        self.done = _Once()
        self._work = work
        self._result: T | None = None
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raises CancelledError if the job was cancelled."""
        if self.cancel[0]:
            raise CancelledError

    def do(self) -> None:
        try:
            self._result = self._work(self)
        except BaseException as error:
            self._error = error
        finally:
            del self._work  # so that what it refers to is freed in this thread
            self.done.happen()

    def result(self) -> T:
        """The result; may be called once. Raises what the work raised."""
        try:
            if self._error is not None:
                raise self._error
            return self._result  # type: ignore[return-value]
        finally:
            del self._error, self._result


class _Life:
    """The state of a worker's thread; it does not keep the worker alive.

    jobs: the queue. Anything in it that is not a job ends the thread. When the worker is garbage-collected, its weak
    reference puts itself there: that is C code, which cannot be interrupted and never waits.
    """

    def __init__(self, worker: "Worker") -> None:
        self.process = os.getpid()
        self.jobs: SimpleQueue[Job[Any] | object] = SimpleQueue()
        self.worker = weakref.ref(worker, self.jobs.put)
        self.closed = False
        self.ended = _Once()

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that runs the thread."""
        return self.process != os.getpid()

    @property
    def ending(self) -> bool:
        return self.closed or self.worker() is None

    def end(self) -> None:
        """Let the thread end after the jobs that are in the queue now."""
        self.closed = True
        self.jobs.put(None)


_lives: set[_Life] = set()


class Worker:
    """A thread that runs jobs. When the worker is closed or garbage-collected, the thread closes `opened` and ends.

    opened: what jobs have opened. Only jobs use it, and nothing in it refers to the worker or to the worker's owner.
    """

    def __init__(self, name: str) -> None:
        self.opened = ExitStack()
        self._life = _Life(self)  # before the thread: if an interrupt comes in between, the thread ends
        self._thread = threading.Thread(target=_work, args=(self._life, self.opened), daemon=True, name=name)
        self._thread.start()

    def check(self) -> None:
        """Raises ModelError if the worker has been closed or belongs to another process."""
        if self._life.foreign:
            raise ModelError(f"this model was loaded by process {self._life.process}, of which this one is a fork, "
                             "without the threads that compute; load the model after forking")
        if self._life.ending:
            raise _closed()

    def run(self, work: Callable[[Job[T]], T]) -> T:
        """Run a job in the thread, and wait for it. An exception while waiting, such as Ctrl-C, cancels the job.

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

    def post(self, work: Callable[[Job[T]], T]) -> Job[T]:
        """Have a job run in the thread, after those that are in the queue, and do not wait for it. Raises what `check`
        raises."""
        self.check()
        job = Job(work)
        self._life.jobs.put(job)
        return job

    def close(self) -> None:
        """Close what jobs have opened and end the thread, after the jobs that are in the queue now.

        Raises what closing raises. In a fork it does nothing: everything belongs to the process that made the worker.
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
    """What the thread runs."""
    _lives.add(life)
    try:
        while isinstance(job := life.jobs.get(), Job):
            job.do()
            del job  # before waiting: it may hold the last reference to the model
    finally:
        with contextlib.suppress(Exception):
            opened.close()
        _lives.discard(life)
        life.ended.happen()


def settle() -> None:
    """Wait until models that were garbage-collected have freed their memory."""
    for life in list(_lives):
        if life.ending and not life.foreign:
            life.ended.wait()


@atexit.register
def _end_all() -> None:
    """End all threads: they must not outlive the memory that they compute in."""
    for life in list(_lives):
        if not life.foreign:
            life.end()
            life.ended.wait(_AT_EXIT_S)
