"""Streaming: weights that do not stay in memory are read for each token, just before the threads need them.

They are read in a fixed order, that of their use: each layer's attention matrices and neuron groups, then, if logits
are wanted, the output head. The order is divided into *runs* of neighbouring units; each run is one read, into a
*slot*. When a unit has been read and checked, its address is written into the kernels' table. The kernel that has used
it removes the address and decrements the slot's counter; at zero the slot is free. Reader threads take the next run
whenever a slot is free: so they are ahead of the computation by the number of slots, across layers and tokens.

The threads live as long as the stream. If what was expected is not going to be computed, `restart` forgets it. It first
waits for reads that have started: none of them may end up in a slot that was given to another run.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgert.bundle.reader import Units
from edgert.kernels.records import WAIT

from .file import ALIGNMENT, FlashFile, aligned
from .readers import Readers, now
from .region import HUGE_PAGE, Region
from .source import Read, no_answer
from .table import AddressTable


@dataclass(frozen=True, eq=False)
class Run:
    """Neighbouring units that are read together: `length` bytes of the file from `offset`.

    units, first: what they are of, and the number of the first. entries: the units' indices in the table. starts, ends:
    where each unit begins and ends in the data.
    """

    units: Units
    first: int
    offset: int
    length: int
    entries: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def run_units(unit_bytes: int, chunk_bytes: int) -> int:
    """How many units of this size are read together, for reads of about `chunk_bytes`."""
    return max(chunk_bytes // unit_bytes, 1)


def runs_of(units: Units, first: int, entry: int, chunk_bytes: int) -> list[Run]:
    """Divide units from `first` on into runs of about `chunk_bytes`. entry: unit 0's index in the table."""
    at_once = run_units(units.unit_bytes, chunk_bytes)
    runs = []
    for start in range(first, units.count, at_once):
        end = min(start + at_once, units.count)
        offset, stop = aligned(units.start(start), units.start(end))
        places = np.array([units.start(i) for i in range(start, end + 1)], np.int64) - offset
        runs.append(Run(units, start, offset, stop - offset, entry + np.arange(start, end), places[:-1], places[1:]))
    return runs


def slot_bytes(unit_bytes: Iterable[int], chunk_bytes: int) -> int:
    """The size of a slot that any run fits into, for units of these sizes."""
    most = max(run_units(size, chunk_bytes) * size for size in unit_bytes)
    return -(-most // ALIGNMENT) * ALIGNMENT + ALIGNMENT


def ring_bytes(slots: int, slot_bytes: int) -> int:
    """Bytes of all slots, in whole huge pages: reading into small pages is half as fast."""
    return -(-slots * slot_bytes // HUGE_PAGE) * HUGE_PAGE


RUN_BYTES = 700
"""Bytes that a run takes in this process, besides its slot."""


@dataclass
class _Slot:
    run: Run | None = None
    """The run whose data is in the slot or being read into it; None while the slot is free."""
    ready: bool = False


class Stream(Readers):
    """A source (source.py) of reader threads that fill slots with weights.

    body, head: the runs of the layers, and of the output head, in the order of use. table: where a unit's address is
    put when it has been read, and that of its slot's counter. stop: called from a reader's thread when reading failed;
    `error` then tells why.

    It cannot get stuck, whatever `slots` is, as long as a kernel that holds units while it waits for others holds no
    more than fit into all slots but one: runs are read in the order of use, so that what is waited for comes into the
    next slot that is free. Only prefill's phases hold more than one unit a thread (memory.plan.Planner.slots).
    """

    def __init__(self, file: FlashFile, body: Sequence[Run], head: Sequence[Run], table: AddressTable, *, slots: int,
                 slot_bytes: int, readers: int, stop: Callable[[], None]) -> None:
        self._body, self._head, self._slot_bytes = body, head, slot_bytes
        self._region = Region(ring_bytes(slots, slot_bytes), "reading ahead", huge=True)
        super().__init__(file, table, [self._region], stop)
        self._left = np.zeros(8 * slots, np.int64)
        """How many units of each slot are still to be used; each counter on its own cache line."""
        self._slots = [_Slot() for _ in range(slots)]
        self._queue = deque(body)
        self._start(readers, "reader")

    @property
    def freed(self) -> int:
        """Address of the semaphore to post when a slot's counter has come to zero."""
        return int(self._semaphores.table[0])

    def expect(self, heads: int) -> None:
        """Announce what is computed next: the layers, and then the output head `heads` times.

        The layers are being read already: every computation begins with them.
        """
        with self._lock:
            for _ in range(heads):
                self._queue.extend(self._head)
            self._queue.extend(self._body)
        self._semaphores.post(0)

    def restart(self) -> None:
        """Forget what was expected, and begin with the layers again. Nothing may be computing meanwhile.

        Raises what `check` raises, also if the disk does not answer.
        """
        with self._quiet:
            self._queue.clear()  # no reader takes anything now
            quiet = self._wait_until_quiet()
            if quiet:
                for run in (*self._body, *self._head):
                    self._table.entries[run.entries] = WAIT
                self._left[:] = 0
                for slot in self._slots:
                    slot.run, slot.ready = None, False
                self._queue.extend(self._body)
        if not quiet:
            self.fail(no_answer())
        self.check()
        self._semaphores.post(0)

    def _serve(self, reader: int) -> None:
        """A reader's thread. The semaphore says that there may be something to do; `_take` decides.

        It is posted for every slot that becomes free, also while all readers are busy. So the first reader to look sets
        it to zero, and posts it for the next one if there is more to do than it can do itself.
        """
        while True:
            self._semaphores.drain(0)
            if self._ended():
                return
            with self._lock:
                taken = self._take()
                more = taken is not None and self._free() is not None
            if more:
                self._semaphores.post(0)
            if taken is None:
                self._semaphores.wait(0)
                continue
            with self._one_read():
                self._read(reader, *taken)

    def _free(self) -> int | None:
        """The index of a free slot for the next run; None if no slot is free, or nothing is to be read, for now."""
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
        """Take the next run and a slot to read it into, if there are."""
        free = self._free()
        if free is None:
            return None
        run = self._slots[free].run = self._queue.popleft()
        self._under_way += 1
        # Set here and not later: two locks are taken and released from here to where addresses are published. So a
        # thread that sees an address also sees its counter, on processors that reorder stores.
        self._left[8 * free] = len(run.entries)
        self._table.counters[run.entries] = self._left.ctypes.data + 64 * free
        return free, run

    def _read(self, reader: int, index: int, run: Run) -> None:
        at = index * self._slot_bytes
        started = checking = now()
        data = self._region.view(at, run.length)

        def attempt() -> None:
            nonlocal checking
            self._file.read(run.offset, data, int(run.ends[-1]))
            checking = now()
            run.units.check_all(run.first, map(slice, run.starts.tolist(), run.ends.tolist()), data)

        self._file.twice(attempt)
        if self._hook is not None:
            self._hook(Read(reader, run.units.name, run.offset, run.length, started, checking, now()))
        with self._lock:
            self._slots[index].ready = True
            self.reading.bytes += run.length
            self.reading.seconds += checking - started
        self._table.entries[run.entries] = self._region.address + at + run.starts
