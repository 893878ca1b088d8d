"""What sources that read have in common: reader threads, and how they fail, wait and end."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgert.errors import EdgertError, ModelError
from edgert.kernels.semaphores import Semaphores

from .file import FlashFile
from .region import Region
from .source import ReadHook, Reading
from .table import AddressTable

_LONGEST_READ_S, _LAST_READ_S = 30.0, 1.0
"""Seconds to wait for a read that has started when the readers are to end, before and after a failure."""


def now() -> float:
    """The time in seconds, of the clock that the kernels use too."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Readers(ABC):
    """A source (source.py) of threads that read from `file` and put addresses into `table`.

    regions: memory that they read into; it is freed when they have ended. stop: called from a reader's thread when
    reading failed; `error` then tells why. A source calls `_start` when all that its threads need is there.
    """

    streams = True

    def __init__(self, file: FlashFile, table: AddressTable, regions: list[Region], stop: Callable[[], None]) -> None:
        self._file, self._table, self._regions, self._stop = file, table, regions, stop
        self._semaphores = Semaphores(1)
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        """Notified when the last read that had started is done."""
        self._under_way = 0
        self._closing = False
        self._hook: ReadHook | None = None
        self.error: EdgertError | None = None
        self.reading = Reading()
        self._threads: list[threading.Thread] = []

    def _start(self, readers: int, name: str) -> None:
        """Start so many threads."""
        try:
            for number in range(readers):
                self._threads.append(threading.Thread(target=self._serve, args=(number,), daemon=True,
                                                      name=f"edgert-{name}-{number}"))
                self._threads[-1].start()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _serve(self, reader: int) -> None:
        """What a thread does until `_ended`."""

    def _ended(self) -> bool:
        """Whether a reader is to end; then the next one is woken for that too."""
        if self._closing or self.error is not None:
            self._semaphores.post(0)
            return True
        return False

    @contextmanager
    def _one_read(self) -> Iterator[None]:
        """Around a read that was counted in `_under_way` when it was taken: what it raises ends all reading."""
        try:
            yield
        except EdgertError as error:
            self.fail(error)
        except Exception as error:  # whatever it is: the threads that compute must not wait for ever
            self.fail(ModelError(f"{self._file.path}: reading failed: {error!r}"))
        finally:
            with self._quiet:
                self._under_way -= 1
                if not self._under_way:
                    self._quiet.notify_all()

    def pause(self) -> None:  # noqa: B027
        """What is read in a fixed order changes nothing that is there, which is so of most."""

    def check(self) -> None:
        """Raises the error that reading failed with, if it did."""
        if self.error is not None:
            raise type(self.error)(str(self.error))  # a new one: a traceback keeps all alive that it came through

    def trace(self, hook: ReadHook) -> None:
        """Call `hook` after every read."""
        self._hook = hook

    def fail(self, error: EdgertError) -> None:
        """End all reading. `check` raises `error` from now on, unless something failed before."""
        with self._lock:
            if self.error is None:
                self.error = error
        self._stop()
        self._semaphores.post(0)

    def _wait_until_quiet(self) -> bool:
        """Wait, with the lock, for reads that have started. False if the disk does not answer."""
        return self._quiet.wait_for(lambda: not self._under_way, self._patience())

    def close(self) -> None:
        """End the readers and free the memory, unless a read that has not ended may still write to it."""
        self._closing = True
        self._semaphores.post(0)
        deadline = now() + self._patience()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(deadline - now(), 0))
        if not any(thread.is_alive() for thread in self._threads):
            for region in self._regions:
                region.close()

    def _patience(self) -> float:
        """Seconds to wait for a read: a disk that does not answer blocks its reader for ever."""
        return _LONGEST_READ_S if self.error is None else _LAST_READ_S
