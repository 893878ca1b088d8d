"""A window of neuron groups: those of a sparse model that tokens needed last are in memory, others are read when asked
for.

"LLM in a flash" (Alizadeh et al. 2023) keeps the neurons of the last few tokens, since most of what the next one needs
is among them. Here as many groups stay as there are slots, and a group that is needed and not there takes the place of
the one that was needed longest ago. Which are needed the kernels find out: the products of a matrix that is in memory,
or streamed, decide it exactly (kernels/sparse.py). So what is in the window decides the speed and nothing else.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgert.bundle.reader import Units
from edgert.kernels.records import WAIT

from .file import FlashFile
from .on_demand import NOBODY, READERS, OnDemand, Pool, pools_of
from .readers import now
from .source import Asking, Read, no_answer
from .table import AddressTable

_PIECE = 1 << 20
"""Bytes to read at once while the window is filled for the first time."""
_TURNS, _MOST_AT_ONCE = 2, 16
"""What a layer asks for is divided among the readers, each of which comes so often, with no more groups than that at
once: most of what a small read costs is Python's, between one and the next."""
_NEVER = np.iinfo(np.int64).max


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
    """Groups to read, in rising order, each with its slot."""

    layer: _Layer
    units: list[int]
    slots: list[int]

    def runs(self) -> Iterator[tuple[int, list[int]]]:
        """Neighbours in the file, which one call reads: the first, and the slots of all."""
        first = 0
        for after in range(1, len(self.units) + 1):
            if after == len(self.units) or self.units[after] != self.units[after - 1] + 1:
                yield self.units[first], self.slots[first:after]
                first = after


class Window(OnDemand[_Job]):
    """A source (source.py) that reads neuron groups when the kernels ask for them.

    layers: the groups of each layer, whose lengths and places in the file are whole pages, with the index of their
    first entry in the table. slots: how many there are for groups of each length, in bytes; at least as many as any
    layer of that length has groups, since new tokens may need all of them at once. stop: called from a reader's thread
    when reading failed; `error` then tells why. `fill` must be called once, before anything is computed.
    """

    def __init__(self, file: FlashFile, layers: Sequence[tuple[Units, int]], table: AddressTable, *,
                 slots: Mapping[int, int], stop: Callable[[], None]) -> None:
        self._pools = pools_of(slots, "neurons", filled=True)
        super().__init__(file, table, [pool.region for pool in self._pools.values()], stop)
        self._layers = [_Layer(units, first, self._pools[units.unit_bytes]) for units, first in layers]
        self._used = np.zeros_like(table.entries)
        """When each group was needed last, by `_time`."""
        self._time, self._asked = np.ones(1, np.int64), np.full(1, NOBODY, np.int64)
        self._jobs: deque[_Job] = deque()
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

    def asking(self, layer: int) -> Asking:
        """What the kernels ask for this layer's groups with."""
        return Asking(self._used.ctypes.data + 8 * self._layers[layer].first, self._time.ctypes.data,
                      self._asked.ctypes.data, int(self._semaphores.table[0]))

    def expect(self, heads: int) -> None:
        """The next pass: what it needs is needed later than what others did."""
        self._time += 1

    def restart(self) -> None:
        """Read nothing more that was asked for. Nothing may be computing meanwhile.

        Raises what `check` raises, also if the disk does not answer.
        """
        with self._quiet:
            self._asked[0] = NOBODY
            for job in self._jobs:
                job.layer.pool.held[job.slots] = NOBODY
            self._jobs.clear()
            quiet = self._wait_until_quiet()
        if not quiet:
            self.fail(no_answer())
        self.check()

    def _take(self) -> tuple[_Job | None, int]:
        layer = int(self._asked[0])
        if layer != NOBODY:
            self._asked[0] = NOBODY
            self._plan(self._layers[layer])
        return (self._jobs.popleft() if self._jobs else None), len(self._jobs)

    def _plan(self, layer: _Layer) -> None:
        """Give each of a layer's groups that is needed and not there a slot: that of the group needed longest ago.

        Those of this layer that are needed now stay; nothing else is in use, since layers come one after another.
        """
        entries, held, now = self._table.entries, layer.pool.held, int(self._time[0])
        needed = self._used[layer.entries] == now
        missing = np.flatnonzero(needed & (entries[layer.entries] == WAIT))
        age = np.where(held == NOBODY, NOBODY, self._used[held])
        own = (held >= layer.first) & (held < layer.first + layer.units.count)
        age[own] = np.where(age[own] == now, _NEVER, age[own])
        slots = np.argpartition(age, len(missing) - 1)[:len(missing)] if len(missing) else missing
        gone = held[slots]
        entries[gone[gone != NOBODY]] = WAIT
        held[slots] = layer.first + missing
        at_once = min(max(-(-len(missing) // (_TURNS * READERS)), 1), _MOST_AT_ONCE)
        for start in range(0, len(missing), at_once):
            some = slice(start, start + at_once)
            self._jobs.append(_Job(layer, missing[some].tolist(), slots[some].tolist()))

    def _read(self, reader: int, job: _Job) -> None:
        units, pool, entries = job.layer.units, job.layer.pool, self._table.entries
        size = pool.slot_bytes
        for first, slots in job.runs():
            buffers = [pool.region.view(slot * size, size) for slot in slots]
            started, checking = self._read_in_turn(units, first, buffers)
            if self._hook is not None:
                self._hook(Read(reader, units.name, units.start(first), size * len(slots), started, checking, now()))
            with self._lock:  # also: what was read is seen before its address, on processors that reorder stores
                self.reading.bytes += size * len(slots)
                self.reading.seconds += checking - started
            for unit, slot in enumerate(slots, job.layer.first + first):
                entries[unit] = pool.region.address + size * slot

    def _read_into(self, layer: _Layer, first: int, last: int, slot: int) -> tuple[float, float]:
        """Read and check neighbouring groups into neighbouring slots. When that began, and when checking did."""
        size = layer.pool.slot_bytes
        return self._read_units(layer.units, first, last, layer.pool.region.view(slot * size, (last - first) * size))
