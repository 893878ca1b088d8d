"""The feed-forward part of sparse models: of the neurons that are not zero, and of no other.

The first matrix has been computed: its products say which neurons are zero, since what the activation (ReLU, or its
square) makes of a number that is not above zero is zero. Such a neuron adds nothing to the result: leaving it out
changes none of its bits. Or a predictor has (converters/predictor.py): its products say which neurons are to be
computed; these then have a row of the first matrix each, and are zero where that says so, and those that it passed over
are left out. Neurons are computed one by one (neuron_rows.py), in float32, and summed in SEGMENTS parts,
always the same, whose sums are then added in order. So a token's result does not depend on how many come with it.
"""

from typing import Any

import numpy as np

from .decorators import kernel
from .dispatch import by_number
from .formats import FORMATS
from .neuron_rows import ROW_FORMATS
from .one_token import add_segments
from .records import ABSENT, CHOOSE, HIDDEN_ACTS, SEGMENTS, SPARSE, SPARSE_RANGE, STATE, TOKENS_AT_ONCE, WAIT
from .simd.arithmetic import add, fma, reduce_add, splat, zero_f32
from .simd.atomic import call_function, load_acquire
from .simd.memory import (
    load_bf16,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_high_nibbles,
    load_i64,
    load_low_nibbles,
    load_u8,
    load_u8x16,
    store_f32,
    store_f32x16,
    store_i64,
)
from .state import arrived, share, take

_ZERO, _128 = np.float32(0), np.float32(-128)
_SQUARED = HIDDEN_ACTS.index("relu2")


def _q4() -> tuple[Any, Any]:
    @kernel
    def dot(w, x, blocks):
        scale, minimum = load_f32(w), -load_f32(w + 4)
        low, high, codes = zero_f32(), zero_f32(), w + 8 + 2 * blocks
        for i in range(blocks):
            d = splat(np.float32(load_u8(w + 8 + i)) * scale)
            m = splat(np.float32(load_u8(w + 8 + blocks + i)) * minimum)
            low = fma(fma(load_low_nibbles(codes + 16 * i), d, m), load_f32x16(x + 128 * i), low)
            high = fma(fma(load_high_nibbles(codes + 16 * i), d, m), load_f32x16(x + 128 * i + 64), high)
        return reduce_add(add(low, high))

    @kernel
    def add_times(w, h, y, blocks, first, last):
        scale, minimum, factor = load_f32(w), -load_f32(w + 4), splat(h)
        codes = w + 8 + 2 * blocks
        for i in range(first, last):
            d = splat(np.float32(load_u8(w + 8 + i)) * scale)
            m = splat(np.float32(load_u8(w + 8 + blocks + i)) * minimum)
            at = y + 128 * (i - first)
            store_f32x16(at, fma(fma(load_low_nibbles(codes + 16 * i), d, m), factor, load_f32x16(at)))
            store_f32x16(at + 64, fma(fma(load_high_nibbles(codes + 16 * i), d, m), factor, load_f32x16(at + 64)))

    return dot, add_times


def _q8() -> tuple[Any, Any]:
    @kernel
    def dot(w, x, blocks):
        low, high, codes = zero_f32(), zero_f32(), w + 2 * blocks
        for i in range(blocks):
            scale = load_bf16(w + 2 * i)
            d, m = splat(scale), splat(scale * _128)
            low = fma(fma(load_u8x16(codes + 32 * i), d, m), load_f32x16(x + 128 * i), low)
            high = fma(fma(load_u8x16(codes + 32 * i + 16), d, m), load_f32x16(x + 128 * i + 64), high)
        return reduce_add(add(low, high))

    @kernel
    def add_times(w, h, y, blocks, first, last):
        factor, codes = splat(h), w + 2 * blocks
        for i in range(first, last):
            scale = load_bf16(w + 2 * i)
            d, m, at = splat(scale), splat(scale * _128), y + 128 * (i - first)
            store_f32x16(at, fma(fma(load_u8x16(codes + 32 * i), d, m), factor, load_f32x16(at)))
            store_f32x16(at + 64, fma(fma(load_u8x16(codes + 32 * i + 16), d, m), factor, load_f32x16(at + 64)))

    return dot, add_times


def _floats(load: Any, size: int) -> tuple[Any, Any]:
    @kernel
    def dot(w, x, blocks):
        low, high = zero_f32(), zero_f32()
        for i in range(blocks):
            low = fma(load(w + 32 * size * i), load_f32x16(x + 128 * i), low)
            high = fma(load(w + 32 * size * i + 16 * size), load_f32x16(x + 128 * i + 64), high)
        return reduce_add(add(low, high))

    @kernel
    def add_times(w, h, y, blocks, first, last):
        factor = splat(h)
        for i in range(first, last):
            at = y + 128 * (i - first)
            store_f32x16(at, fma(load(w + 32 * size * i), factor, load_f32x16(at)))
            store_f32x16(at + 64, fma(load(w + 32 * size * i + 16 * size), factor, load_f32x16(at + 64)))

    return dot, add_times


