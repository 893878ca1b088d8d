"""A cache of experts: those that tokens need often and lately are in memory, others are read when they are asked for,
or when the layer before makes it likely that they will be.

Which experts a token has is decided by a router that is in memory, and by nothing else: what is in the cache decides
the speed alone. As tokens that follow each other have experts in common, and some experts are chosen far more often
than others, those leave first whose uses, each worth half as much after some passes, add up to least ("least frequently
and recently used", Lee et al. 2001). What the next layer needs is guessed by its router from what this layer was given
(Eliseev and Mazur 2023, "Fast Inference of Mixture-of-Experts Language Models with Offloading"): reading a guess ends
where something is needed, so a wrong one costs little but bandwidth.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgert.bundle.reader import Units
from edgert.kernels.records import WAIT

from .file import FlashFile
from .on_demand import NOBODY, READERS, OnDemand, Pool, pools_of
from .readers import now
from .source import Asking, ExpertCounts, Read, no_answer
from .table import AddressTable

HALF_LIFE = 4.0
"""Passes after which a use counts half (docs/notes/experts.md)."""
AHEAD_AT_ONCE = 2
"""Units that are read on a guess at once: what is needed then waits for no more."""
_LEAST_RIGHT = 0.4
"""Nothing is read on a guess where a smaller part of guesses is right."""
_MEMORY = 0.98
"""How much of what is known of guesses is kept at each layer."""
_NEVER_USED = -1e30


class ExpertLayer(NamedTuple):
    """A layer's experts: `units`, of which each has `per_expert`, and the index of their first entry in the table."""

    units: Units
    first: int
    per_expert: int

    @property
    def expert_bytes(self) -> int:
        return self.per_expert * self.units.unit_bytes


class _Job(NamedTuple):
    """A unit of an expert to read. ahead: on a guess."""

    expert: int
    unit: int
    ahead: bool


