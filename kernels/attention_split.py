"""One split of attention: scores, softmax and weighted values of some rows over at most SPLIT positions."""

from typing import Any

import numpy as np
from numba import types

from .cache import LOAD
from .decorators import inlined, kernel
from .functions import exp
from .records import CACHE_ELEMENTS, POSITIONS, SPLIT
from .simd.arithmetic import add, fma, keep_first, maximum, mul, reduce_add, reduce_max, splat, zero_f32
from .simd.memory import load_f32x16, prefetch, splat_f32, store_f32, store_f32x16
from .simd.rows import AT, Row, for_rows
from .simd.target import choose
from .simd.vector import f32x16

_LOWEST, _ZERO = np.float32(-3.0e38), np.float32(0.0)
_KEY_TILES = choose().key_tiles
_VALUE_POSITIONS = 32
"""Positions whose values are taken at once: they stay in the first-level cache while all rows use them."""
STATE_BYTES = 64
"""Of a row: where its sums stand in the split's order. Its maximum, then the sum of its weights."""


def _times(b, vector, at, total):
    return fma.emit(b, splat_f32.emit(b, at), vector, total)


def _put_scaled(b, scale, at, total):
    store_f32x16.emit(b, at, mul.emit(b, total, scale))


def scores_of(rows: int, tiles: int, load: Any, size: int) -> Any:
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


def sums_of(rows: int, load: Any, size: int) -> Any:
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


@inlined
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


def _split_kernel(element: str) -> Any:
    """A kernel for one split (`split` below).

    Rows are tokens times `group` heads. length: positions that the first token sees; each sees one more than the one
    before. start: the split's first position, where `keys` and `values` begin. q, sums: float32 (rows, wide); scores:
    float32 (rows, SPLIT). What comes out: each row's sum of weighted values in `sums`, and in `states` its largest
    score and the sum of its weights. Rows that see nothing of the split are left as they are.
    """
    load, size = LOAD[element], CACHE_ELEMENTS[element]
    scores_6, scores_4, scores_2, scores_1 = (scores_of(n, 1, load, size) for n in (6, 4, 2, 1))
    scores_6_of_tiles, scores_4_of_tiles = (scores_of(n, _KEY_TILES, load, size) for n in (6, 4))
    sums_6, sums_4, sums_2, sums_1 = (sums_of(n, load, size) for n in (6, 4, 2, 1))
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
                    softmax(scores + row * 4 * SPLIT, count, states + row * STATE_BYTES)
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


split_f16, split_f32 = (_split_kernel(element) for element in CACHE_ELEMENTS)
