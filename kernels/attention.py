"""Grouped-query attention over the key-value cache (cache.py): softmax(q k / sqrt(d)) v for every new token and head.

A work item is one key-value head with all its query heads times some neighbouring tokens of one session: their *rows*
go through the keys and values together, which are read and widened once for all of them. Positions are cut into splits
of SPLIT, always the same ones. In a split each row has its own maximum and sums ("FlashAttention", Dao et al. 2022);
splits are combined in order, either by the thread that goes through all of them, or, where there are few tokens, by
COMBINE after every split was an item of its own ("Flash-Decoding", Dao et al. 2023). Both do the same operations in the
same order: the result depends neither on the threads nor on which tokens come together.
"""

from typing import Any

import numpy as np
from numba import types

from .cache import LOAD, key_tile, value_row
from .decorators import inlined, kernel
from .functions import exp
from .records import (
    ATTENTION,
    CACHE_ELEMENTS,
    MOST_TOKENS_TOGETHER,
    POSITIONS,
    ROWS_TOGETHER,
    SPLIT,
    STATE,
    TOKEN,
    TOKEN_BYTES,
)
from .simd.arithmetic import add, div, fma, keep_first, maximum, mul, reduce_add, reduce_max, splat, zero_f32
from .simd.memory import load_f32, load_f32x16, load_i64, prefetch, splat_f32, store_f32, store_f32x16, store_i64
from .simd.rows import AT, Row, for_rows
from .simd.target import choose
from .simd.vector import f32x16
from .state import take

_LOWEST, _ZERO, _ONE = np.float32(-3.0e38), np.float32(0.0), np.float32(1.0)
_KEY_TILES = choose().key_tiles
_VALUE_POSITIONS = 32
"""Positions whose values are taken at once: they stay in the first-level cache while all rows use them."""
_STATE_BYTES = 64
"""Of a row: where its sums stand in the split's order. Its maximum, then the sum of its weights."""


@kernel
def _exp(x):
    """e**x of one number, as the vectors have it."""
    return reduce_max(exp(splat(x)))


# --- rows x positions: scores; rows x components: sums ---------------------------------------------------------------


def _times(b, vector, at, total):
    return fma.emit(b, splat_f32.emit(b, at), vector, total)


def _put_scaled(b, scale, at, total):
    store_f32x16.emit(b, at, mul.emit(b, total, scale))


def _scores_of(rows: int, tiles: int, load: Any, size: int) -> Any:
    """A kernel for the scores of `rows` queries with `tiles` tiles of keys: q k * scale."""
    zeros, two = for_rows(zero_f32.emit, rows, f32x16), tiles == 2
    times = for_rows(_times, rows, f32x16, f32x16, AT, Row(f32x16))
    put = for_rows(_put_scaled, rows, types.void, f32x16, AT, Row(f32x16))

    @inlined
    def scores(q, q_stride, tile, tile_bytes, head_dim, scale, out):
        first, second = zeros(), zeros()
        for i in range(head_dim):
            at = tile + i * POSITIONS * size
            first = times(load(at), q + 4 * i, q_stride, first)
            if two:
                second = times(load(at + tile_bytes), q + 4 * i, q_stride, second)
        put(splat(scale), out, 4 * SPLIT, first)
        if two:
            put(splat(scale), out + 64, 4 * SPLIT, second)

    return scores


def _sums_of(rows: int, load: Any, size: int) -> Any:
    """A kernel that adds the values of some positions, weighted, to 16 components of `rows` rows."""
    times = for_rows(_times, rows, f32x16, f32x16, AT, Row(f32x16))
    get, put = (for_rows(load_f32x16.emit, rows, f32x16, AT),
                for_rows(store_f32x16.emit, rows, types.void, AT, Row(f32x16)))

    @inlined
    def sums(weights, values, row_bytes, count, out, out_stride):
        total = get(out, out_stride)
        for i in range(count):
            total = times(load(values + i * row_bytes), weights + 4 * i, 4 * SPLIT, total)
        put(out, out_stride, total)

    return sums


