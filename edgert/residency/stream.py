"""Streaming: weights that have no place in memory are read for each token, just ahead of the threads that use them.

What is streamed comes in a fixed order: the layers' neuron groups, then, where logits are wanted, the output head. It
is cut into *runs* of neighbouring units, each read at once into a *slot*. A unit's address is put into the kernels'
table when it has been read and checked; the kernel that is done with it takes the address out again and lowers the
slot's counter; at zero the slot is free. Reader threads take the next run whenever there is a free slot: they are ahead
by as much as there are slots, over layers and tokens.

Readers live as long as the stream. What was expected and is not going to be computed is forgotten by `restart`, which
first waits for the reads under way: none of them may come into a slot that has been given to another run.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgert.bundle.reader import Units
from edgert.errors import EdgertError, ModelError
from edgert.kernels.semaphores import Semaphores

from .file import ALIGNMENT, FlashFile, aligned
from .region import HUGE_PAGE, Region

_LONGEST_READ_S, _LAST_READ_S = 30.0, 1.0
"""How long a read under way may take when readers are to end, before and after something has failed."""


@dataclass(frozen=True, eq=False)
class Run:
    """Neighbouring units, read at once: the file from `offset`, `length` bytes.

    entries: the units' places in the table. starts, ends: where they are in what is read.
    """

    units: Units
    first: int
    offset: int
    length: int
    entries: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def run_units(unit_bytes: int, chunk_bytes: int) -> int:
    """How many units of this size are read at once, for reads of about `chunk_bytes`."""
    return max(chunk_bytes // unit_bytes, 1)


def runs_of(units: Units, first: int, entry: int, chunk_bytes: int) -> list[Run]:
    """A section's units from `first` on in runs of about `chunk_bytes`; unit 0's place in the table is `entry`."""
    at_once = run_units(units.unit_bytes, chunk_bytes)
    runs = []
    for start in range(first, units.count, at_once):
        end = min(start + at_once, units.count)
        offset, stop = aligned(units.start(start), units.start(end))
        places = np.array([units.start(i) for i in range(start, end + 1)], np.int64) - offset
        runs.append(Run(units, start, offset, stop - offset, entry + np.arange(start, end), places[:-1], places[1:]))
    return runs


def slot_bytes(unit_bytes: Iterable[int], chunk_bytes: int) -> int:
    """Room that any run fits in, for sections with units of these sizes."""
    most = max(run_units(size, chunk_bytes) * size for size in unit_bytes)
    return -(-most // ALIGNMENT) * ALIGNMENT + ALIGNMENT


def ring_bytes(slots: int, slot_bytes: int) -> int:
    """Room for all slots, in whole huge pages: reading into small ones is half as fast."""
    return -(-slots * slot_bytes // HUGE_PAGE) * HUGE_PAGE


@dataclass
class Reading:
    """What has been read so far."""

    bytes: int = 0
    seconds: float = 0.0
    """Summed over the readers."""


def _now() -> float:
    """The time in seconds, by the clock that the kernels have too."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


RUN_BYTES = 700
"""What a run takes in this process, beside its slot."""


ReadHook = Callable[[int, Run, float, float, float], None]
"""Reader, run, when reading began, when it ended, when checking ended (clock_gettime, as the kernels)."""


@dataclass
class _Slot:
    run: Run | None = None
    """What is read into it, or in it; None while the slot is free."""
    ready: bool = False


