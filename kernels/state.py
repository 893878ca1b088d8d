"""What the threads of a run share (records.State), and the words to wait and to take work with.

Kernels take work items from one counter and never divide an output element: results do not depend on who takes what.
"""

from .decorators import kernel
from .records import GENERATION, NEXT, WAITED, WAITING, State, offsets
from .simd.atomic import call_function, fetch_add, load_acquire, pause, store_release
from .simd.memory import load_i64, store_i64

(THREADS, TOKENS, POSITION, SELECTED, SELECTED_ROWS, CACHE, CACHE_LAYER_BYTES, CACHE_HEAD_BYTES, ROPE, YIELD,
 SIGNAL, WAIT, SEMAPHORES, PROGRAM, COUNT, ERROR, STOP, STOPPED, SLEEP, CLOCK, CLOCK_ID, FREED,
 PATIENCE, TRACE, CANCELLED) = (offset - 8 for offset in offsets(State))

_SPINS_BEFORE_YIELD = 500
_SPINS_BEFORE_SLEEP = 100
_YIELDS_BEFORE_SLEEP = 500
"""A fifth of a millisecond or more: whoever is late by that waits for flash, or for a processor."""
_SLEEP_US = 50


@kernel
def take(state, chunk):
    """The first of the next `chunk` work items."""
    return fetch_add(state + NEXT, chunk)


@kernel
def share(state, items, pieces):
    """How many of `items` to take at once, so that each thread comes about `pieces` times."""
    return max(items // (load_i64(state + THREADS) * pieces), 1)


@kernel
def _stop(state):
    """Whether the run is to end, and why: `stop` or CANCELLED."""
    return load_acquire(state + STOP) | load_acquire(load_i64(state + CANCELLED))


@kernel
def barrier(state):
    """Wait until every thread is here; the work counter starts again."""
    threads = load_i64(state + THREADS)
    generation = load_acquire(state + GENERATION)
    if fetch_add(state + WAITING, 1) == threads - 1:
        store_i64(state + STOPPED, _stop(state))
        store_release(state + WAITING, 0)
        store_release(state + NEXT, 0)
        store_release(state + GENERATION, generation + 1)
        return
    spins = 0
    while load_acquire(state + GENERATION) == generation:
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD + _YIELDS_BEFORE_SLEEP:
            call_function(load_i64(state + SLEEP), _SLEEP_US, 0)
        elif spins > _SPINS_BEFORE_YIELD:
            call_function(load_i64(state + YIELD), 0, 0)


@kernel
def now(state, at):
    """The time as clock_gettime writes it: int64 seconds, int64 nanoseconds."""
    call_function(load_i64(state + CLOCK), load_i64(state + CLOCK_ID), at)


@kernel
def _wait_for(state, thread, entry):
    if thread == 0:
        now(state, state + WAITED + 8)
    rounds = 0
    address = load_acquire(entry)
    while address == 0 and _stop(state) == 0:
        if rounds < _SPINS_BEFORE_SLEEP:
            pause()
        elif rounds < _SPINS_BEFORE_SLEEP + load_i64(state + PATIENCE):
            call_function(load_i64(state + SLEEP), _SLEEP_US, 0)
        else:
            store_release(state + STOP, 2)
        rounds += 1
        address = load_acquire(entry)
    if thread == 0:
        now(state, state + WAITED + 24)
        seconds = load_i64(state + WAITED + 24) - load_i64(state + WAITED + 8)
        nanoseconds = load_i64(state + WAITED + 32) - load_i64(state + WAITED + 16)
        store_i64(state + WAITED, load_i64(state + WAITED) + 1000000000 * seconds + nanoseconds)
    return address


@kernel
def arrived(state, thread, table, index):
    """The address of weights in a table, waiting until they have been read; 0 when the run is to end instead."""
    address = load_acquire(table + 8 * index)
    return address if address else _wait_for(state, thread, table + 8 * index)


@kernel
def release(state, table, counters, index):
    """Done with weights: where their room is wanted back, they have to be read again before the next use."""
    counter = load_i64(counters + 8 * index) if counters else 0
    if counter:
        store_i64(table + 8 * index, 0)
        if fetch_add(counter, -1) == 1:
            call_function(load_i64(state + SIGNAL), load_i64(state + FREED), 0)
