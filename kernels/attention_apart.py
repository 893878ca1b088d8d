"""The split of attention that holds a token apart: its own key and value stand elsewhere in the cache.

Kernels of their own, although they do the same operations in the same order as those of an ordinary split: what is
called from two places is no longer melted into its caller, and cost ordinary tokens a third of their speed
(docs/notes/kernels.md).
"""

from typing import Any

import numpy as np

from .attention_split import STATE_BYTES, all_sums_kernel, cap_scores, scores_of, softmax, softmax_behind
from .cache import keys_of
from .decorators import kernel
from .pages import CACHE_TYPES, ELEMENT_BYTES, GROUP, PAGE, POSITIONS
from .records import SPLIT, TOKEN
from .simd.arithmetic import zero_f32
from .simd.memory import load_f32, load_i64, store_f32, store_f32x16

_ZERO = np.float32(0.0)
_ROWS = 6
"""Rows at once, also where there are fewer: the scratch has room for those behind the last."""
_TILES = PAGE // POSITIONS


def _apart_kernel(cache_type: str) -> Any:
    """A kernel for the `rows` query heads of one token that sees `before` positions of the split, or those of them that
    are in its window, and then itself.

    Its key and value stand at position `slot`; the rest is as for `split`.
    """
    key_kind, value_kind = CACHE_TYPES[cache_type]
    some_scores, all_sums, size = scores_of(_ROWS, 1, key_kind), all_sums_kernel(
        value_kind, sixes=True), ELEMENT_BYTES[key_kind]

    @kernel
    def apart(rows, before, start, slot, token, layer, kv_head, head_dim, wide, scale, q, scores, scaled, sums, states,
              window, cap):
        first = max(before + 1 - window, 0) if window else 0
        first_page = first // PAGE * PAGE
        tile_bytes, stride = wide * POSITIONS * size, 4 * wide
        scale_bytes, key_bytes = (wide + GROUP - 1) // GROUP * POSITIONS * 2, load_i64(token + TOKEN.key_bytes)
        own = keys_of(token, layer, kv_head, slot)
        for row in range(0, rows, _ROWS):
            x, weights = q + row * stride, scores + row * 4 * SPLIT
            tile, lane = slot % PAGE // POSITIONS, slot % POSITIONS
            some_scores(x, stride, own + tile * tile_bytes, tile_bytes, own + _TILES * tile_bytes + tile * scale_bytes,
                        head_dim, scale, weights)
            for i in range(row, min(row + _ROWS, rows)):  # a score is the same in every lane
                store_f32(states + i * STATE_BYTES, load_f32(scores + i * 4 * SPLIT + 4 * lane))
            for at in range(first // POSITIONS * POSITIONS, before, POSITIONS):
                keys, tile = keys_of(token, layer, kv_head, start + at), at % PAGE // POSITIONS
                some_scores(x, stride, keys + tile * tile_bytes, tile_bytes,
                            keys + _TILES * tile_bytes + tile * scale_bytes, head_dim, scale, weights + 4 * at)
            for i in range(row, min(row + _ROWS, rows)):
                store_f32(scores + i * 4 * SPLIT + 4 * before, load_f32(states + i * STATE_BYTES))
                if cap != _ZERO:
                    cap_scores(scores + i * 4 * SPLIT, first, before + 1, cap)
                if first:
                    softmax_behind(scores + i * 4 * SPLIT, first_page, first, before + 1, states + i * STATE_BYTES)
                else:
                    softmax(scores + i * 4 * SPLIT, before + 1, states + i * STATE_BYTES)
        for i in range(0, (rows + _ROWS - 1) // _ROWS * _ROWS * stride, 64):
            store_f32x16(sums + i, zero_f32())
        for at in range(first_page, before, PAGE):
            values = keys_of(token, layer, kv_head, start + at) + key_bytes
            all_sums(rows, max(first - at, 0), min(before - at, PAGE), values, values, wide, scores + 4 * at, sums,
                     scaled)
        place, values = slot % PAGE, own + key_bytes
        all_sums(rows, place, place + 1, values, values, wide, scores + 4 * (before - place), sums, scaled)

    return apart


apart_f16, apart_f32, apart_q8, apart_q4 = (_apart_kernel(cache_type) for cache_type in CACHE_TYPES)
