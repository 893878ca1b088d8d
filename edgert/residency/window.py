"""A window of neuron groups: those of a sparse model that tokens needed last are in memory, others are read when asked
for.

"LLM in a flash" (Alizadeh et al. 2023) keeps the neurons of the last few tokens, since most of what the next one needs
is among them. Here as many groups stay as there are slots, and a group that is needed and not there takes the place of
the one that was needed longest ago. Which are needed the kernels find out: the products of a matrix that is in memory,
or streamed, decide it exactly, or a predictor's do (kernels/sparse.py). So what is in the window decides the speed and
nothing else. Where a predictor also says what the next layer will need, that is read when nothing else is to be.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgert.bundle.reader import Units
from edgert.kernels.native import Library
from edgert.kernels.records import WAIT

from .file import FlashFile
from .least_recent import LeastRecent
from .on_demand import NOBODY, READERS, OnDemand, Pool, pools_of
from .readers import now
from .scattered import MOST, ScatteredReader
from .source import Asking, Read, no_answer
from .table import AddressTable

_PIECE = 1 << 20
"""Bytes to read at once while the window is filled for the first time."""
_LEAST_AT_ONCE = 8
"""What a layer asks for is divided among the readers, but into no fewer groups each: most of what few small reads cost
is Python's."""
_AHEAD_AT_ONCE, _READERS_AHEAD = 8, 2
"""Groups that are read on a guess at once, by so many readers: what is needed then waits for no more."""
_LEAST_RIGHT, _MEMORY = 0.4, 0.98
"""Nothing is read on a guess where a smaller part of guesses is right; how much of what is known of that is kept."""


@dataclass
class _Layer:
    """units: the layer's groups. first: the index of its first entry in the table. pool: where its groups go, by that
    index."""

    units: Units
    first: int
    pool: Pool

    @property
    def entries(self) -> slice:
        return slice(self.first, self.first + self.units.count)


@dataclass(frozen=True, eq=False)
class _Job:
    """Groups to read, in rising order, each with its slot. ahead: on a guess."""

    layer: _Layer
    units: np.ndarray
    slots: np.ndarray
    ahead: bool = False

    @property
    def entries(self) -> np.ndarray:
        """Theirs in the table: int64."""
        made: np.ndarray = self.layer.first + self.units
        return made

    def needed(self, flags: np.ndarray) -> "_Job":
        """Some of them, not on a guess. flags: bool, which."""
        return _Job(self.layer, self.units[flags], self.slots[flags])


