"""One split of attention: scores, softmax and weighted values of some rows over at most SPLIT positions."""

from typing import Any

import numpy as np
from numba import types

from .cache import LOAD, keys_of
from .decorators import inlined, kernel
from .functions import exp, tanh
from .pages import CACHE_TYPES, ELEMENT_BYTES, GROUP, PAGE, POSITIONS
from .records import SPLIT, TOKEN, VALUE_POSITIONS
from .simd.arithmetic import (
    add,
    div,
    fma,
    keep_first,
    keep_from,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    splat,
    sub,
    zero_f32,
)
from .simd.memory import (
    load_f16x16,
    load_f32x16,
    load_high_nibbles,
    load_i8x16,
    load_i64,
    load_low_nibbles,
    prefetch,
    splat_f32,
    store_f32,
    store_f32x16,
)
from .simd.rows import AT, Row, for_rows
from .simd.target import choose
from .simd.vector import f32x16

_LOWEST, _ZERO = np.float32(-3.0e38), np.float32(0.0)
_EIGHT = np.float32(8)
_KEY_TILES = choose().key_tiles
_TILES = PAGE // POSITIONS
STATE_BYTES = 64
"""Of a row: where its sums stand in the split's order. Its maximum, then the sum of its weights."""


def _times(b, vector, at, total):
    return fma.emit(b, splat_f32.emit(b, at), vector, total)


def _put_scaled(b, scale, at, total):
    store_f32x16.emit(b, at, mul.emit(b, total, scale))


def scores_of(rows: int, tiles: int, kind: str) -> Any:
    """A kernel for the scores of `rows` queries with `tiles` tiles of keys: q k * scale.

    scales: of the first tile's keys, where they have any.
    """
    zeros, two = for_rows(zero_f32.emit, rows, f32x16), tiles == 2
    times = for_rows(_times, rows, f32x16, f32x16, AT, Row(f32x16))
    put = for_rows(_put_scaled, rows, types.void, f32x16, AT, Row(f32x16))
    if kind in LOAD:
        load, step = LOAD[kind], POSITIONS * ELEMENT_BYTES[kind]

        @inlined
        def scores(q, q_stride, tile, tile_bytes, _scales, head_dim, scale, out):
            first, second = zeros(), zeros()
            for i in range(head_dim):
                at = tile + i * step
                first = times(load(at), q + 4 * i, q_stride, first)
                if two:
                    second = times(load(at + tile_bytes), q + 4 * i, q_stride, second)
            put(splat(scale), out, 4 * SPLIT, first)
            if two:
                put(splat(scale), out + 64, 4 * SPLIT, second)

        return scores
    added = for_rows(fma.emit, rows, f32x16, Row(f32x16), f32x16, Row(f32x16))

    @inlined
    def scores_q8(q, q_stride, tile, tile_bytes, scales, head_dim, scale, out):
        first, second = zeros(), zeros()
        groups = (head_dim + GROUP - 1) // GROUP
        for group in range(groups):
            one, other = zeros(), zeros()
            for i in range(group * GROUP, min(group * GROUP + GROUP, head_dim)):
                at = tile + i * POSITIONS
                one = times(load_i8x16(at), q + 4 * i, q_stride, one)
                if two:
                    other = times(load_i8x16(at + tile_bytes), q + 4 * i, q_stride, other)
            at = scales + group * POSITIONS * 2
            first = added(one, load_f16x16(at), first)
            if two:
                second = added(other, load_f16x16(at + groups * POSITIONS * 2), second)
        put(splat(scale), out, 4 * SPLIT, first)
        if two:
            put(splat(scale), out + 64, 4 * SPLIT, second)

    return scores_q8


@inlined
def _low_codes(at):
    return sub(load_low_nibbles(at), splat(_EIGHT))


@inlined
def _high_codes(at):
    return sub(load_high_nibbles(at), splat(_EIGHT))


def sums_of(rows: int, load: Any) -> Any:
    """A kernel that adds the values of some positions, weighted, to 16 components of `rows` rows."""
    times = for_rows(_times, rows, f32x16, f32x16, AT, Row(f32x16))
    get, put = (for_rows(load_f32x16.emit, rows, f32x16, AT),
                for_rows(store_f32x16.emit, rows, types.void, AT, Row(f32x16)))

    @inlined
    def sums(weights, weights_stride, values, row_bytes, count, out, out_stride):
        total = get(out, out_stride)
        for i in range(count):
            total = times(load(values + i * row_bytes), weights + 4 * i, weights_stride, total)
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


