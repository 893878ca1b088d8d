"""Combining attention's splits: a row's largest score, the sum of its weights, and what they sum up to."""

import numpy as np

from .decorators import kernel
from .functions import exp
from .records import ATTENTION, SPLIT, STATE, TOKEN, TOKEN_BYTES
from .simd.arithmetic import add, div, fma, mul, reduce_max, splat, zero_f32
from .simd.memory import load_f32, load_f32x16, load_i64, store_f32, store_f32x16
from .state import take

_LOWEST, _ZERO = np.float32(-3.0e38), np.float32(0.0)

@kernel
def power(x):
    """e**x of one number, as the vectors have it."""
    return reduce_max(exp(splat(x)))


@kernel
def begin(state, sums, wide):
    """A row that has seen nothing yet."""
    store_f32(state, _LOWEST)
    store_f32(state + 4, _ZERO)
    for i in range(0, 4 * wide, 64):
        store_f32x16(sums + i, zero_f32())


@kernel
def add_split(state, sums, split_state, split_sums, wide):
    """Add a split to what a row has seen."""
    most, highest = load_f32(state), load_f32(split_state)
    above = max(most, highest)
    old, new = power(most - above), power(highest - above)
    store_f32(state, above)
    store_f32(state + 4, load_f32(state + 4) * old + load_f32(split_state + 4) * new)
    for i in range(0, 4 * wide, 64):
        store_f32x16(sums + i, fma(load_f32x16(sums + i), splat(old), mul(load_f32x16(split_sums + i), splat(new))))


@kernel
def finish(state, sums, head_dim, out, sink):
    """The row's result. Plus 0, as a sum of -0 stays so in a part, but not where it was added to nothing. sink: where
    its head's is, or 0."""
    if sink:
        store_f32(state + 4, load_f32(state + 4) + power(load_f32(sink) - load_f32(state)))
    total = splat(load_f32(state + 4))
    for i in range(0, head_dim - 15, 16):
        store_f32x16(out + 4 * i, add(div(load_f32x16(sums + 4 * i), total), zero_f32()))
    for i in range(head_dim // 16 * 16, head_dim):
        store_f32(out + 4 * i, load_f32(sums + 4 * i) / load_f32(state + 4) + _ZERO)


@kernel
def most_splits(state):
    """Splits of the token that sees most."""
    most, records = 0, load_i64(state + STATE.token_records)
    for token in range(load_i64(state + STATE.tokens)):
        most = max(most, load_i64(records + token * TOKEN_BYTES + TOKEN.position) // SPLIT + 1)
    return most


@kernel
def first_split(length, window):
    """The first split that a token sees something of, `length` positions being there with it."""
    return max(length - window, 0) // SPLIT if window else 0


@kernel
def in_parts(op, state, splits):
    """Whether there is room for every split of every token: then each is an item of its own."""
    part = 64 + ((load_i64(op + ATTENTION.head_dim) + 15) // 16 * 64)
    rows = load_i64(state + STATE.tokens) * load_i64(op + ATTENTION.heads)
    return rows * splits * part <= load_i64(op + ATTENTION.partial_bytes)


@kernel
def combine(op, state):
    """The next operation: where every split was an item of its own, they are combined."""
    splits = most_splits(state)
    if splits == 1 or not in_parts(op, state, splits):
        return
    heads, head_dim = load_i64(op + ATTENTION.heads), load_i64(op + ATTENTION.head_dim)
    window, sinks = load_i64(op + ATTENTION.window), load_i64(op + ATTENTION.sinks)
    out, out_stride = load_i64(op + ATTENTION.out), load_i64(op + ATTENTION.out_stride)
    wide = (head_dim + 15) // 16 * 16
    part = 64 + 4 * wide
    rows = load_i64(state + STATE.tokens) * heads
    row = take(state, 1)
    while row < rows:
        token, head = row // heads, row % heads
        record = load_i64(state + STATE.token_records) + token * TOKEN_BYTES
        position = load_i64(record + TOKEN.position)
        first, last = first_split(position + 1, window), position // SPLIT
        at = load_i64(op + ATTENTION.partial) + (row * splits + first) * part
        # The first part holds what has been seen so far. Adding it to nothing would not change it.
        for split in range(1, last - first + 1):
            add_split(at, at + 64, at + split * part, at + split * part + 64, wide)
        finish(at, at + 64, head_dim, out + token * out_stride + head * head_dim * 4, sinks + 4 * head if sinks else 0)
        row = take(state, 1)
