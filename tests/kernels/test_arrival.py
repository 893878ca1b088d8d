"""Weights that come while the kernels wait for them, and are given back when they have been used.

No test measures time: where the clock matters, it is one that the test moves.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import rig
from swiglu import Neurons, absent_table, add_down, hidden, in_planes, neurons, one_token, without
from weights_for import FORMAT_NAMES, matrix, values

from edgert.kernels import native, records
from edgert.kernels.formats import FORMATS
from edgert.kernels.records import ABSENT, WAIT, WHOLE, Code
from edgert.kernels.semaphores import Semaphores
from edgert.kernels.team import PATIENCE_NS, Team


class Arrival:
    """Sets entries of a table one by one, while something waits for them. A context manager."""

    def __init__(self, table: np.ndarray, entries: list[int], addresses: np.ndarray) -> None:
        self._table, self._entries, self._addresses = table, entries, addresses
        self._thread = threading.Thread(target=self._arrive)

    def _arrive(self) -> None:
        for entry in self._entries:
            time.sleep(0.001)
            self._table[entry] = self._addresses[entry]

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


class Slots:
    """Counters of so many units each, and the semaphore that is posted for one that has come to zero."""

    def __init__(self, team: Team, units: list[int]) -> None:
        self.left = np.array(units, np.int64)
        self._freed = Semaphores(1)
        team.set(freed=int(self._freed.table[0]))

    def address(self, slot: int) -> int:
        return int(self.left.ctypes.data) + 8 * slot

    def freed(self) -> int:
        """How often it was posted."""
        return self._freed.drain(0)


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("selected", [None, 1])
def test_slabs_that_come_one_by_one(target: str, name: str, threads: int, selected: int | None) -> None:
    rng, team = np.random.default_rng(0), rig.team(target, threads)
    weights = matrix(rng, FORMATS[name], "ordinary", 600, 70)
    x = rig.activations(team, weights.form, values(rng, "ordinary", (3, 70)))
    there = rig.slab_addresses(weights.packed)
    expected = rig.linear(team, weights.form, weights.packed, x, selected=selected)
    slots = Slots(team, [4, len(there) - 5])  # units in two slots, and one that stays
    counters = np.array([*[slots.address(0)] * 4, *[slots.address(1)] * (len(there) - 5), 0], np.int64)
    table = np.zeros_like(there)
    table[-1] = there[-1]
    with Arrival(table, list(range(len(there) - 1)), there):
        got = rig.linear(team, weights.form, weights.packed, x, selected=selected, table=table, counters=counters)
    assert not team.stopped and np.array_equal(got, expected)
    assert not slots.left.any() and (table[:-1] == WAIT).all() and table[-1] == there[-1]
    assert slots.freed() == 2
    assert team.waited_s > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_joined_matrices_of_which_one_comes(target: str, threads: int) -> None:
    """Those in memory stay, that one's room is given back."""
    rng, team = np.random.default_rng(0), rig.team(target, threads)
    several = [matrix(rng, FORMATS[name], "ordinary", rows, 70)
               for name, rows in (("q4", 150), ("q8", 70), ("f16", 100))]
    products = [rig.Product(w.form, w.packed, rig.activations(team, w.form, values(rng, "ordinary", (2, 70))))
                for w in several]
    expected = rig.joined(team, products)
    there = rig.slab_addresses(several[1].packed)
    table, slots = np.zeros_like(there), Slots(team, [len(there)])
    counters = np.full(len(there), slots.address(0))
    with Arrival(table, [1, 0], there):
        got = rig.joined(team, [products[0], products[1]._replace(table=table, counters=counters), products[2]])
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(one, other)
    assert not slots.left.any() and (table == WAIT).all() and slots.freed() == 1


PAIRS = [("q4", "q6"), ("q8", "q8"), ("f32", "f32")]
GROUPS, LATE, ABSENT_LATE = 70, list(range(1, 70, 3)), [21, 3, 35]
"""Groups; those that come while they are waited for; those that turn out to be absent meanwhile: the first of their
segment, the last, the only one."""
ABSENT_NOW = [0, 5, 6, 36, 69]
STAY = [8, 9]
"""In memory whatever happens: they have no counter."""