@kernel
def softmax_behind(scores, blank, first, count, state):
    """The same where the first score that counts is number `first`: zeros in the place of those from `blank` on, which
    is a multiple of 16."""
    start, highest = first // POSITIONS * POSITIONS, splat(_LOWEST)
    for i in range(blank, start, POSITIONS):
        store_f32x16(scores + 4 * i, zero_f32())
    for i in range(start, count, POSITIONS):
        score = keep_first(load_f32x16(scores + 4 * i), count - i, _LOWEST)
        highest = maximum(highest, keep_from(score, first - i, _LOWEST))
    most = reduce_max(highest)
    total = zero_f32()
    for i in range(start, count, POSITIONS):
        score = load_f32x16(scores + 4 * i)
        weight = exp(add(score, splat(-most)))
        weight = keep_from(keep_first(fma(score, splat(_ZERO), weight), count - i, _ZERO), first - i, _ZERO)
        store_f32x16(scores + 4 * i, weight)
        total = add(total, weight)
    store_f32(state, most)
    store_f32(state + 4, reduce_add(total))


@kernel
def cap_scores(scores, first, last, cap):
    """cap * tanh(score / cap) in the place of some scores, and of those in the same tiles ("Gemma 2", 2024)."""
    for i in range(first // POSITIONS * POSITIONS, last, POSITIONS):
        score = load_f32x16(scores + 4 * i)
        store_f32x16(scores + 4 * i, mul(tanh(div(score, splat(cap))), splat(cap)))


def _all_scores_kernel(kind: str) -> Any:
    """A kernel for the scores of `rows` queries with the first `count` keys of a page. following: the next page's."""
    scores_6, scores_4, scores_2, scores_1 = (scores_of(n, 1, kind) for n in (6, 4, 2, 1))
    scores_6_of_tiles, scores_4_of_tiles = (scores_of(n, _KEY_TILES, kind) for n in (6, 4))
    two, size = _KEY_TILES == 2, ELEMENT_BYTES[kind]

    @kernel
    def all_scores(rows, count, keys, following, head_dim, wide, scale, q, scores):
        tile_bytes, q_stride = wide * POSITIONS * size, 4 * wide
        scale_bytes = (wide + GROUP - 1) // GROUP * POSITIONS * 2
        tiles, tile = (count + POSITIONS - 1) // POSITIONS, 0
        while tile < tiles:
            at, out, row = keys + tile * tile_bytes, scores + 64 * tile, 0
            scales = keys + _TILES * tile_bytes + tile * scale_bytes
            pair = two and tile + 1 < tiles
            ahead = at + 2 * tile_bytes if tile + 2 < _TILES else following
            for i in range(0, 2 * tile_bytes, 64):
                prefetch(ahead + i)
            while row < rows:
                x, y = q + row * q_stride, out + row * 4 * SPLIT
                if rows - row > 4:
                    if pair:
                        scores_6_of_tiles(x, q_stride, at, tile_bytes, scales, head_dim, scale, y)
                    else:
                        scores_6(x, q_stride, at, tile_bytes, scales, head_dim, scale, y)
                    row += 6
                elif rows - row > 2:
                    if pair:
                        scores_4_of_tiles(x, q_stride, at, tile_bytes, scales, head_dim, scale, y)
                    else:
                        scores_4(x, q_stride, at, tile_bytes, scales, head_dim, scale, y)
                    row += 4
                elif rows - row == 2:
                    scores_2(x, q_stride, at, tile_bytes, scales, head_dim, scale, y)
                    if pair:
                        scores_2(x, q_stride, at + tile_bytes, tile_bytes, scales + scale_bytes, head_dim, scale,
                                 y + 64)
                    row += 2
                else:
                    scores_1(x, q_stride, at, tile_bytes, scales, head_dim, scale, y)
                    if pair:
                        scores_1(x, q_stride, at + tile_bytes, tile_bytes, scales + scale_bytes, head_dim, scale,
                                 y + 64)
                    row += 1
            tile += 2 if pair else 1

    return all_scores


@inlined
def _scale_weights(rows, first, last, scales, weights, scaled):
    """The weights of some positions of a page, from a multiple of 16 on, times the scales of their values."""
    for row in range(rows):
        for i in range(first, last, 16):
            store_f32x16(scaled + row * 4 * VALUE_POSITIONS + 4 * (i - first), mul(
                load_f32x16(weights + row * 4 * SPLIT + 4 * i), load_f16x16(scales + 2 * i)))


def _block_sums_kernel(load: Any, sixes: bool) -> Any:
    """A kernel that adds the values of some positions, weighted, to 16 components of all rows; `sixes`: always of six
    at once, so also of rows behind the last."""
    if sixes:
        only = sums_of(6, load)

        @inlined
        def six_sums(rows, weights, weights_stride, at, row_bytes, some, out, stride):
            for row in range(0, rows, 6):
                only(weights + row * weights_stride, weights_stride, at, row_bytes, some, out + row * stride, stride)

        return six_sums
    sums_6, sums_4, sums_2, sums_1 = (sums_of(n, load) for n in (6, 4, 2, 1))

    @inlined
    def block_sums(rows, weights, weights_stride, at, row_bytes, some, out, stride):
        row = 0
        while row < rows:
            p, to = weights + row * weights_stride, out + row * stride
            if rows - row > 4:
                sums_6(p, weights_stride, at, row_bytes, some, to, stride)
                row += 6
            elif rows - row > 2:
                sums_4(p, weights_stride, at, row_bytes, some, to, stride)
                row += 4
            elif rows - row == 2:
                sums_2(p, weights_stride, at, row_bytes, some, to, stride)
                row += 2
            else:
                sums_1(p, weights_stride, at, row_bytes, some, to, stride)
                row += 1

    return block_sums


def all_sums_kernel(kind: str, *, sixes: bool = False) -> Any:
    """A kernel that adds a page's values, weighted, to all rows: positions first to last. following: the next page's.

    scaled: float32 (rows, VALUE_POSITIONS), room for weights times scales. sixes: as for _block_sums_kernel.
    """
    if kind in LOAD:
        size, block_sums = ELEMENT_BYTES[kind], _block_sums_kernel(LOAD[kind], sixes)

        @kernel
        def all_sums(rows, first, last, values, following, wide, weights, sums, scaled):
            row_bytes = wide * size
            for start in range(first, last, VALUE_POSITIONS):
                some = min(last - start, VALUE_POSITIONS)
                ahead = (values + (start + VALUE_POSITIONS) * row_bytes if start + VALUE_POSITIONS < PAGE
                         else following)
                for i in range(0, VALUE_POSITIONS * row_bytes, 64):
                    prefetch(ahead + i)
                for column in range(0, wide, 16):
                    block_sums(rows, weights + 4 * start, 4 * SPLIT, values + start * row_bytes + column * size,
                               row_bytes, some, sums + 4 * column, 4 * wide)

        return all_sums
    four_bits = kind == "q4"
    low_sums, high_sums = ([_block_sums_kernel(load, sixes) for load in (_low_codes, _high_codes)] if four_bits
                           else [_block_sums_kernel(load_i8x16, sixes)] * 2)

    @kernel
    def all_sums_scaled(rows, first, last, values, following, wide, weights, sums, scaled):
        groups = (wide + GROUP - 1) // GROUP
        row_bytes = groups * 16 if four_bits else wide
        scales, weights_stride = values + PAGE * row_bytes, 4 * VALUE_POSITIONS
        for block in range(first // VALUE_POSITIONS * VALUE_POSITIONS, last, VALUE_POSITIONS):
            start, end = max(first, block), min(last, block + VALUE_POSITIONS)
            ahead = values + (block + VALUE_POSITIONS) * row_bytes if block + VALUE_POSITIONS < PAGE else following
            for i in range(0, VALUE_POSITIONS * row_bytes, 64):
                prefetch(ahead + i)
            for group in range(groups):
                _scale_weights(rows, block, end, scales + group * PAGE * 2, weights, scaled)
                at, out = values + start * row_bytes, sums + 4 * group * GROUP
                at += group * 16 if four_bits else group * GROUP
                those = scaled + 4 * (start - block)
                low_sums(rows, those, weights_stride, at, row_bytes, end - start, out, 4 * wide)
                if group * GROUP + 16 < wide:
                    high_sums(rows, those, weights_stride, at if four_bits else at + 16, row_bytes, end - start,
                              out + 64, 4 * wide)

    return all_sums_scaled


@inlined
def _no_low_scores(rows, token, layer, kv_head, position, head_dim, wide, scale, q, scores, scratch):
    pass


@inlined
def _no_low_sums(rows, token, layer, kv_head, position, wide, weights, sums, scratch):
    pass


def split_kernel(cache_type: str, low_scores: Any = _no_low_scores, low_sums: Any = _no_low_sums) -> Any:
    """A kernel for one split (`split` below). low_scores, low_sums: for a type that may have low pages
    (attention_low.py).

    Rows are tokens times `group` heads. token: the first one's record. length: positions that it sees, itself among
    them; each sees one more than the one before. start: the split's first position. q, sums: float32 (rows, wide);
    scores: float32 (rows, SPLIT); scaled: float32 (rows, VALUE_POSITIONS); scratch: low_scratch_bytes, working memory.
    window, cap: as in records.Attention. What comes out: each row's sum of weighted values in `sums`, and in `states`
    its largest score and the sum of its weights. What is there for rows that see nothing of the split means nothing.
    """
    all_scores, all_sums = _all_scores_kernel(CACHE_TYPES[cache_type][0]), all_sums_kernel(CACHE_TYPES[cache_type][1])
    mixes = low_scores is not _no_low_scores

    @kernel
    def split(tokens, group, length, start, token, layer, kv_head, head_dim, wide, scale, q, scores, scaled, sums,
              states, scratch, window, cap):
        rows, key_bytes = tokens * group, load_i64(token + TOKEN.key_bytes)
        most = min(length + tokens - 1 - start, SPLIT)
        first = max(length - window - start, 0) if window else 0
        first_page = first // PAGE * PAGE
        keys = keys_of(token, layer, kv_head, start + first_page)
        for page in range(first_page, most, PAGE):
            following = keys_of(token, layer, kv_head, start + page + PAGE) if page + PAGE < most else keys
            if mixes and start + page < load_i64(token + TOKEN.low):
                low_scores(rows, token, layer, kv_head, start + page, head_dim, wide, scale, q, scores + 4 * page,
                           scratch)
            else:
                all_scores(rows, min(most - page, PAGE), keys, following, head_dim, wide, scale, q, scores + 4 * page)
            keys = following
        # What all rows see goes at once, the few positions at the end that only later tokens see row by row.
        common = min(max(length - start, 0), SPLIT)
        for number in range(tokens):
            count = min(length + number - start, SPLIT)
            behind = length + number - window - start if window else 0
            for row in range(number * group, (number + 1) * group):
                if cap != _ZERO and count > 0:
                    cap_scores(scores + row * 4 * SPLIT, first, count, cap)
                if behind > 0 and behind < count:
                    softmax_behind(scores + row * 4 * SPLIT, first_page, behind, count, states + row * STATE_BYTES)
                elif count > 0 and behind <= 0:
                    softmax(scores + row * 4 * SPLIT, count, states + row * STATE_BYTES)
                for i in range(0, 4 * wide, 64):
                    store_f32x16(sums + row * 4 * wide + i, zero_f32())
        for page in range(first_page, most, PAGE):
            values = keys_of(token, layer, kv_head, start + page) + key_bytes
            following = values
            if page + PAGE < most:
                following = keys_of(token, layer, kv_head, start + page + PAGE) + key_bytes
            weights = scores + 4 * page
            if mixes and start + page < load_i64(token + TOKEN.low):
                low_sums(rows, token, layer, kv_head, start + page, wide, weights, sums, scratch)
            elif page < common:
                all_sums(rows, max(first - page, 0), min(common - page, PAGE), values, following, wide, weights, sums,
                         scaled)
            for number in range(tokens):
                count = min(length + number - start, SPLIT)
                if count > common and count > page and page + PAGE > common:
                    for row in range(number * group, (number + 1) * group):
                        all_sums(1, max(common - page, 0), min(count - page, PAGE), values, following, wide,
                                 weights + row * 4 * SPLIT, sums + row * 4 * wide, scaled)

    return split

