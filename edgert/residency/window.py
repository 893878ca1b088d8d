"""A window of neuron groups: those of a sparse model that tokens needed last are in memory, others are read when asked
for.

"LLM in a flash" (Alizadeh et al. 2023) keeps the neurons of the last few tokens, since most of what the next one needs
is among them. Here as many groups stay as there are slots, and a group that is needed and not there takes the place of
the one that was needed longest ago. Which are needed the kernels find out: the products of a matrix that is in memory,
or streamed, decide it exactly (kernels/chosen.py). So what is in the window decides the speed and nothing else.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgert.bundle.reader import Units
from edgert.errors import EdgertError, ModelError
from edgert.kernels.records import WAIT
from edgert.kernels.semaphores import Semaphores

from .file import FlashFile
from .region import Region
from .source import Asking, Read, ReadHook, Reading, no_answer
from .table import AddressTable

READERS = 8
"""Threads: a disk does most small reads a second when it has several to do."""
_LONGEST_READ_S, _LAST_READ_S = 30.0, 1.0
"""Seconds to wait for a read that has started when the readers are to end, before and after a failure."""
_PIECE = 1 << 20
"""Bytes to read at once while the window is filled for the first time."""
_NOBODY = -1
_NEVER = np.iinfo(np.int64).max


@dataclass
class _Layer:
    """units: the layer's groups. first: the index of its first entry in the table. pool: where its groups go."""

    units: Units
    first: int
    pool: "_Pool"

    @property
    def entries(self) -> slice:
        return slice(self.first, self.first + self.units.count)


