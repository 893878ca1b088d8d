"""What the threads of a run share (records.State), and the words to wait and to take work with.

Kernels take work items from one counter and never divide an output element: results do not depend on who takes what.
Waiting is limited by the clock: a pause takes ten times longer on one processor than on another.
"""

from .decorators import kernel
from .records import ABSENT, GENERATION, NEXT, STATE, WAIT, WAITED, WAITING
from .simd.atomic import call_function, clock_ns, fetch_add, load_acquire, pause, store_release
from .simd.memory import load_i64, store_i64

_PAUSES = 32
"""Between two looks at the clock."""
_SPIN_NS, _YIELD_NS = 20_000, 300_000
"""A fifth of a millisecond or more late: that thread waits for flash, or for a processor."""
_ARRIVAL_SPIN_NS = 5_000
_SLEEP_US = 50


@kernel
def take(state, chunk):
    """The first of the next `chunk` work items."""
    return fetch_add(state + NEXT, chunk)


@kernel
def share(state, items, pieces):
    """How many of `items` to take at once, so that each thread comes about `pieces` times."""
    return max(items // (load_i64(state + STATE.threads) * pieces), 1)


@kernel
def _stop(state):
    """Whether the run is to end, and why: `stop` or CANCELLED."""
    return load_acquire(state + STATE.stop) | load_acquire(load_i64(state + STATE.cancelled))


@kernel
def now(state):
    """The time in nanoseconds."""
    return clock_ns(load_i64(state + STATE.clock), load_i64(state + STATE.clock_id))


@kernel
def barrier(state):
    """Wait until every thread is here; the work counter starts again."""
    threads = load_i64(state + STATE.threads)
    generation = load_acquire(state + GENERATION)
    if fetch_add(state + WAITING, 1) == threads - 1:
        store_i64(state + STATE.stopped, _stop(state))
        store_release(state + WAITING, 0)
        store_release(state + NEXT, 0)
        store_release(state + GENERATION, generation + 1)
        return
    started, waited, spins = 0, 0, 0
    while load_acquire(state + GENERATION) == generation:
        if waited > _YIELD_NS:
            call_function(load_i64(state + STATE.sleep), _SLEEP_US, 0)
            continue
        if waited > _SPIN_NS:
            call_function(load_i64(state + STATE.yield_processor), 0, 0)
        else:
            pause()
        spins += 1
        if spins % _PAUSES == 0:
            time = now(state)
            started = started if started else time
            waited = time - started


@kernel
def _wait_for(state, thread, entry):
    started = now(state)
    waited, spins = 0, 0
    address = load_acquire(entry)
    while address == WAIT and _stop(state) == 0:
        if waited < _ARRIVAL_SPIN_NS:
            pause()
        elif waited < load_i64(state + STATE.patience):
            call_function(load_i64(state + STATE.sleep), _SLEEP_US, 0)
        else:
            store_release(state + STATE.stop, 2)
        spins += 1
        if waited >= _ARRIVAL_SPIN_NS or spins % _PAUSES == 0:
            waited = now(state) - started
        address = load_acquire(entry)
    add_waited(state, thread, started)
    return address


@kernel
def keep_looking(state, since):
    """Let a moment pass for weights that have been looked for since then, in nanoseconds; False when the run ends."""
    waited = now(state) - since
    if waited < _ARRIVAL_SPIN_NS:
        pause()
    elif waited < load_i64(state + STATE.patience):
        call_function(load_i64(state + STATE.sleep), _SLEEP_US, 0)
    else:
        store_release(state + STATE.stop, 2)
    return _stop(state) == 0


@kernel
def add_waited(state, thread, since):
    """Count the time since then as waited for weights."""
    if thread == 0:
        store_i64(state + WAITED, load_i64(state + WAITED) + now(state) - since)


@kernel
def arrived(state, thread, table, index):
    """The address of weights in a table, or ABSENT, waiting until they have been read; WAIT when the run is to end."""
    address = load_acquire(table + 8 * index)
    return address if address != WAIT else _wait_for(state, thread, table + 8 * index)


@kernel
def release(state, table, counters, index):
    """Done with weights: where their room is wanted back, they have to be read again before the next use."""
    counter = load_i64(counters + 8 * index) if counters else 0
    if counter and load_i64(table + 8 * index) != ABSENT:
        store_i64(table + 8 * index, WAIT)
        if fetch_add(counter, -1) == 1:
            call_function(load_i64(state + STATE.signal), load_i64(state + STATE.freed), 0)