class Window(OnDemand[_Job]):
    """A source (source.py) that reads neuron groups when the kernels ask for them.

    layers: the groups of each layer, whose lengths and places in the file are whole pages, with the index of their
    first entry in the table. slots: how many there are for groups of each length, in bytes; at least as many as any
    layer of that length has groups, since new tokens may need all of them at once. stop: called from a reader's thread
    when reading failed; `error` then tells why. `fill` must be called once, before anything is computed.
    """

    def __init__(self, file: FlashFile, layers: Sequence[tuple[Units, int]], table: AddressTable, library: Library, *,
                 slots: Mapping[int, int], stop: Callable[[], None]) -> None:
        self._pools = pools_of(slots, "neurons", filled=True)
        super().__init__(file, table, [pool.region for pool in self._pools.values()], stop)
        self._layers = [_Layer(units, first, self._pools[units.unit_bytes]) for units, first in layers]
        self._scattered = [ScatteredReader(library) for _ in range(READERS)]
        self._used = np.zeros_like(table.entries)
        """When each group was needed last, by `_time`."""
        self._foreseen, self._coming = np.zeros_like(table.entries), np.zeros(len(table.entries), bool)
        """When each was guessed last; whether one has a slot and has not been read to its end."""
        self._time = np.ones(1, np.int64)
        self._asked, self._asked_ahead = (np.full(len(layers), NOBODY, np.int64) for _ in range(2))
        """Each layer asks in a place of its own: what it waits for may be on its way, then it does not wait for us."""
        self._jobs: deque[_Job] = deque()
        self._ahead: deque[_Job] = deque()
        self._reading_ahead, self._guessed = 0, np.empty(0, np.int64)
        """Jobs that are under way on a guess; entries that were guessed for the next layer and not there."""
        self._tried = self._right = 0.0
        self._fence = threading.Lock()
        self._orders: dict[int, LeastRecent] = {}
        self._spare = {size: len(pool.held) - max(units.count for units, _ in layers if units.unit_bytes == size)
                       for size, pool in self._pools.items()}
        """Slots of each size that are there when a layer needs all that it has."""
        self._start(READERS, "window")

    def fill(self, progress: Callable[[], None]) -> None:
        """Read the first groups of every layer, which are needed most often, as many as there is room for. progress:
        called before each piece; what it raises ends it. Raises BundleError."""
        for pool in self._pools.values():
            layers, slot = [layer for layer in self._layers if layer.pool is pool], 0
            for number, layer in enumerate(layers):
                count = min((len(pool.held) - slot) // (len(layers) - number), layer.units.count)
                at_once = max(_PIECE // pool.slot_bytes, 1)
                for first in range(0, count, at_once):
                    progress()
                    last = min(first + at_once, count)
                    self._read_into(layer, first, last, slot + first)
                pool.held[slot:slot + count] = layer.first + np.arange(count)
                self._table.entries[layer.first:layer.first + count] = (
                    pool.region.address + pool.slot_bytes * np.arange(slot, slot + count))
                slot += count
            self._orders[pool.slot_bytes] = LeastRecent(pool, self._used, self._coming)

    def asking(self, layer: int) -> Asking:
        """What the kernels ask for this layer's groups with."""
        at = 8 * self._layers[layer].first
        return Asking(self._used.ctypes.data + at, self._time.ctypes.data, self._asked.ctypes.data + 8 * layer,
                      int(self._semaphores.table[0]), self._foreseen.ctypes.data + at,
                      self._asked_ahead.ctypes.data + 8 * layer)

    def expect(self, heads: int) -> None:
        """The next pass: what it needs is needed later than what others did."""
        self.pause()
        self._time += 1

    def pause(self) -> None:
        """Plan nothing more before the next pass: what computes meanwhile does not say what it needs."""
        with self._lock:
            self._count_guesses(int(self._time[0]))
            self._asked[:] = self._asked_ahead[:] = NOBODY
            self._drop(self._ahead)

    def restart(self) -> None:
        """Read nothing more that was asked for. Nothing may be computing meanwhile.

        Raises what `check` raises, also if the disk does not answer.
        """
        with self._quiet:
            self._asked[:] = self._asked_ahead[:] = NOBODY
            self._drop(self._jobs)
            self._drop(self._ahead)
            quiet = self._wait_until_quiet()
        if not quiet:
            self.fail(no_answer())
        self.check()

    def close(self) -> None:
        super().close()
        for reader in self._scattered:
            reader.close()

    def _take(self) -> tuple[_Job | None, int]:
        asked = np.flatnonzero(self._asked != NOBODY)
        if len(asked):
            self._asked[asked] = NOBODY
            layer = int(asked[-1])
            self._asked_ahead[:layer + 1] = NOBODY
            self._plan(self._layers[layer])
        if self._jobs:
            return self._jobs.popleft(), len(self._jobs)
        ahead = np.flatnonzero(self._asked_ahead != NOBODY)
        if len(ahead):
            self._asked_ahead[ahead] = NOBODY
            self._plan_ahead(self._layers[int(ahead[-1])])
        if self._ahead and self._reading_ahead < _READERS_AHEAD:
            self._reading_ahead += 1
            return self._ahead.popleft(), min(len(self._ahead), _READERS_AHEAD - self._reading_ahead)
        return None, 0

    def _plan(self, layer: _Layer) -> None:
        """Give each of a layer's groups that is needed and not there, nor on its way, a slot: that of the group needed
        longest ago.

        Those of this layer that are needed now stay; nothing else is in use, since layers come one after another.
        """
        now = int(self._time[0])
        self._count_guesses(now)
        for job in self._ahead:
            right = self._used[job.entries] == now
            self._let_go(job.needed(~right))
            if right.any():
                self._jobs.append(job.needed(right))
        self._ahead.clear()
        missing = self._absent(layer, self._used, now)
        slots = self._orders[layer.pool.slot_bytes].take(len(missing), now)
        if len(slots) < len(missing):
            slots = np.concatenate([slots, self._needed_before(layer, now, len(missing) - len(slots), slots)])
        assert len(slots) == len(missing), "a window has too few slots"
        self._empty(layer.pool.held[slots])
        at_once = min(max(-(-len(missing) // READERS), _LEAST_AT_ONCE), MOST)
        self._jobs.extend(self._given(layer, missing, slots, at_once))

    def _absent(self, layer: _Layer, times: np.ndarray, now: int) -> np.ndarray:
        """Which of a layer's groups have this time, and are not there, nor on their way. With the lock, as what has
        come is entered."""
        found = np.flatnonzero((times[layer.entries] == now) & (self._table.entries[layer.entries] == WAIT))
        return found[~self._coming[layer.first + found]]

    def _needed_before(self, layer: _Layer, now: int, count: int, but: np.ndarray) -> np.ndarray:
        """Slots of what other layers have needed in this pass, but for those: a layer may need all that it has."""
        held = layer.pool.held
        free = (held != NOBODY) & ~((held >= layer.first) & (held < layer.first + layer.units.count))
        free &= (self._used[held] == now) & ~self._coming[held]
        free[but] = False
        return np.flatnonzero(free)[:count]

    def _plan_ahead(self, layer: _Layer) -> None:
        """The same of what it is guessed to need, in the places of what no layer of this pass has needed yet.

        The kernels may have come to any layer by now. They write down what they need and then look into the table; here
        it is the other way round, each with a barrier in between. So one of both sees the other.
        """
        now, held, entries = int(self._time[0]), layer.pool.held, self._table.entries
        self._count_guesses(now)
        self._drop(self._ahead)
        missing = self._absent(layer, self._foreseen, now)
        self._guessed = layer.first + missing
        if (self._spare[layer.pool.slot_bytes] < _READERS_AHEAD * _AHEAD_AT_ONCE
                or self._right < _LEAST_RIGHT * self._tried):
            return  # what is under way must not take the place of what a layer may need
        order = self._orders[layer.pool.slot_bytes]
        slots = order.take(len(missing), now, spared=self._foreseen)
        gone = held[slots]
        addresses = entries[gone]
        self._empty(gone)
        with self._fence:
            pass
        kept = (gone != NOBODY) & (self._used[gone] == now)
        entries[gone[kept]] = addresses[kept]
        slots = slots[~kept]  # the others are in use now
        self._ahead.extend(self._given(layer, missing[:len(slots)], slots, _AHEAD_AT_ONCE, ahead=True))

    def _empty(self, gone: np.ndarray) -> None:
        """Take groups out of the table. gone: their entries, or NOBODY."""
        self._table.entries[gone[gone != NOBODY]] = WAIT

    def _given(self, layer: _Layer, missing: np.ndarray, slots: np.ndarray, at_once: int, *,
               ahead: bool = False) -> Iterator[_Job]:
        """Give a layer's groups slots, each its own, and divide them into jobs."""
        layer.pool.held[slots] = layer.first + missing
        self._coming[layer.first + missing] = True
        for start in range(0, len(missing), at_once):
            some = slice(start, start + at_once)
            yield _Job(layer, missing[some], slots[some], ahead)

    def _count_guesses(self, now: int) -> None:
        """See how many of those that were guessed and not there are needed."""
        right = int((self._used[self._guessed] == now).sum())
        self._tried, self._right = _MEMORY * self._tried + len(self._guessed), _MEMORY * self._right + right
        self._guessed = self._guessed[:0]

    def _let_go(self, job: _Job) -> None:
        """Forget what nobody has begun to read."""
        job.layer.pool.held[job.slots] = NOBODY
        self._orders[job.layer.pool.slot_bytes].emptied(job.slots.tolist())
        self._coming[job.entries] = False

    def _drop(self, jobs: deque[_Job]) -> None:
        for job in jobs:
            self._let_go(job)
        jobs.clear()

    def _read(self, reader: int, job: _Job) -> None:
        units, pool = job.layer.units, job.layer.pool
        size, numbers, address, memory = pool.slot_bytes, job.units.tolist(), pool.region.address, pool.region.view()
        offsets, places = ([start + size * number for number in of] for start, of in (
            (units.offset, numbers), (0, job.slots.tolist())))
        started = checking = now()

        def attempt() -> None:
            nonlocal checking
            self._file.read_scattered(self._scattered[reader], offsets, size, memory, address, places)
            checking = now()
            units.check_each(numbers, [memory[place:place + size] for place in places])

        self._file.twice(attempt)
        if self._hook is not None:
            self._hook(Read(reader, units.name, offsets[0], size * len(numbers), started, checking, now()))
        with self._lock:  # also: what was read is seen before its address, on processors that reorder stores
            self.reading.bytes += size * len(numbers)
            self.reading.seconds += checking - started
        entries, addresses = job.entries, address + size * job.slots
        with self._lock:
            self._table.entries[entries] = addresses
            self._coming[entries] = False
            self._reading_ahead -= job.ahead

    def _read_into(self, layer: _Layer, first: int, last: int, slot: int) -> tuple[float, float]:
        """Read and check neighbouring groups into neighbouring slots. When that began, and when checking did."""
        size = layer.pool.slot_bytes
        return self._read_units(layer.units, first, last, layer.pool.region.view(slot * size, (last - first) * size))