@dataclass(eq=False)
class _Pool:
    """Slots for groups of one size. held: int64, the index in the table of the group in each, or _NOBODY."""

    region: Region
    unit_bytes: int
    held: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.held = np.full(self.region.size // self.unit_bytes, _NOBODY, np.int64)


@dataclass(frozen=True, eq=False)
class _Job:
    """A group to read."""

    layer: _Layer
    unit: int
    slot: int


class Window:
    """A source (source.py) that reads neuron groups when the kernels ask for them.

    layers: the groups of each layer, whose lengths and places in the file are whole pages, with the index of their
    first entry in the table. slots: how many there are for groups of each length, in bytes; at least as many as any
    layer of that length has groups, since new tokens may need all of them at once. stop: called from a reader's thread
    when reading failed; `error` then tells why. `fill` must be called once, before anything is computed.
    """

    streams = True
    freed = 0

    def __init__(self, file: FlashFile, layers: Sequence[tuple[Units, int]], table: AddressTable, *,
                 slots: Mapping[int, int], stop: Callable[[], None], readers: int = READERS) -> None:
        self._file, self._table, self._stop = file, table, stop
        self._pools = {size: _Pool(Region(count * size, "neurons", huge=True, filled=True), size)
                       for size, count in slots.items()}
        self._layers = [_Layer(units, first, self._pools[units.unit_bytes]) for units, first in layers]
        self._used = np.zeros_like(table.entries)
        """When each group was needed last, by `_time`."""
        self._time, self._asked = np.ones(1, np.int64), np.full(1, _NOBODY, np.int64)
        self._semaphores = Semaphores(1)
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        """Notified when the last read that had started is done."""
        self._under_way = 0
        self._jobs: deque[_Job] = deque()
        self._closing = False
        self._hook: ReadHook | None = None
        self.error: EdgertError | None = None
        self.reading = Reading()
        self._threads: list[threading.Thread] = []
        try:
            for number in range(readers):
                self._threads.append(threading.Thread(target=self._serve, args=(number,), daemon=True,
                                                      name=f"edgert-window-{number}"))
                self._threads[-1].start()
        except BaseException:
            self.close()
            raise

    def fill(self, progress: Callable[[], None]) -> None:
        """Read the first groups of every layer, which are needed most often, as many as there is room for. progress:
        called before each piece; what it raises ends it. Raises BundleError."""
        for pool in self._pools.values():
            layers, slot = [layer for layer in self._layers if layer.pool is pool], 0
            for number, layer in enumerate(layers):
                count = min((len(pool.held) - slot) // (len(layers) - number), layer.units.count)
                at_once = max(_PIECE // pool.unit_bytes, 1)
                for first in range(0, count, at_once):
                    progress()
                    last = min(first + at_once, count)
                    self._read_units(layer, first, last, slot + first)
                pool.held[slot:slot + count] = layer.first + np.arange(count)
                self._table.entries[layer.first:layer.first + count] = (
                    pool.region.address + pool.unit_bytes * np.arange(slot, slot + count))
                slot += count

    def asking(self, layer: int) -> Asking:
        """What the kernels ask for this layer's groups with."""
        return Asking(self._used.ctypes.data + 8 * self._layers[layer].first, self._time.ctypes.data,
                      self._asked.ctypes.data, int(self._semaphores.table[0]))

    def check(self) -> None:
        """Raises the error that reading failed with, if it did."""
        if self.error is not None:
            raise type(self.error)(str(self.error))  # a new one: a traceback keeps all alive that it came through

    def expect(self, heads: int) -> None:
        """The next pass: what it needs is needed later than what others did."""
        self._time += 1

    def trace(self, hook: ReadHook) -> None:
        """Call `hook` after every read."""
        self._hook = hook

    def restart(self) -> None:
        """Read nothing more that was asked for. Nothing may be computing meanwhile.

        Raises what `check` raises, also if the disk does not answer.
        """
        with self._quiet:
            self._asked[0] = _NOBODY
            for job in self._jobs:
                job.layer.pool.held[job.slot] = _NOBODY
            self._jobs.clear()
            quiet = self._quiet.wait_for(lambda: not self._under_way, self._patience())
        if not quiet:
            self.fail(no_answer())
        self.check()

    def close(self) -> None:
        """End the readers and free the memory, unless a read that has not ended may still write to it."""
        self._closing = True
        self._semaphores.post(0)
        deadline = time.monotonic() + self._patience()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0))
        if not any(thread.is_alive() for thread in self._threads):
            for pool in self._pools.values():
                pool.region.close()

    def fail(self, error: EdgertError) -> None:
        """End all reading. `check` raises `error` from now on, unless something failed before."""
        with self._lock:
            if self.error is None:
                self.error = error
        self._stop()
        self._semaphores.post(0)

    def _patience(self) -> float:
        """Seconds to wait for a read: a disk that does not answer blocks its reader for ever."""
        return _LONGEST_READ_S if self.error is None else _LAST_READ_S

    def _serve(self, reader: int) -> None:
        """A reader's thread: the semaphore says that there may be something to do."""
        while True:
            self._semaphores.wait(0)
            if self._closing or self.error is not None:
                self._semaphores.post(0)
                return
            while (job := self._take()) is not None:
                try:
                    self._read(reader, job)
                except EdgertError as error:
                    self.fail(error)
                except Exception as error:  # whatever it is: the threads that compute must not wait for ever
                    self.fail(ModelError(f"{self._file.path}: reading failed: {error!r}"))
                finally:
                    with self._quiet:
                        self._under_way -= 1
                        if not self._under_way:
                            self._quiet.notify_all()

    def _take(self) -> _Job | None:
        """The next group to read, if there is one. Others are woken for the rest of what was just asked for."""
        others = 0
        with self._lock:
            layer = int(self._asked[0])
            if layer != _NOBODY:
                self._asked[0] = _NOBODY
                self._plan(self._layers[layer])
                others = min(len(self._jobs), len(self._threads)) - 1
            if not self._jobs or self.error is not None:
                return None
            self._under_way += 1
            job = self._jobs.popleft()
        for _ in range(others):
            self._semaphores.post(0)
        return job

    def _plan(self, layer: _Layer) -> None:
        """Give each of a layer's groups that is needed and not there a slot: that of the group needed longest ago.

        Those of this layer that are needed now stay; nothing else is in use, since layers come one after another.
        """
        entries, held, now = self._table.entries, layer.pool.held, int(self._time[0])
        needed = self._used[layer.entries] == now
        missing = np.flatnonzero(needed & (entries[layer.entries] == WAIT))
        age = np.where(held == _NOBODY, _NOBODY, self._used[held])
        own = (held >= layer.first) & (held < layer.first + layer.units.count)
        age[own] = np.where(age[own] == now, _NEVER, age[own])
        slots = np.argpartition(age, len(missing) - 1)[:len(missing)] if len(missing) else missing
        gone = held[slots]
        entries[gone[gone != _NOBODY]] = WAIT
        held[slots] = layer.first + missing
        self._jobs.extend(_Job(layer, unit, slot) for unit, slot in zip(missing.tolist(), slots.tolist(), strict=True))

    def _read(self, reader: int, job: _Job) -> None:
        units, pool = job.layer.units, job.layer.pool
        started, checking = self._read_units(job.layer, job.unit, job.unit + 1, job.slot)
        if self._hook is not None:
            self._hook(Read(reader, units.name, units.start(job.unit), pool.unit_bytes, started, checking, _now()))
        with self._lock:  # also: what was read is seen before its address, on processors that reorder stores
            self.reading.bytes += pool.unit_bytes
            self.reading.seconds += checking - started
        self._table.entries[job.layer.first + job.unit] = pool.region.address + pool.unit_bytes * job.slot

    def _read_units(self, layer: _Layer, first: int, last: int, slot: int) -> tuple[float, float]:
        """Read and check neighbouring groups into neighbouring slots. When that began, and when checking did."""
        units, size = layer.units, layer.pool.unit_bytes
        data = layer.pool.region.view(slot * size, (last - first) * size)
        started = checking = _now()

        def attempt() -> None:
            nonlocal checking
            self._file.read(units.start(first), data, len(data))
            checking = _now()
            for unit in range(first, last):
                units.check(unit, data[(unit - first) * size:(unit - first + 1) * size])

        self._file.twice(attempt)
        return started, checking


def _now() -> float:
    """The time in seconds, of the clock that the kernels use too."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)