def _split_kernel(element: str) -> Any:
    """A kernel for one split (`split` below).

    Rows are tokens times `group` heads. length: positions that the first token sees; each sees one more than the one
    before. start: the split's first position, where `keys` and `values` begin. q, sums: float32 (rows, wide); scores:
    float32 (rows, SPLIT). What comes out: each row's sum of weighted values in `sums`, and in `states` its largest
    score and the sum of its weights. Rows that see nothing of the split are left as they are.
    """
    load, size = LOAD[element], CACHE_ELEMENTS[element]
    scores_6, scores_4, scores_2, scores_1 = (_scores_of(n, 1, load, size) for n in (6, 4, 2, 1))
    scores_6_of_tiles, scores_4_of_tiles = (_scores_of(n, _KEY_TILES, load, size) for n in (6, 4))
    sums_6, sums_4, sums_2, sums_1 = (_sums_of(n, load, size) for n in (6, 4, 2, 1))
    two = _KEY_TILES == 2

    @kernel
    def all_scores(rows, count, keys, head_dim, wide, scale, q, scores):
        tile_bytes, q_stride = wide * POSITIONS * size, 4 * wide
        tiles, tile = (count + POSITIONS - 1) // POSITIONS, 0
        while tile < tiles:
            at, out, row = keys + tile * tile_bytes, scores + 64 * tile, 0
            pair = two and tile + 1 < tiles
            for i in range(0, 2 * tile_bytes, 64):
                prefetch(at + 2 * tile_bytes + i)
            while row < rows:
                x, y = q + row * q_stride, out + row * 4 * SPLIT
                if rows - row > 4:
                    if pair:
                        scores_6_of_tiles(x, q_stride, at, tile_bytes, head_dim, scale, y)
                    else:
                        scores_6(x, q_stride, at, tile_bytes, head_dim, scale, y)
                    row += 6
                elif rows - row > 2:
                    if pair:
                        scores_4_of_tiles(x, q_stride, at, tile_bytes, head_dim, scale, y)
                    else:
                        scores_4(x, q_stride, at, tile_bytes, head_dim, scale, y)
                    row += 4
                elif rows - row == 2:
                    scores_2(x, q_stride, at, tile_bytes, head_dim, scale, y)
                    if pair:
                        scores_2(x, q_stride, at + tile_bytes, tile_bytes, head_dim, scale, y + 64)
                    row += 2
                else:
                    scores_1(x, q_stride, at, tile_bytes, head_dim, scale, y)
                    if pair:
                        scores_1(x, q_stride, at + tile_bytes, tile_bytes, head_dim, scale, y + 64)
                    row += 1
            tile += 2 if pair else 1

    @kernel
    def softmax(scores, count, state):
        """Scores of one row become weights, with zeros up to the end of the tile."""
        highest = splat(_LOWEST)
        for i in range(0, count, POSITIONS):
            highest = maximum(highest, keep_first(load_f32x16(scores + 4 * i), count - i, _LOWEST))
        most = reduce_max(highest)
        total = zero_f32()
        for i in range(0, count, POSITIONS):
            score = load_f32x16(scores + 4 * i)
            # exp makes a number even of NaN; 0 * score adds nothing, or NaN for a score that is not finite.
            weight = exp(add(score, splat(-most)))
            weight = keep_first(fma(score, splat(_ZERO), weight), count - i, _ZERO)
            store_f32x16(scores + 4 * i, weight)
            total = add(total, weight)
        store_f32(state, most)
        store_f32(state + 4, reduce_add(total))

    @kernel
    def all_sums(rows, first, count, values, wide, weights, sums):
        """Positions first to count for all rows."""
        row_bytes, stride = wide * size, 4 * wide
        for start in range(first, count, _VALUE_POSITIONS):
            some = min(count - start, _VALUE_POSITIONS)
            for i in range(0, _VALUE_POSITIONS * row_bytes, 64):
                prefetch(values + (start + _VALUE_POSITIONS) * row_bytes + i)
            for column in range(0, wide, 16):
                at, row = values + start * row_bytes + column * size, 0
                while row < rows:
                    p, out = weights + row * 4 * SPLIT + 4 * start, sums + row * stride + 4 * column
                    if rows - row > 4:
                        sums_6(p, at, row_bytes, some, out, stride)
                        row += 6
                    elif rows - row > 2:
                        sums_4(p, at, row_bytes, some, out, stride)
                        row += 4
                    elif rows - row == 2:
                        sums_2(p, at, row_bytes, some, out, stride)
                        row += 2
                    else:
                        sums_1(p, at, row_bytes, some, out, stride)
                        row += 1

    @kernel
    def split(tokens, group, length, start, keys, values, head_dim, wide, scale, q, scores, sums, states):
        rows = tokens * group
        most = min(length + tokens - 1 - start, SPLIT)
        all_scores(rows, most, keys, head_dim, wide, scale, q, scores)
        # What all rows see goes at once, the few positions at the end that only later tokens see row by row.
        common = min(max(length - start, 0), SPLIT)
        for token in range(tokens):
            count = min(length + token - start, SPLIT)
            for row in range(token * group, (token + 1) * group):
                if count > 0:
                    softmax(scores + row * 4 * SPLIT, count, states + row * _STATE_BYTES)
                for i in range(0, 4 * wide, 64):
                    store_f32x16(sums + row * 4 * wide + i, zero_f32())
        if common:
            all_sums(rows, 0, common, values, wide, scores, sums)
        for token in range(tokens):
            count = min(length + token - start, SPLIT)
            if count > common:
                for row in range(token * group, (token + 1) * group):
                    all_sums(1, common, count, values, wide, scores + row * 4 * SPLIT, sums + row * 4 * wide)

    return split