class Streamed:
    """A feed-forward part of which some groups are absent, some are late, and some are both."""

    def __init__(self, team: Team, up_name: str, down_name: str, tokens: int, threads: int) -> None:
        rng = np.random.default_rng(3)
        self.n: Neurons = neurons(rng, FORMATS[up_name], FORMATS[down_name], 50, GROUPS)
        absent = [*ABSENT_NOW, *ABSENT_LATE]
        self.x = rig.activations(team, self.n.up.form, values(rng, "ordinary", (tokens, 50)))
        self.y = values(rng, "ordinary", (tokens, len(self.n.down.exact)))
        zeros = without(self.n, absent)
        self.expected = add_down(team, zeros, hidden(team, zeros, self.x, threads=threads), self.y)
        self.there = absent_table(self.n, absent)
        self.table = self.there.copy()
        self.table[[*LATE, *ABSENT_LATE]] = WAIT
        # Slot 0 is of groups that are used, slot 1 of those that are absent: nobody is ever done with these.
        self.used = [g for g in range(GROUPS) if g not in absent and g not in STAY]
        self.slots = Slots(team, [len(self.used), len(absent)])
        self.counters = np.full(GROUPS, self.slots.address(0))
        self.counters[absent], self.counters[STAY] = self.slots.address(1), 0
        self.absent = absent

    def arriving(self) -> Arrival:
        return Arrival(self.table, sorted([*LATE, *ABSENT_LATE]), self.there)

    def check_released(self) -> None:
        assert (self.table[self.used] == WAIT).all()
        assert (self.table[self.absent] == ABSENT).all()
        assert np.array_equal(self.table[STAY], self.there[STAY])
        assert self.slots.left.tolist() == [0, len(self.absent)] and self.slots.freed() == 1


@pytest.mark.parametrize(("up_name", "down_name"), PAIRS)
@pytest.mark.parametrize("threads", [1, 3])
def test_groups_that_come_or_are_absent_for_one_token(target: str, up_name: str, down_name: str, threads: int) -> None:
    team = rig.team(target, threads)
    part = Streamed(team, up_name, down_name, 1, threads)
    with part.arriving():
        got = one_token(team, part.n, part.x, part.y, threads=threads, table=part.table, counters=part.counters)
    assert np.array_equal(got, part.expected)
    part.check_released()


@pytest.mark.parametrize(("up_name", "down_name"), PAIRS)
@pytest.mark.parametrize("threads", [1, 3])
def test_groups_that_come_or_are_absent_for_several_tokens(target: str, up_name: str, down_name: str,
                                                           threads: int) -> None:
    """UP waits for them, DOWN uses them once more, RELEASE gives them back."""
    team = rig.team(target, threads)
    part = Streamed(team, up_name, down_name, 5, threads)
    with part.arriving():
        h = hidden(team, part.n, part.x, threads=threads, table=part.table)
    assert np.array_equal(part.table, part.there), "nothing was given back yet"
    assert np.array_equal(add_down(team, part.n, h, part.y, cuts=[7], table=part.table), part.expected)
    assert rig.run(team, (Code.RELEASE, records.Release(
        rig.address(part.table), rig.address(part.counters), GROUPS)))
    part.check_released()


class InPlanes:
    """A feed-forward part whose first groups are whole, the next there with their base, and the others to come: the
    first of each segment its detail before its base."""

    WHOLE, BASES = 10, 30

    def __init__(self, team: Team, up_name: str, down_name: str, tokens: int, threads: int) -> None:
        rng = np.random.default_rng(4)
        n = neurons(rng, FORMATS[up_name], FORMATS[down_name], 50, GROUPS)
        self.x = rig.activations(team, n.up.form, values(rng, "ordinary", (tokens, 50)))
        self.y = values(rng, "ordinary", (tokens, len(n.down.exact)))
        self.expected = add_down(team, n, hidden(team, n, self.x, threads=threads), self.y)
        there = in_planes(rng, n, two=range(self.WHOLE, GROUPS))
        assert there.details is not None
        self.there = np.concatenate([there.table, there.details])
        self.both = self.there.copy()
        """The table of groups, and behind it that of details."""
        self.bases, self.details = self.both[:GROUPS], self.both[GROUPS:]
        self.bases[self.BASES:] = self.details[self.WHOLE:] = WAIT
        self.n = there._replace(table=self.bases, details=self.details)
        self.slots = Slots(team, [GROUPS - self.BASES, GROUPS - self.WHOLE])
        self.counters, self.detail_counters = np.zeros((2, GROUPS), np.int64)
        self.counters[self.BASES:] = self.slots.address(0)
        self.detail_counters[self.WHOLE:] = self.slots.address(1)

    def arriving(self) -> Arrival:
        order = []
        for group in range(self.WHOLE, GROUPS):
            planes = [group, GROUPS + group] if group >= self.BASES else [GROUPS + group]
            order += reversed(planes) if group % 3 == 0 else planes
        return Arrival(self.both, order, self.there)

    def check_released(self) -> None:
        assert np.array_equal(self.bases[:self.BASES], self.there[:self.BASES])
        assert (self.details[:self.WHOLE] == WHOLE).all()
        assert (self.bases[self.BASES:] == WAIT).all() and (self.details[self.WHOLE:] == WAIT).all()
        assert self.slots.left.tolist() == [0, 0] and self.slots.freed() == 2