class Stream:
    """Reader threads that fill slots.

    body, head: the runs of the layers, and of the output head. table: int64, the address of every unit, or 0. counters:
    int64, for every streamed unit the address of its slot's counter. stop: called when reading failed, from a reader's
    thread; `error` then says why.
    """

    def __init__(self, file: FlashFile, body: Sequence[Run], head: Sequence[Run], table: np.ndarray,
                 counters: np.ndarray, *, slots: int, slot_bytes: int, readers: int, stop: Callable[[], None]) -> None:
        self._file, self._body, self._head, self._stop = file, body, head, stop
        self._table, self._counters = table, counters
        self._slot_bytes = slot_bytes
        self._region = Region(ring_bytes(slots, slot_bytes), "reading ahead", huge=True)
        self._left = np.zeros(8 * slots, np.int64)
        """Units of each slot that are still to be used; on cache lines of their own."""
        self._semaphores = Semaphores(1)
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        """Notified when no read is under way any more."""
        self._under_way = 0
        self._slots = [_Slot() for _ in range(slots)]
        self._queue = deque(body)
        self._closing = False
        self._hook: ReadHook | None = None
        self.error: EdgertError | None = None
        self.out_of_step = False
        """What was expected is not going to be computed, or not to its end: `restart` before anything else is."""
        self.reading = Reading()
        self._threads: list[threading.Thread] = []
        try:
            for number in range(readers):
                self._threads.append(threading.Thread(target=self._read_runs, args=(number,), daemon=True,
                                                      name=f"edgert-reader-{number}"))
                self._threads[-1].start()
        except BaseException:
            self.close()
            raise

    @property
    def freed(self) -> int:
        """Address of the semaphore to post when a slot's counter has come to zero."""
        return int(self._semaphores.table[0])

    def check(self) -> None:
        """Raises what reading failed with."""
        if self.error is not None:
            raise type(self.error)(str(self.error))  # a new one: a traceback keeps all alive that it came through

    def expect(self, heads: int) -> None:
        """Say what is computed next: the layers, and then the output head so many times.

        The layers are being read already: whatever comes after, it begins with them.
        """
        with self._lock:
            for _ in range(heads):
                self._queue.extend(self._head)
            self._queue.extend(self._body)
        self._semaphores.post(0)

    def trace(self, hook: ReadHook | None) -> None:
        """Have every read reported."""
        self._hook = hook

    def restart(self) -> None:
        """Forget what was expected, and begin with the layers again. Nothing may be computing."""
        with self._quiet:
            self._queue.clear()  # no reader takes anything now
            if self._quiet.wait_for(lambda: not self._under_way, self._patience()):
                for run in (*self._body, *self._head):
                    self._table[run.entries] = 0
                self._left[:] = 0
                for slot in self._slots:
                    slot.run, slot.ready = None, False
                self._queue.extend(self._body)
                self.out_of_step = False
        if self.out_of_step:
            self.fail(no_answer())
        else:
            self._semaphores.post(0)

    def close(self) -> None:
        """End the readers, and give the memory back; but not if a read under way may still write to it."""
        self._closing = True
        self._semaphores.post(0)
        deadline = _now() + self._patience()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(deadline - _now(), 0))
        if not any(thread.is_alive() for thread in self._threads):
            self._region.close()

    def _patience(self) -> float:
        """Seconds: a disk that does not answer holds its reader for ever."""
        return _LONGEST_READ_S if self.error is None else _LAST_READ_S

    def _read_runs(self, reader: int) -> None:
        """A reader's thread. The semaphore says that there may be something to do; `_take` decides.

        It is posted for every slot that becomes free, also while all readers are busy. So the first reader to look sets
        it to zero, and posts it for the next one if there is more to do than it can do itself.
        """
        while True:
            self._semaphores.drain(0)
            if self._closing or self.error is not None:
                self._semaphores.post(0)
                return
            with self._lock:
                taken = self._take()
                more = taken is not None and self._free() is not None
            if more:
                self._semaphores.post(0)
            if taken is None:
                self._semaphores.wait(0)
                continue
            try:
                self._read(reader, *taken)
            except EdgertError as error:
                self.fail(error)
            except Exception as error:  # whatever it is, the threads that compute must not wait for ever
                self.fail(ModelError(f"{self._file.path}: reading failed: {error!r}"))
            finally:
                with self._quiet:
                    self._under_way -= 1
                    if not self._under_way:
                        self._quiet.notify_all()

    def _free(self) -> int | None:
        """A free slot that the next run can be read into; None where there is no slot, or nothing to read, for now."""
        free, held = None, set()
        for index, slot in enumerate(self._slots):
            if slot.ready and self._left[8 * index] == 0:
                slot.run, slot.ready = None, False
            if slot.run is None:
                free = index
            else:
                held.add(slot.run)
        # A run that is still in use has its addresses in the table: it is not read again before they are gone.
        return free if self._queue and self._queue[0] not in held else None

    def _take(self) -> tuple[int, Run] | None:
        """A slot and the run to read into it, if there are."""
        free = self._free()
        if free is None:
            return None
        run = self._slots[free].run = self._queue.popleft()
        self._under_way += 1
        # Not later: from here to where addresses are published two locks are taken and let go, so that whoever
        # sees an address sees its counter too, on processors that reorder what is stored.
        self._left[8 * free] = len(run.entries)
        self._counters[run.entries] = self._left.ctypes.data + 64 * free
        return free, run

    def _read(self, reader: int, index: int, run: Run) -> None:
        at = index * self._slot_bytes
        started = checking = _now()
        data = self._region.view(at, run.length)

        def attempt() -> None:
            nonlocal checking
            self._file.read(run.offset, data, int(run.ends[-1]))
            checking = _now()
            for i, (start, end) in enumerate(zip(run.starts.tolist(), run.ends.tolist(), strict=True)):
                run.units.check(run.first + i, data[start:end])

        self._file.twice(attempt)
        if self._hook is not None:
            self._hook(reader, run, started, checking, _now())
        with self._lock:
            self._slots[index].ready = True
            self.reading.bytes += run.length
            self.reading.seconds += checking - started
        self._table[run.entries] = self._region.address + at + run.starts

    def fail(self, error: EdgertError) -> None:
        """End all reading; `error` is what to say from now on, if nothing failed before."""
        with self._lock:
            if self.error is None:
                self.error = error
        self._stop()
        self._semaphores.post(0)


def no_answer() -> ModelError:
    """What a disk that does not answer is reported with."""
    return ModelError("the disk does not answer; check it, then load the model again")
