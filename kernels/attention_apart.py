"""The split of attention that holds a token apart: its own key and value stand elsewhere in the cache.

Kernels of their own, although they do the same operations in the same order as those of an ordinary split: what is
called from two places is no longer melted into its caller, and cost ordinary tokens a third of their speed
(docs/notes/kernels.md).
"""

from typing import Any

from .attention_split import STATE_BYTES, scores_of, softmax, sums_of
from .cache import LOAD
from .decorators import kernel
from .records import CACHE_ELEMENTS, POSITIONS, SPLIT
from .simd.arithmetic import zero_f32
from .simd.memory import load_f32, store_f32, store_f32x16

_ROWS = 6
"""Rows at once, also where there are fewer: the scratch has room for those behind the last."""


def _apart_kernel(element: str) -> Any:
    """A kernel for the `rows` query heads of one token that sees `before` positions of the split and then itself.

    Its key is lane `lane` of the tile `own_keys`, its value `own_value`; the rest is as for `split`.
    """
    load, size = LOAD[element], CACHE_ELEMENTS[element]
    some_scores, some_sums = scores_of(_ROWS, 1, load, size), sums_of(_ROWS, load, size)

    @kernel
    def apart(rows, before, keys, values, own_keys, lane, own_value, head_dim, wide, scale, q, scores, sums, states):
        tile_bytes, row_bytes, stride = wide * POSITIONS * size, wide * size, 4 * wide
        for row in range(0, rows, _ROWS):
            x, weights, out = q + row * stride, scores + row * 4 * SPLIT, sums + row * stride
            some_scores(x, stride, own_keys, tile_bytes, head_dim, scale, weights)
            for i in range(row, min(row + _ROWS, rows)):  # a score is the same in every lane
                store_f32(states + i * STATE_BYTES, load_f32(scores + i * 4 * SPLIT + 4 * lane))
            for tile in range((before + POSITIONS - 1) // POSITIONS):
                some_scores(x, stride, keys + tile * tile_bytes, tile_bytes, head_dim, scale, weights + 64 * tile)
            for i in range(row, min(row + _ROWS, rows)):
                store_f32(scores + i * 4 * SPLIT + 4 * before, load_f32(states + i * STATE_BYTES))
                softmax(scores + i * 4 * SPLIT, before + 1, states + i * STATE_BYTES)
            for i in range(0, _ROWS * stride, 64):
                store_f32x16(out + i, zero_f32())
            for column in range(0, wide, 16):
                some_sums(weights, values + column * size, row_bytes, before, out + 4 * column, stride)
                some_sums(weights + 4 * before, own_value + column * size, row_bytes, 1, out + 4 * column, stride)

    return apart


apart_f16, apart_f32 = (_apart_kernel(element) for element in CACHE_ELEMENTS)