PLANE_PAIRS = [("q4", "q6"), ("q8", "q8"), ("f16", "q4"), ("q6", "f32")]


@pytest.mark.parametrize(("up_name", "down_name"), PLANE_PAIRS)
@pytest.mark.parametrize("threads", [1, 3])
def test_planes_that_come_for_one_token(target: str, up_name: str, down_name: str, threads: int) -> None:
    team = rig.team(target, threads)
    part = InPlanes(team, up_name, down_name, 1, threads)
    with part.arriving():
        got = one_token(team, part.n, part.x, part.y, threads=threads, counters=part.counters,
                        detail_counters=part.detail_counters)
    assert np.array_equal(got, part.expected)
    part.check_released()


@pytest.mark.parametrize(("up_name", "down_name"), PLANE_PAIRS)
@pytest.mark.parametrize("threads", [1, 3])
def test_planes_that_come_for_several_tokens(target: str, up_name: str, down_name: str, threads: int) -> None:
    team = rig.team(target, threads)
    part = InPlanes(team, up_name, down_name, 5, threads)
    with part.arriving():
        h = hidden(team, part.n, part.x, threads=threads)
    assert np.array_equal(part.both, part.there), "nothing was given back yet"
    assert np.array_equal(add_down(team, part.n, h, part.y, cuts=[7]), part.expected)
    assert rig.run(team, *((Code.RELEASE, records.Release(rig.address(entries), rig.address(counters), GROUPS))
                           for entries, counters in ((part.bases, part.counters),
                                                     (part.details, part.detail_counters))))
    part.check_released()


@pytest.mark.parametrize("threads", [1, 3])
def test_details_that_do_not_come(target: str, threads: int) -> None:
    """All threads end, whichever way they compute."""
    team = rig.team(target, threads)
    part = InPlanes(team, "q4", "q6", 1, threads)
    part.bases[:] = part.there[:GROUPS]
    team.set(patience=1_000_000)
    one_token(team, part.n, part.x, part.y, threads=threads)
    assert team.stopped == 2
    team.set(stop=0)
    hidden(team, part.n, part.x, threads=threads)
    assert team.stopped == 2
    assert (part.details[part.WHOLE:] == WAIT).all() and np.array_equal(part.bases, part.there[:GROUPS])
    team.set(stop=0, patience=PATIENCE_NS)


@pytest.mark.parametrize("threads", [1, 3])
def test_without_counters_all_stays(target: str, threads: int) -> None:
    team = rig.team(target, threads)
    part = Streamed(team, "q4", "q6", 1, threads)
    got = one_token(team, part.n, part.x, part.y, threads=threads, table=(table := part.there.copy()))
    assert np.array_equal(got, part.expected) and np.array_equal(table, part.there)


# --- by the clock ----------------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands still but for what the kernels sleep, and `look_ns` at each look at it."""

    def __init__(self, team: Team, *, look_ns: int = 0) -> None:
        self.now = 5_000_000_123
        self.looks = self.sleeps = 0
        self.at_look: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

        def gettime(_clock: int, at: int) -> int:
            with self._lock:
                self.now += look_ns
                self.looks += 1
                (ctypes.c_int64 * 2).from_address(at)[:] = divmod(self.now, 1_000_000_000)
            self.at_look()
            return 0

        def sleep(microseconds: int) -> int:
            with self._lock:
                self.now += 1000 * microseconds
                self.sleeps += 1
            return 0

        self._functions = (ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_int64)(gettime),
                           ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64)(sleep))
        clock, sleeping = (ctypes.cast(f, ctypes.c_void_p).value or 0 for f in self._functions)
        team.set(clock=clock, sleep=sleeping)


@pytest.fixture
def alone(target: str) -> Iterator[Team]:
    """A team of one thread that no other test uses."""
    team = Team(native.library(target), 1)
    yield team
    team.close()


def product_without(team: Team, missing: int) -> tuple[Callable[[], np.ndarray], np.ndarray, int, np.ndarray]:
    """A matrix product of which a slab does not come, its table, that slab's address, and what should come out."""
    rng = np.random.default_rng(0)
    weights = matrix(rng, FORMATS["q4"], "ordinary", 600, 70)
    x = rig.activations(team, weights.form, values(rng, "ordinary", (1, 70)))
    expected = rig.linear(team, weights.form, weights.packed, x)
    table = rig.slab_addresses(weights.packed)
    there, table[missing] = int(table[missing]), WAIT
    return lambda: rig.linear(team, weights.form, weights.packed, x, table=table), table, there, expected


