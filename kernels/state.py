"""What the threads of a run share (records.State), and the words to wait and to take work with.

Kernels take work items from one counter and never divide an output element: results do not depend on who takes what.
"""

from .compiled import kernel
from .records import GENERATION, NEXT, WAITING, State, offsets
from .simd.atomic import call_function, fetch_add, load_acquire, pause, store_release
from .simd.memory import load_i64

(THREADS, TOKENS, POSITION, SELECTED, SELECTED_ROWS, CACHE, CACHE_LAYER_BYTES, CACHE_HEAD_BYTES, ROPE, YIELD,
 SIGNAL, WAIT, SEMAPHORES, PROGRAM, COUNT, ERROR) = (offset - 8 for offset in offsets(State))

_SPINS_BEFORE_YIELD = 500


@kernel
def take(state, chunk):
    """The first of the next `chunk` work items."""
    return fetch_add(state + NEXT, chunk)


@kernel
def share(state, items, pieces):
    """How many of `items` to take at once, so that each thread comes about `pieces` times."""
    return max(items // (load_i64(state + THREADS) * pieces), 1)


@kernel
def barrier(state):
    """Wait until every thread is here; the work counter starts again."""
    threads = load_i64(state + THREADS)
    generation = load_acquire(state + GENERATION)
    if fetch_add(state + WAITING, 1) == threads - 1:
        store_release(state + WAITING, 0)
        store_release(state + NEXT, 0)
        store_release(state + GENERATION, generation + 1)
        return
    spins = 0
    while load_acquire(state + GENERATION) == generation:
        pause()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD:
            call_function(load_i64(state + YIELD), 0)
