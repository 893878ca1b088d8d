"""How much attention new tokens pay to each position, which policies of a full cache go by."""

from typing import Any

import numpy as np

from .attention_split import cap_scores, scores_of
from .cache import keys_of
from .combine import power
from .decorators import kernel
from .functions import exp
from .pages import ELEMENT_BYTES, GROUP, PAGE, POSITIONS
from .records import MASSES, SPLIT, STATE, TOKEN, TOKEN_BYTES
from .simd.arithmetic import add, fma, keep_first, keep_from, maximum, reduce_add, reduce_max, splat, zero_f32
from .simd.memory import load_f32, load_f32x16, load_i64, store_f32, store_f32x16
from .state import take

_LOWEST, _ZERO, _ONE = np.float32(-3.0e38), np.float32(0.0), np.float32(1.0)
_ROWS = 6
_TILES = PAGE // POSITIONS


def _page_scores_kernel(kind: str) -> Any:
    """A kernel for the scores of `rows` queries with the keys of a page."""
    some_scores, size = scores_of(_ROWS, 1, kind), ELEMENT_BYTES[kind]

    @kernel
    def page_scores(rows, keys, head_dim, wide, scale, q, scores):
        tile_bytes, scale_bytes = wide * POSITIONS * size, (wide + GROUP - 1) // GROUP * POSITIONS * 2
        for tile in range(_TILES):
            for row in range(0, rows, _ROWS):
                some_scores(q + row * 4 * wide, 4 * wide, keys + tile * tile_bytes, tile_bytes,
                            keys + _TILES * tile_bytes + tile * scale_bytes, head_dim, scale,
                            scores + row * 4 * SPLIT + 64 * tile)

    return page_scores


_scores_f16, _scores_f32, _scores_q8 = (_page_scores_kernel(kind) for kind in ("f16", "f32", "q8"))


@kernel
def _scores(cache_type, rows, keys, head_dim, wide, scale, q, scores):
    if cache_type == 0:
        _scores_f16(rows, keys, head_dim, wide, scale, q, scores)
    elif cache_type == 1:
        _scores_f32(rows, keys, head_dim, wide, scale, q, scores)
    else:
        _scores_q8(rows, keys, head_dim, wide, scale, q, scores)


@kernel
def _see(scores, first, count, state):
    """Add a page's scores of a row, from number `first` on, to what it has seen: the largest score, and the sum of the
    weights."""
    highest = splat(_LOWEST)
    for i in range(0, count, POSITIONS):
        score = keep_first(load_f32x16(scores + 4 * i), count - i, _LOWEST)
        highest = maximum(highest, keep_from(score, first - i, _LOWEST))
    most = load_f32(state)
    above = max(most, reduce_max(highest))
    total = zero_f32()
    for i in range(0, count, POSITIONS):
        weight = exp(add(load_f32x16(scores + 4 * i), splat(-above)))
        total = add(total, keep_from(keep_first(weight, count - i, _ZERO), first - i, _ZERO))
    store_f32(state + 4, load_f32(state + 4) * power(most - above) + reduce_add(total))
    store_f32(state, above)


@kernel
def _add_weights(scores, first, count, state, masses):
    """Add a page's weights of a row, from number `first` on, to its positions' masses."""
    most, share = load_f32(state), splat(_ONE / load_f32(state + 4))
    for i in range(0, count, POSITIONS):
        weight = keep_first(exp(add(load_f32x16(scores + 4 * i), splat(-most))), count - i, _ZERO)
        weight = keep_from(weight, first - i, _ZERO)
        store_f32x16(masses + 4 * i, fma(weight, share, load_f32x16(masses + 4 * i)))


@kernel
def masses(op, state, thread):
    """The operation: each new token's attention to all positions is added up, over the query heads that share a
    key-value head, one after another."""
    heads, kv_heads, head_dim = (load_i64(op + MASSES.heads), load_i64(op + MASSES.kv_heads),
                                 load_i64(op + MASSES.head_dim))
    cache_type, layer, scale = load_i64(op + MASSES.cache_type), load_i64(op + MASSES.layer), load_f32(
        op + MASSES.scale)
    group, wide = heads // kv_heads, (head_dim + 15) // 16 * 16
    window, cap = load_i64(op + MASSES.window), load_f32(op + MASSES.softcap)
    q = load_i64(op + MASSES.scratch) + thread * load_i64(op + MASSES.scratch_stride)
    states = q + (group + 7) * 4 * wide
    scores = states + group * 64
    kv_head = take(state, 1)
    while kv_head < kv_heads:
        to = load_i64(op + MASSES.masses) + kv_head * load_i64(op + MASSES.head_stride)
        for token in range(load_i64(state + STATE.tokens)):
            record = load_i64(state + STATE.token_records) + token * TOKEN_BYTES
            length = load_i64(record + TOKEN.position) + 1
            behind = max(length - window, 0) if window else 0
            source = load_i64(op + MASSES.qkv) + token * load_i64(op + MASSES.qkv_stride) + (
                kv_head * group * head_dim * 4)
            for row in range(group):
                for i in range(head_dim):
                    store_f32(q + 4 * (row * wide + i), load_f32(source + 4 * (row * head_dim + i)))
                store_f32(states + row * 64, _LOWEST)
                store_f32(states + row * 64 + 4, _ZERO)
            for again in range(2):
                for start in range(behind // PAGE * PAGE, length, PAGE):
                    _scores(cache_type, group, keys_of(record, layer, kv_head, start), head_dim, wide, scale, q, scores)
                    first, count = max(behind - start, 0), min(length - start, PAGE)
                    for row in range(group):
                        at = scores + row * 4 * SPLIT
                        if cap != _ZERO:
                            cap_scores(at, first, count, cap)
                        if again:
                            _add_weights(at, first, count, states + row * 64, to + 4 * start)
                        else:
                            _see(at, first, count, states + row * 64)
        kv_head = take(state, 1)
