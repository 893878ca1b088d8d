"""Runs a program: every thread goes through its operations in step, taking work items from each."""

from . import experts, sparse
from .attention import attention
from .combine import combine
from .decorators import kernel
from .embedding import embedding, positions
from .feed_forward import down, release_groups, up
from .glu import glu
from .linear import linear
from .masses import masses
from .norm import layer_norm, norm, quantize
from .one_token import gather, neurons
from .planes import join_groups
from .reading import read
from .records import LINEAR, RECORD_BYTES, RUNS, STATE, Code
from .residual import add_part, head_norms, scale_logits
from .rope import rope
from .simd.atomic import call_function, fetch_add, load_acquire, pause
from .simd.memory import load_i64, store_i64
from .state import barrier, now

_SPIN_NS = 500_000
"""Before a helper sleeps: what passes between two tokens. Waking a sleeping processor costs a part of that, in a
virtual machine most of it."""
_PAUSES = 32
"""Between two looks at the clock."""

(_EMBEDDING, _LINEAR, _NORM, _QUANTIZE, _ROPE, _ATTENTION, _COMBINE, _UP, _DOWN, _NEURONS, _GATHER, _RELEASE,
 _JOIN, _LAYER_NORM, _LEARNED_POSITIONS, _CHOOSE, _ASK,
 _SPARSE_ONE, _SPARSE_GATHER, _SPARSE_UP, _SPARSE_DOWN, _MASSES,
 _HEAD_NORMS, _ADD, _SCALE, _ROUTE, _DISPATCH, _EXPERTS, _EXPERT_SUMS, _GLU, _READ) = (int(code) for code in Code)


@kernel
def _run(program, count, state, thread):
    """Do `count` operations at address `program`; `thread` is this thread's number, `state` is records.State."""
    trace = load_i64(state + STATE.trace) if thread == 0 else 0
    if trace:
        store_i64(trace, now(state))
    i = 0
    while i < count:
        op = program + i * RECORD_BYTES
        code = load_i64(op)
        if code == _EMBEDDING:
            embedding(op, state)
        elif code == _LINEAR:
            linear(op, state, thread)
            i += load_i64(op + LINEAR.joined)
        elif code == _NORM:
            norm(op, state)
        elif code == _QUANTIZE:
            quantize(op, state)
        elif code == _ROPE:
            rope(op, state)
        elif code == _ATTENTION:
            attention(op, state, thread)
        elif code == _COMBINE:
            combine(op, state)
        elif code == _UP:
            up(op, state, thread)
        elif code == _DOWN:
            down(op, state, thread)
        elif code == _NEURONS:
            neurons(op, state, thread)
        elif code == _GATHER:
            gather(op, state)
        elif code == _RELEASE:
            release_groups(op, state)
        elif code == _LAYER_NORM:
            layer_norm(op, state)
        elif code == _LEARNED_POSITIONS:
            positions(op, state, thread)
        elif code == _CHOOSE:
            sparse.choose(op, state)
        elif code == _ASK:
            sparse.ask(op, state)
        elif code == _SPARSE_ONE:
            sparse.one(op, state, thread)
        elif code == _SPARSE_GATHER:
            sparse.gather(op, state)
        elif code == _SPARSE_UP:
            sparse.up(op, state, thread)
        elif code == _SPARSE_DOWN:
            sparse.down(op, state, thread)
        elif code == _MASSES:
            masses(op, state, thread)
        elif code == _HEAD_NORMS:
            head_norms(op, state)
        elif code == _ADD:
            add_part(op, state)
        elif code == _SCALE:
            scale_logits(op, state)
        elif code == _ROUTE:
            experts.route(op, state)
        elif code == _DISPATCH:
            experts.dispatch(op, state)
        elif code == _EXPERTS:
            experts.experts(op, state, thread)
        elif code == _EXPERT_SUMS:
            experts.expert_sums(op, state)
        elif code == _GLU:
            glu(op, state)
        elif code == _READ:
            read(op, state)
        else:
            join_groups(op, state)
        barrier(state)
        i += 1
        if trace:
            store_i64(trace + 8 * i, now(state))
        if load_i64(state + STATE.stopped):
            return


@kernel
def enter(program, count, state, thread):
    """What each thread calls. Thread 0: wake the helpers and run a program with them. A helper: do that until the end.

    Waking and running are one call, so that no signal that Python handles can come between.
    """
    if thread == 0:
        store_i64(state + STATE.program, program)
        store_i64(state + STATE.operations, count)
        fetch_add(state + RUNS, 1)
        for helper in range(load_i64(state + STATE.threads) - 1):
            call_function(load_i64(state + STATE.signal), load_i64(load_i64(state + STATE.semaphores) + 8 * helper), 0)
        if count >= 0:
            _run(program, count, state, 0)
        return
    runs = 0
    while True:
        started, spins = now(state), 0
        while load_acquire(state + RUNS) == runs:
            spins += 1
            if spins % _PAUSES or now(state) - started < _SPIN_NS:
                pause()
            else:  # may end early, by a signal or by a wake-up that a spin had no need of
                call_function(load_i64(state + STATE.wait),
                              load_i64(load_i64(state + STATE.semaphores) + 8 * (thread - 1)), -1)
                spins = -1
        runs += 1
        if load_i64(state + STATE.operations) < 0:
            return
        _run(load_i64(state + STATE.program), load_i64(state + STATE.operations), state, thread)