_KERNELS = {"q4": _q4(), "q8": _q8(), "f16": _floats(load_f16x16, 2), "f32": _floats(load_f32x16, 4)}
assert set(_KERNELS) == set(ROW_FORMATS.values())
_dot, _add_times = (by_number({FORMATS[name].code: of[i] for name, of in _KERNELS.items()}) for i in range(2))


@kernel
def _hidden(op, product, w, neuron, x):
    """A neuron's activation: act(gate) * up, or act(up). product: what there is of it in `products`."""
    if product <= _ZERO:
        return _ZERO
    form, blocks = load_i64(op + SPARSE.up), load_i64(op + SPARSE.blocks)
    size = load_i64(op + SPARSE.deciding_bytes)
    if size:
        product, bias = _dot(form, w, x, blocks), load_i64(op + SPARSE.deciding_bias)
        if bias:
            product += load_f32(bias + 4 * neuron)
        if product <= _ZERO:
            return _ZERO
    value = product * product if load_i64(op + SPARSE.activation) == _SQUARED else product
    if load_i64(op + SPARSE.up_bytes):
        value *= _dot(form, w + size, x, blocks)
    return value


@kernel
def _before_down(op):
    """Bytes of a neuron before its column."""
    return load_i64(op + SPARSE.deciding_bytes) + load_i64(op + SPARSE.up_bytes)


@kernel
def _is_needed(products, stride, tokens, neurons):
    """Whether any of some neurons' products is above zero, or no number, for any token."""
    for row in range(products, products + tokens * stride, stride):
        for at in range(row, row + 4 * neurons, 4):
            if not load_f32(at) <= _ZERO:
                return True
    return False


@kernel
def choose(op, state):
    """Write down for each unit whether it is needed: WAIT, or ABSENT."""
    products, stride, units = (load_i64(op + CHOOSE.products), load_i64(op + CHOOSE.products_stride),
                               load_i64(op + CHOOSE.units))
    chosen, table, resident = load_i64(op + CHOOSE.chosen), load_i64(op + CHOOSE.table), load_i64(op + CHOOSE.resident)
    used, in_unit, neurons = load_i64(op + CHOOSE.used), load_i64(op + CHOOSE.in_unit), load_i64(op + CHOOSE.neurons)
    tokens, time = load_i64(state + STATE.tokens), load_i64(load_i64(op + CHOOSE.time)) if used else 0
    chunk = share(state, units, 2)
    first = take(state, chunk)
    while first < units:
        for unit in range(first, min(first + chunk, units)):
            needed = WAIT if _is_needed(products + 4 * in_unit * unit, stride, tokens,
                                        min(in_unit, neurons - in_unit * unit)) else ABSENT
            if resident and load_acquire(table + 8 * unit) == WAIT:
                needed = ABSENT
            store_i64(chosen + 8 * unit, needed)
            if used and needed != ABSENT:
                store_i64(used + 8 * unit, time)
        first = take(state, chunk)


@kernel
def ask(op, state):
    """Have those that are needed and not in memory read, if there are any."""
    if take(state, 1) > 0:
        return
    units, chosen, table = load_i64(op + CHOOSE.units), load_i64(op + CHOOSE.chosen), load_i64(op + CHOOSE.table)
    for unit in range(units):
        if load_i64(chosen + 8 * unit) != ABSENT and load_acquire(table + 8 * unit) == WAIT:
            store_i64(load_i64(op + CHOOSE.asked), load_i64(op + CHOOSE.layer))
            call_function(load_i64(state + STATE.signal), load_i64(op + CHOOSE.semaphore), 0)
            return


