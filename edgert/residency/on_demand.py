"""What sources have in common that read what the kernels ask for: slots, which hold what was read last, and readers
that take one unit after another."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from edgert.bundle.reader import Units
from edgert.errors import ModelError

from .file import FlashFile
from .readers import Readers, now
from .region import Region
from .table import AddressTable

READERS = 8
"""Threads: a disk does most small reads a second when it has several to do."""
NOBODY = -1

Job = TypeVar("Job")


@dataclass(eq=False)
class Pool:
    """Slots of one size. held: int64, the number of what is in each, or NOBODY."""

    region: Region
    slot_bytes: int
    held: np.ndarray = field(init=False)
    _used: np.ndarray = field(init=False)
    """bool, whether each has ever been given to anybody."""

    def __post_init__(self) -> None:
        count = self.region.size // self.slot_bytes
        self.held, self._used = np.full(count, NOBODY, np.int64), np.zeros(count, bool)

    def give(self, slot: int, number: int) -> None:
        """A slot to somebody."""
        self.held[slot] = number
        if not self._used[slot]:
            self._used[slot] = True
            self.region.filled_up_to(int(self._used.sum()) * self.slot_bytes)


def pools_of(slots: Mapping[int, int], what: str, *, filled: bool) -> dict[int, Pool]:
    """By the size of a slot, in bytes. slots: how many there are of each; what: is in them. filled: all of them will be
    right away, without `Pool.give`."""
    return {size: Pool(Region(count * size, what, huge=True, filled=filled), size) for size, count in slots.items()}


class OnDemand(Readers, Generic[Job]):
    """A source of threads that read when the semaphore says that something was asked for."""

    freed = 0

    def __init__(self, file: FlashFile, table: AddressTable, regions: list[Region], stop: Callable[[], None]) -> None:
        super().__init__(file, table, regions, stop)
        self._awake = self._called = 0
        """Readers that look for something to do, or do it; and those that were called and have not woken yet."""

    @abstractmethod
    def _take(self) -> tuple[Job | None, int]:
        """What to read next, if there is something, and how much else could be read at the same time. With the lock."""

    @abstractmethod
    def _read(self, reader: int, job: Job) -> None:
        """Read it, and put its address into the table. Raises BundleError."""

    def _serve(self, reader: int) -> None:
        """A reader's thread: the semaphore says that there may be something to do."""
        while True:
            self._semaphores.wait(0)
            if self._ended():
                return
            with self._lock:
                self._awake += 1
                self._called = max(self._called - 1, 0)
            while (job := self._planned()) is not None:
                with self._one_read():
                    self._read(reader, job)

    def _planned(self) -> Job | None:
        """As `_next`; what is wrong in planning ends all reading, too: nobody must wait for what nobody reads."""
        try:
            return self._next()
        except Exception as error:
            self.fail(ModelError(f"{self._file.path}: planning what to read failed: {error!r}"))
            return self._next()

    def _next(self) -> Job | None:
        """The next job, counted in `_under_way`. Others are called where there is more to do than readers are awake:
        each that wakes in vain takes time from the threads that compute."""
        with self._lock:
            job, more = (None, 0) if self.error is not None else self._take()
            if job is None:
                self._awake -= 1
                return None
            self._under_way += 1
            others = max(min(more, READERS - self._awake - self._called), 0)
            self._called += others
        for _ in range(others):
            self._semaphores.post(0)
        return job

    def _read_units(self, units: Units, first: int, last: int, data: memoryview) -> tuple[float, float]:
        """Read neighbouring units into `data` and check them. When that began, and when checking did. Raises
        BundleError."""
        started = checking = now()

        def attempt() -> None:
            nonlocal checking
            self._file.read(units.start(first), data, len(data))
            checking = now()
            units.check_all(first, (slice(start, start + units.unit_bytes)
                                    for start in range(0, len(data), units.unit_bytes)), data)

        self._file.twice(attempt)
        return started, checking