@pytest.mark.parametrize("patience", [1, 40_000, 3_000_000, 90_000_000_000])
def test_patience_is_nanoseconds(alone: Team, patience: int) -> None:
    """The run ends as soon as the clock says so, and not before; how long it waited is what the clock says."""
    compute, _, _, _ = product_without(alone, 5)
    clock = Clock(alone, look_ns=1000 if patience < 1_000_000_000 else 1_000_000)
    alone.set(patience=patience)
    started, before = clock.now, alone.waited_s
    compute()
    assert alone.stopped == 2
    waited = round(1e9 * (alone.waited_s - before))
    most = 5_000_000 if patience < 1_000_000_000 else 50_000_000  # a few looks and sleeps more
    assert patience <= clock.now - started and patience <= waited + 1
    assert waited <= clock.now - started <= patience + most
    assert clock.sleeps > 0 or patience < 50_000


@pytest.mark.parametrize("when", [2, 3, 50, 1999])
def test_what_comes_before_patience_ends_is_used(alone: Team, when: int) -> None:
    """At some look at the clock; and on one that stands still there is no end of patience."""
    compute, table, there, expected = product_without(alone, 5)
    clock = Clock(alone)
    alone.set(patience=100_000)

    def at_look() -> None:
        if clock.looks >= when:
            table[5] = there

    clock.at_look = at_look
    assert np.array_equal(compute(), expected)
    assert not alone.stopped and clock.looks >= when and clock.sleeps == 0


def test_slow_looks_do_not_prolong_patience(alone: Team) -> None:
    """A thread that was away for long finds its patience at an end at once, but takes what has come meanwhile."""
    for comes in (False, True):
        compute, table, there, expected = product_without(alone, 5)
        clock = Clock(alone, look_ns=10_000_000_000)
        alone.set(patience=1_000_000, stop=0)
        if comes:
            def at_look(clock: Clock = clock, table: np.ndarray = table, there: int = there) -> None:
                if clock.looks == 2:
                    table[5] = there

            clock.at_look = at_look
        got = compute()
        assert alone.stopped == (0 if comes else 2) and clock.looks <= 6
        assert not comes or np.array_equal(got, expected)


def test_a_stop_ends_any_wait(alone: Team) -> None:
    """However long patience is."""
    compute, _, _, _ = product_without(alone, 5)
    clock = Clock(alone)
    alone.set(patience=1 << 62)
    clock.at_look = lambda: alone.set(stop=1) if clock.looks > 100 else None
    compute()
    assert alone.stopped == 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stop", [False, True])
def test_slabs_that_do_not_come(target: str, threads: int, stop: bool) -> None:
    """All threads end, be it that somebody says so or that they have waited long enough."""
    team = rig.team(target, threads)
    compute, table, there, expected = product_without(team, 5)
    timer = threading.Timer(0.05, lambda: team.set(stop=1))
    if stop:
        timer.start()
    else:
        team.set(patience=1_000_000)
    compute()
    assert team.stopped == (1 if stop else 2)
    timer.cancel()
    team.set(stop=0, patience=PATIENCE_NS)
    table[5] = there
    assert np.array_equal(compute(), expected) and not team.stopped, "the team is as good as new"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("one", [False, True])
def test_groups_that_do_not_come(target: str, threads: int, one: bool) -> None:
    team = rig.team(target, threads)
    part = Streamed(team, "q4", "q6", 1, threads)
    team.set(patience=1_000_000)
    if one:
        one_token(team, part.n, part.x, part.y, threads=threads, table=part.table, counters=part.counters)
    else:
        hidden(team, part.n, part.x, threads=threads, table=part.table)
    assert team.stopped == 2
    assert (part.table[[*LATE, *ABSENT_LATE]] == WAIT).all() and (part.table[ABSENT_NOW] == ABSENT).all()
    team.set(stop=0, patience=PATIENCE_NS)


def test_a_trace_is_nanoseconds(alone: Team) -> None:
    """The time at the start and after each operation, that of matrices done together at the last of them."""
    rng = np.random.default_rng(0)
    weights = matrix(rng, FORMATS["q4"], "ordinary", 40, 70)
    x = rig.activations(alone, weights.form, values(rng, "ordinary", (2, 70)))
    clock = Clock(alone, look_ns=7)
    times = np.zeros(7, np.int64)
    alone.set(trace=times.ctypes.data)
    started = clock.now
    rig.joined(alone, [rig.Product(weights.form, weights.packed, x)] * 3)
    assert times.tolist() == [started + 7, 0, 0, started + 14, 0, 0, 0]
    rig.linear(alone, weights.form, weights.packed, x)
    assert times[:2].tolist() == [started + 21, started + 28]
    alone.set(trace=0)