@kernel
def one(op, state, thread):
    """For one token: each segment's neurons, one after another, into the segment's own sums."""
    table, units, chosen = load_i64(op + SPARSE.table), load_i64(op + SPARSE.units), load_i64(op + SPARSE.chosen)
    in_unit, neurons, x = load_i64(op + SPARSE.in_unit), load_i64(op + SPARSE.neurons), load_i64(op + SPARSE.x)
    neuron_bytes, at_down = load_i64(op + SPARSE.neuron_bytes), _before_down(op)
    down, blocks, products = load_i64(op + SPARSE.down), load_i64(op + SPARSE.blocks), load_i64(op + SPARSE.products)
    sums = load_i64(op + SPARSE.scratch) + thread * load_i64(op + SPARSE.scratch_stride)
    segment = take(state, 1)
    while segment < SEGMENTS:
        for at in range(sums, sums + 128 * blocks, 64):
            store_f32x16(at, zero_f32())
        for unit in range(segment * units // SEGMENTS, (segment + 1) * units // SEGMENTS):
            if load_i64(chosen + 8 * unit) == ABSENT:
                continue
            w = arrived(state, thread, table, unit)
            if w == WAIT:
                return
            for neuron in range(in_unit * unit, min(in_unit * (unit + 1), neurons)):
                h = _hidden(op, load_f32(products + 4 * neuron), w, neuron, x)
                if h != _ZERO:
                    _add_times(down, w + at_down, h, sums, blocks, 0, blocks)
                w += neuron_bytes
        out = load_i64(op + SPARSE.partial) + segment * 64
        for i in range(load_i64(op + SPARSE.tiles)):
            store_f32x16(out + i * 64 * SEGMENTS, load_f32x16(sums + 64 * i))
        segment = take(state, 1)


@kernel
def up(op, state, thread):
    """For many tokens: the neurons' activations, in the place of the products."""
    table, units, chosen = load_i64(op + SPARSE.table), load_i64(op + SPARSE.units), load_i64(op + SPARSE.chosen)
    in_unit, neurons, x = load_i64(op + SPARSE.in_unit), load_i64(op + SPARSE.neurons), load_i64(op + SPARSE.x)
    products, stride = load_i64(op + SPARSE.products), load_i64(op + SPARSE.products_stride)
    neuron_bytes, x_stride = load_i64(op + SPARSE.neuron_bytes), load_i64(op + SPARSE.x_stride)
    tokens = load_i64(state + STATE.tokens)
    unit = take(state, 1)
    while unit < units:
        if load_i64(chosen + 8 * unit) != ABSENT:
            w = arrived(state, thread, table, unit)
            if w == WAIT:
                return
            store_i64(chosen + 8 * unit, w)
            for neuron in range(in_unit * unit, min(in_unit * (unit + 1), neurons)):
                for token in range(tokens):
                    at = products + token * stride + 4 * neuron
                    store_f32(at, _hidden(op, load_f32(at), w, neuron, x + token * x_stride))
                w += neuron_bytes
        unit = take(state, 1)


@kernel
def down(op, state, thread):
    """For many tokens: y += down h (+ bias). Work items are some columns of y for some tokens."""
    units, chosen, in_unit = load_i64(op + SPARSE.units), load_i64(op + SPARSE.chosen), load_i64(op + SPARSE.in_unit)
    blocks, tokens = load_i64(op + SPARSE.blocks), load_i64(state + STATE.tokens)
    scratch = load_i64(op + SPARSE.scratch) + thread * load_i64(op + SPARSE.scratch_stride)
    ranges, parts = (blocks + SPARSE_RANGE - 1) // SPARSE_RANGE, (tokens + TOKENS_AT_ONCE - 1) // TOKENS_AT_ONCE
    item = take(state, 1)
    while item < ranges * parts:
        first, token = item % ranges * SPARSE_RANGE, item // ranges * TOKENS_AT_ONCE
        last, end = min(first + SPARSE_RANGE, blocks), min(token + TOKENS_AT_ONCE, tokens)
        size = 128 * (last - first)
        total = scratch + (end - token) * size
        for at in range(total, total + (end - token) * size, 64):
            store_f32x16(at, zero_f32())
        for segment in range(SEGMENTS):
            for at in range(scratch, total, 64):
                store_f32x16(at, zero_f32())
            for unit in range(segment * units // SEGMENTS, (segment + 1) * units // SEGMENTS):
                w = load_i64(chosen + 8 * unit)
                if w != ABSENT:
                    _add_unit(op, w, in_unit * unit, token, end, scratch, first, last)
            for at in range(scratch, total, 64):
                to = at + (total - scratch)
                store_f32x16(to, add(load_f32x16(to), load_f32x16(at)))
        _finish(op, total, size, token, end, first)
        item = take(state, 1)


@kernel
def _add_unit(op, w, first_neuron, token, end, sums, first, last):
    """What a unit's neurons add to some blocks of some tokens' sums."""
    form, blocks = load_i64(op + SPARSE.down), load_i64(op + SPARSE.blocks)
    products, stride = load_i64(op + SPARSE.products), load_i64(op + SPARSE.products_stride)
    neuron_bytes, at = load_i64(op + SPARSE.neuron_bytes), w + _before_down(op)
    for neuron in range(first_neuron, min(first_neuron + load_i64(op + SPARSE.in_unit), load_i64(op + SPARSE.neurons))):
        for i in range(end - token):
            h = load_f32(products + (token + i) * stride + 4 * neuron)
            if h != _ZERO:
                _add_times(form, at, h, sums + i * 128 * (last - first), blocks, first, last)
        at += neuron_bytes


@kernel
def _finish(op, total, size, token, end, first):
    """y += some tokens' sums of some blocks (+ bias); y has whole tiles of 16."""
    y, bias, tiles = load_i64(op + SPARSE.y), load_i64(op + SPARSE.down_bias), load_i64(op + SPARSE.tiles)
    for i in range(end - token):
        for at in range(0, min(size, 64 * tiles - 128 * first), 64):
            value = load_f32x16(total + i * size + at)
            if bias:
                value = add(value, load_f32x16(bias + 128 * first + at))
            to = y + (token + i) * load_i64(op + SPARSE.y_stride) + 128 * first + at
            store_f32x16(to, value if load_i64(op + SPARSE.fresh) else add(load_f32x16(to), value))


@kernel
def gather(op, state):
    """For one token: y += the segments' sums, added in order (+ bias)."""
    add_segments(state, load_i64(op + SPARSE.tiles), load_i64(op + SPARSE.partial), load_i64(op + SPARSE.y),
                 load_i64(op + SPARSE.down_bias), load_i64(op + SPARSE.fresh))
