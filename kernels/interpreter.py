"""Runs a program: every thread goes through its operations in step, taking work items from each."""

from . import records
from .attention import ATTENTION_KERNELS, ROPE_KERNELS
from .decorators import kernel
from .embedding import EMBEDDING_KERNELS
from .feed_forward import DOWN_KERNELS, release_groups, up
from .linear import JOINED, linear, slabs
from .norm import norm, quantize
from .one_token import gather, neurons
from .records import RECORD_BYTES, RUNS
from .simd.atomic import call_function, fetch_add, load_acquire, pause
from .simd.memory import load_i64, store_i64
from .state import COUNT, PROGRAM, SEMAPHORES, SIGNAL, STOPPED, THREADS, TRACE, WAIT, barrier, now

_embed_q4, _embed_q6, _embed_q8, _embed_f16, _embed_f32 = EMBEDDING_KERNELS.values()
_down_q4, _down_q6, _down_q8, _down_f16, _down_f32 = DOWN_KERNELS.values()
_rope_f16, _rope_f32 = ROPE_KERNELS.values()
_attention_f16, _attention_f32 = ATTENTION_KERNELS.values()

NORM, QUANTIZE, ROPE, ATTENTION = records.NORM, records.QUANTIZE, records.ROPE, records.ATTENTION
NEURONS, GATHER, SLABS, RELEASE = records.NEURONS, records.GATHER, records.SLABS, records.RELEASE
LINEAR = records.LINEAR

SPINS_BEFORE_SLEEP = 20000
"""Half a millisecond or so, what passes between two tokens: waking a sleeping processor costs a part of that, in
a virtual machine most of it."""


@kernel
def _embed(form, op, state):
    if form == 0:
        _embed_q4(op, state)
    elif form == 1:
        _embed_q6(op, state)
    elif form == 2:
        _embed_q8(op, state)
    elif form == 3:
        _embed_f16(op, state)
    else:
        _embed_f32(op, state)


@kernel
def _down(form, op, state):
    if form == 0:
        _down_q4(op, state)
    elif form == 1:
        _down_q6(op, state)
    elif form == 2:
        _down_q8(op, state)
    elif form == 3:
        _down_f16(op, state)
    else:
        _down_f32(op, state)


@kernel
def _run(program, count, state, thread):
    """Do `count` operations at address `program`; `thread` is this thread's number, `state` is records.State."""
    trace = load_i64(state + TRACE) if thread == 0 else 0
    if trace:
        now(state, trace)
    i = 0
    while i < count:
        op = program + i * RECORD_BYTES
        code = load_i64(op)
        if code < 8:
            _embed(code, op, state)
        elif code < 16:
            up(code - 8, op, state, thread)
        elif code < 24:
            _down(code - 16, op, state)
        elif code == LINEAR:
            linear(op, state)
            i += load_i64(op + JOINED)
        elif code == NORM:
            norm(op, state)
        elif code == QUANTIZE:
            quantize(op, state)
        elif code == NEURONS:
            neurons(op, state, thread)
        elif code == GATHER:
            gather(op, state)
        elif code == SLABS:
            slabs(op, state, thread)
        elif code == RELEASE:
            release_groups(op, state)
        elif code == ROPE:
            _rope_f16(op, state)
        elif code == ROPE + 1:
            _rope_f32(op, state)
        elif code == ATTENTION:
            _attention_f16(op, state, thread)
        else:
            _attention_f32(op, state, thread)
        barrier(state)
        i += 1
        if trace:
            now(state, trace + 16 * i)
        if load_i64(state + STOPPED):
            return


@kernel
def enter(program, count, state, thread):
    """What each thread calls. Thread 0: wake the helpers and run a program with them. A helper: do that until the end.

    Waking and running are one call, so that no signal that Python handles can come between.
    """
    if thread == 0:
        store_i64(state + PROGRAM, program)
        store_i64(state + COUNT, count)
        fetch_add(state + RUNS, 1)
        for helper in range(load_i64(state + THREADS) - 1):
            call_function(load_i64(state + SIGNAL), load_i64(load_i64(state + SEMAPHORES) + 8 * helper), 0)
        if count >= 0:
            _run(program, count, state, 0)
        return
    runs = 0
    while True:
        spins = 0
        while load_acquire(state + RUNS) == runs:
            if spins < SPINS_BEFORE_SLEEP:
                pause()
                spins += 1
            else:  # may end early, by a signal or by a wake-up that a spin had no need of
                call_function(load_i64(state + WAIT), load_i64(load_i64(state + SEMAPHORES) + 8 * (thread - 1)), -1)
        runs += 1
        if load_i64(state + COUNT) < 0:
            return
        _run(load_i64(state + PROGRAM), load_i64(state + COUNT), state, thread)
