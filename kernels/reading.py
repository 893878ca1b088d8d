"""Reads many small pieces of a file, one after another, in a single call: between two of them nothing of Python's."""

from .decorators import kernel
from .records import READ
from .simd.atomic import call_preadv
from .simd.memory import load_i64, store_i64
from .state import take


@kernel
def read(op, state):
    """Each run with a call of its own; what it returned is written down. One thread does them all."""
    if take(state, 1) > 0:
        return
    runs = load_i64(op + READ.runs)
    for at in range(runs, runs + 32 * load_i64(op + READ.number), 32):
        store_i64(at + 24, call_preadv(load_i64(op + READ.preadv), load_i64(op + READ.file), load_i64(at + 8),
                                       load_i64(at + 16), load_i64(at)))