class ExpertCache(OnDemand[_Job]):
    """A source (source.py) of experts. Experts of all layers are numbered together here, a layer's after another's.

    experts: in each layer. slots: how many there are for experts of each length, in bytes, at least one. guesses: False
    to read none. stop: called from a reader's thread when reading failed; `error` then tells why.
    """

    def __init__(self, file: FlashFile, layers: Sequence[ExpertLayer], experts: int, table: AddressTable, *,
                 slots: Mapping[int, int], stop: Callable[[], None], guesses: bool = True) -> None:
        self._pools = pools_of(slots, "experts", filled=False)
        super().__init__(file, table, [pool.region for pool in self._pools.values()], stop)
        self._layers, self._experts, self._guesses = layers, experts, guesses
        shape = len(layers) * experts
        self._needed, self._guessed, self._done = (np.zeros(shape, np.int64) for _ in range(3))
        """When each was, by `_time`."""
        self._time, self._asked = np.ones(1, np.int64), np.full(len(layers), NOBODY, np.int64)
        """Each layer asks in a place of its own: where it asks for guesses alone, the next one does not wait for us."""
        self._slot, self._left = np.full(shape, NOBODY, np.int64), np.zeros(shape, np.int64)
        """Where each is, or will be; how many of its units have not been read to their end."""
        self._begun = np.zeros(shape, bool)
        """Whether reading it into its slot has begun."""
        self._worth = np.full(shape, _NEVER_USED)
        """The logarithm to base 2 of its uses, of which a later one is worth more."""
        self._candidates = np.zeros(shape, bool)
        """Those guessed that were not in memory."""
        self._layer = self._counted_to = 0
        """The kernels are at this layer at least; the uses of those before the other have been counted."""
        self._waiting: deque[int] = deque()
        """Experts that are needed and have no slot."""
        self._wanted: deque[int] = deque()
        """The same of guesses."""
        self._urgent: deque[_Job] = deque()
        self._ahead: deque[_Job] = deque()
        self._reading_ahead = 0
        self._tried = self._right = 0.0
        self._fence = threading.Lock()
        self.counted = self.reading.experts = ExpertCounts()
        self._start(READERS, "experts")

    def asking(self, layer: int) -> Asking:
        """What the kernels ask for this layer's experts with."""
        at = 8 * layer * self._experts
        return Asking(self._needed.ctypes.data + at, self._time.ctypes.data, self._asked.ctypes.data + 8 * layer,
                      int(self._semaphores.table[0]), self._guessed.ctypes.data + at, 0, self._done.ctypes.data + at,
                      len(self._pools[self._layers[layer].expert_bytes].held))

    def expect(self, heads: int) -> None:
        """The next pass: nothing is needed yet."""
        with self._lock:
            self._count_uses(len(self._layers))
            self._asked[:] = NOBODY
            self._drop_guesses(len(self._layers))
            self._wanted.clear()
            self._time += 1
            self._layer = self._counted_to = 0

    def restart(self) -> None:
        """Read nothing more that was asked for. Nothing may be computing meanwhile.

        Raises what `check` raises, also if the disk does not answer.
        """
        with self._quiet:
            self._asked[:] = NOBODY
            for jobs in (self._urgent, self._ahead, self._waiting, self._wanted):
                jobs.clear()
            quiet = self._wait_until_quiet()
            if quiet:
                for expert in np.flatnonzero(self._left).tolist():
                    self._let_go(expert)
        if not quiet:
            self.fail(no_answer())
        self.check()

    def _take(self) -> tuple[_Job | None, int]:
        asked = np.flatnonzero(self._asked != NOBODY)
        if len(asked):
            self._asked[asked] = NOBODY
            self._plan(int(asked[-1]))
        elif self._waiting:
            self._give_slots()
        if self._urgent:
            job = self._urgent.popleft()
        elif self._ahead and self._reading_ahead < AHEAD_AT_ONCE:
            job = self._ahead.popleft()
            self._reading_ahead += 1
        else:
            return None, 0
        self._begun[job.expert] = True
        return job, len(self._urgent) + min(len(self._ahead), AHEAD_AT_ONCE - self._reading_ahead)

    def _plan(self, layer: int) -> None:
        """What a layer needs is read next, then what the next one may need."""
        self._count_uses(layer)
        self._layer = layer
        here = np.arange(layer * self._experts, (layer + 1) * self._experts)
        needed = here[self._needed[here] == self._time[0]]
        missing = needed[self._slot[needed] == NOBODY]
        self.counted.missed += len(missing)
        coming = set(needed.tolist())
        self._urgent.extend(job._replace(ahead=False) for job in self._ahead if job.expert in coming)
        self._ahead = deque(job for job in self._ahead if job.expert not in coming)
        self._drop_guesses(layer)
        self._waiting = deque(missing.tolist())
        self._wanted.clear()
        if layer + 1 < len(self._layers):
            there = here + self._experts
            guessed = there[(self._guessed[there] == self._time[0]) & (self._slot[there] == NOBODY)]
            self._candidates[there] = False
            self._candidates[guessed] = True
            if self._guesses and self._right >= _LEAST_RIGHT * self._tried:
                self._wanted.extend(guessed[np.argsort(-self._worth[guessed], kind="stable")].tolist())
        self._give_slots()

    def _count_uses(self, layer: int) -> None:
        """Count what layers before `layer` have needed in this pass, and which guesses were right."""
        if layer <= self._counted_to:
            return
        some = slice(self._counted_to * self._experts, layer * self._experts)
        used = self._needed[some] == self._time[0]
        self.counted.needed += int(used.sum())
        worth = self._worth[some]
        worth[used] = np.logaddexp2(worth[used], self._time[0] / HALF_LIFE)
        candidates = self._candidates[some]
        guessed, right = int(candidates.sum()), int((candidates & used).sum())
        self.counted.guessed += guessed
        self.counted.right += right
        self._tried, self._right = _MEMORY * self._tried + guessed, _MEMORY * self._right + right
        candidates[:] = False
        self._counted_to = layer

    def _drop_guesses(self, layer: int) -> None:
        """Forget guesses for this layer, or one before, whose reading has not begun: they were wrong."""
        kept: deque[_Job] = deque()
        for job in self._ahead:
            if job.expert >= (layer + 1) * self._experts or self._begun[job.expert]:
                kept.append(job)
            elif self._slot[job.expert] != NOBODY:
                self._let_go(job.expert)
        self._ahead = kept

    def _give_slots(self) -> None:
        """Give what is needed a slot, as far as there are some, then what is guessed."""
        for experts, jobs, ahead in ((self._waiting, self._urgent, False), (self._wanted, self._ahead, True)):
            while experts:
                slot = self._free_slot(experts[0], guess=ahead)
                if slot == NOBODY:
                    return
                expert = experts.popleft()
                self._slot[expert], self._left[expert] = slot, self._per_expert(expert)
                self._begun[expert] = False
                self._pool(expert).give(slot, expert)
                jobs.extend(_Job(expert, unit, ahead) for unit in range(self._per_expert(expert)))
                self.counted.read_ahead += ahead

    def _free_slot(self, expert: int, *, guess: bool) -> int:
        """A slot for an expert: an empty one, or that of the one worth least, which loses it; NOBODY where all are in
        use."""
        held = self._pool(expert).held
        if len(empty := np.flatnonzero(held == NOBODY)):
            return int(empty[0])
        for slot in self._by_worth(held, spare_guessed=guess):
            if self._take_out(int(held[slot])):
                return slot
        return NOBODY

    def _by_worth(self, held: np.ndarray, *, spare_guessed: bool) -> Iterator[int]:
        """Slots whose experts may go, those worth least first; guessed ones last, or not at all."""
        free = (self._left[held] == 0) & ~self._in_use(held)
        guessed = (self._guessed[held] == self._time[0]) & (held >= (self._layer + 1) * self._experts)
        for some in (free & ~guessed,) if spare_guessed else (free & ~guessed, free & guessed):
            slots = np.flatnonzero(some)
            yield from slots[np.argsort(self._worth[held[slots]], kind="stable")].tolist()

    def _in_use(self, experts: np.ndarray) -> np.ndarray:
        """Which of some experts the kernels may be using now."""
        time = self._time[0]
        return ((self._needed[experts] == time) & (experts >= self._layer * self._experts)
                & (self._done[experts] != time))

    def _take_out(self, expert: int) -> bool:
        """Take an expert out of the table, unless it has just been needed.

        The kernels write down what they need and then look into the table; here it is the other way round, each with a
        barrier in between. So one of both sees the other.
        """
        entries = self._entries(expert)
        addresses = entries.copy()
        entries[:] = WAIT
        with self._fence:
            pass
        if self._in_use(np.array([expert]))[0]:
            entries[:] = addresses
            return False
        self._pool(expert).held[self._slot[expert]] = NOBODY
        self._slot[expert] = NOBODY
        return True

    def _let_go(self, expert: int) -> None:
        """Forget an expert that has not been read to its end. Nobody may be computing with it."""
        self._entries(expert)[:] = WAIT
        self._pool(expert).held[self._slot[expert]] = NOBODY
        self._slot[expert], self._left[expert] = NOBODY, 0

    def _read(self, reader: int, job: _Job) -> None:
        layer, pool = self._layers[job.expert // self._experts], self._pool(job.expert)
        units, unit = layer.units, job.expert % self._experts * layer.per_expert + job.unit
        place = int(self._slot[job.expert]) * pool.slot_bytes + job.unit * units.unit_bytes
        data = pool.region.view(place, units.unit_bytes)
        started, checking = self._read_units(units, unit, unit + 1, data)
        if self._hook is not None:
            part = f"expert {job.expert % self._experts}{', a guess' if job.ahead else ''}"
            self._hook(Read(reader, units.name, units.start(unit), units.unit_bytes, started, checking, now(), part))
        with self._lock:  # also: what was read is seen before its address, on processors that reorder stores
            self.reading.bytes += units.unit_bytes
            self.counted.bytes += units.unit_bytes
            self.reading.seconds += checking - started
            self._reading_ahead -= job.ahead
        self._table.entries[layer.first + unit] = pool.region.address + place
        with self._lock:
            self._left[job.expert] -= 1

    def _per_expert(self, expert: int) -> int:
        return self._layers[expert // self._experts].per_expert

    def _pool(self, expert: int) -> Pool:
        return self._pools[self._layers[expert // self._experts].expert_bytes]

    def _entries(self, expert: int) -> np.ndarray:
        """The table's entries of an expert's units."""
        layer = self._layers[expert // self._experts]
        at = layer.first + expert % self._experts * layer.per_expert
        return self._table.entries[at:at + layer.per_expert]