_split_f16, _split_f32 = (_split_kernel(element) for element in CACHE_ELEMENTS)


# --- combining splits ------------------------------------------------------------------------------------------------


@kernel
def _begin(state, sums, wide):
    """A row that has seen nothing yet."""
    store_f32(state, _LOWEST)
    store_f32(state + 4, _ZERO)
    for i in range(0, 4 * wide, 64):
        store_f32x16(sums + i, zero_f32())


@kernel
def _add_split(state, sums, split_state, split_sums, wide):
    """Add a split to what a row has seen."""
    most, highest = load_f32(state), load_f32(split_state)
    above = max(most, highest)
    old, new = _exp(most - above), _exp(highest - above)
    store_f32(state, above)
    store_f32(state + 4, load_f32(state + 4) * old + load_f32(split_state + 4) * new)
    for i in range(0, 4 * wide, 64):
        store_f32x16(sums + i, fma(load_f32x16(sums + i), splat(old), mul(load_f32x16(split_sums + i), splat(new))))


@kernel
def _finish(state, sums, head_dim, out):
    """The row's result. Plus 0, as a sum of -0 stays so in a part, but not where it was added to nothing."""
    total = splat(load_f32(state + 4))
    for i in range(0, head_dim - 15, 16):
        store_f32x16(out + 4 * i, add(div(load_f32x16(sums + 4 * i), total), zero_f32()))
    for i in range(head_dim // 16 * 16, head_dim):
        store_f32(out + 4 * i, load_f32(sums + 4 * i) / load_f32(state + 4) + _ZERO)


# --- the operations --------------------------------------------------------------------------------------------------


@kernel
def _most_splits(state):
    """Splits of the token that sees most."""
    most, records = 0, load_i64(state + STATE.token_records)
    for token in range(load_i64(state + STATE.tokens)):
        most = max(most, load_i64(records + token * TOKEN_BYTES + TOKEN.position) // SPLIT + 1)
    return most


@kernel
def _in_parts(op, state, splits):
    """Whether there is room for every split of every token: then each is an item of its own."""
    part = 64 + ((load_i64(op + ATTENTION.head_dim) + 15) // 16 * 64)
    rows = load_i64(state + STATE.tokens) * load_i64(op + ATTENTION.heads)
    return rows * splits * part <= load_i64(op + ATTENTION.partial_bytes)


@kernel
def _neighbours(first, most):
    """How many tokens from `first` on, at most so many, are of one session."""
    count = 1
    while count < most and (load_i64(first + count * TOKEN_BYTES + TOKEN.cache) == load_i64(first + TOKEN.cache)):
        count += 1
    return count


@kernel
def _rows(op, state, first, tokens, kv_head, split, scratch, splits):
    """One key-value head with all its query heads for `tokens` tokens of one session from number `first` on.

    split: the one to compute, into its place in `partial`; below 0 for all, combined, into `out`.
    """
    heads, kv_heads, head_dim = (load_i64(op + ATTENTION.heads), load_i64(op + ATTENTION.kv_heads),
                                 load_i64(op + ATTENTION.head_dim))
    layer, scale = load_i64(op + ATTENTION.layer), load_f32(op + ATTENTION.scale)
    element = load_i64(op + ATTENTION.element)
    stride, out_stride = load_i64(op + ATTENTION.qkv_stride), load_i64(op + ATTENTION.out_stride)
    size = 2 if element == 0 else 4
    group, wide = heads // kv_heads, (head_dim + 15) // 16 * 16
    rows, part = tokens * group, 64 + 4 * wide
    room = (rows + 7) * 4 * wide
    q, sums, totals = scratch, scratch + room, scratch + 2 * room
    states, scores = scratch + 3 * room, scratch + 3 * room + 2 * rows * _STATE_BYTES
    running = states + rows * _STATE_BYTES
    record = load_i64(state + STATE.token_records) + first * TOKEN_BYTES
    length = load_i64(record + TOKEN.position) + 1
    for row in range(rows):
        source = load_i64(op + ATTENTION.qkv) + (first + row // group) * stride + (
            kv_head * group + row % group) * head_dim * 4
        for i in range(head_dim):
            store_f32(q + 4 * (row * wide + i), load_f32(source + 4 * i))
        _begin(running + row * _STATE_BYTES, totals + row * 4 * wide, wide)
    begin = split if split >= 0 else 0
    end = min(split + 1 if split >= 0 else splits, (length + tokens - 2) // SPLIT + 1)
    for number in range(begin, end):
        start = number * SPLIT
        keys = key_tile(record, layer, kv_head, head_dim, start, size)
        values = value_row(record, layer, kv_head, kv_heads, head_dim, start, size)
        if element == 0:
            _split_f16(tokens, group, length, start, keys, values, head_dim, wide, scale, q, scores, sums, states)
        else:
            _split_f32(tokens, group, length, start, keys, values, head_dim, wide, scale, q, scores, sums, states)
        for row in range(rows):
            token = row // group
            if start >= length + token:
                continue
            row_state, row_sums = states + row * _STATE_BYTES, sums + row * 4 * wide
            if split < 0:
                _add_split(running + row * _STATE_BYTES, totals + row * 4 * wide, row_state, row_sums, wide)
            else:
                head = (first + token) * heads + kv_head * group + row % group
                to = load_i64(op + ATTENTION.partial) + (head * splits + split) * part
                store_i64(to, load_i64(row_state))
                for i in range(0, 4 * wide, 64):
                    store_f32x16(to + 64 + i, load_f32x16(row_sums + i))
    if split < 0:
        for row in range(rows):
            out = load_i64(op + ATTENTION.out) + (first + row // group) * out_stride
            _finish(running + row * _STATE_BYTES, totals + row * 4 * wide, head_dim,
                    out + (kv_head * group + row % group) * head_dim * 4)


@kernel
def attention(op, state, thread):
    """The operation: all items."""
    kv_heads, tokens = load_i64(op + ATTENTION.kv_heads), load_i64(state + STATE.tokens)
    scratch = load_i64(op + ATTENTION.scratch) + thread * load_i64(op + ATTENTION.scratch_stride)
    at_once = min(max(ROWS_TOGETHER // (load_i64(op + ATTENTION.heads) // kv_heads), 1), MOST_TOKENS_TOGETHER)
    splits = _most_splits(state)
    parts = splits if _in_parts(op, state, splits) else 1
    records = load_i64(state + STATE.token_records)
    items = (tokens + at_once - 1) // at_once * kv_heads * parts
    item = take(state, 1)
    while item < items:
        # The last tokens see most: they go first, so that the threads end together.
        block, rest = divmod(items - 1 - item, kv_heads * parts)
        first, last = block * at_once, min((block + 1) * at_once, tokens)
        while first < last:
            count = _neighbours(records + first * TOKEN_BYTES, last - first)
            _rows(op, state, first, count, rest // parts, rest % parts if parts > 1 else -1, scratch, splits)
            first += count
        item = take(state, 1)


@kernel
def combine(op, state):
    """The next operation: where every split was an item of its own, they are combined."""
    splits = _most_splits(state)
    if splits == 1 or not _in_parts(op, state, splits):
        return
    heads, head_dim = load_i64(op + ATTENTION.heads), load_i64(op + ATTENTION.head_dim)
    out, out_stride = load_i64(op + ATTENTION.out), load_i64(op + ATTENTION.out_stride)
    wide = (head_dim + 15) // 16 * 16
    part = 64 + 4 * wide
    rows = load_i64(state + STATE.tokens) * heads
    row = take(state, 1)
    while row < rows:
        token, head = row // heads, row % heads
        record = load_i64(state + STATE.token_records) + token * TOKEN_BYTES
        at = load_i64(op + ATTENTION.partial) + row * splits * part
        # The first part holds what has been seen so far. Adding it to nothing would not change it.
        for split in range(1, load_i64(record + TOKEN.position) // SPLIT + 1):
            _add_split(at, at + 64, at + split * part, at + split * part + 64, wide)
        _finish(at, at + 64, head_dim, out + token * out_stride + head * head_dim * 4)
        row = take(state, 1)
