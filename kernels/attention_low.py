"""Attention over low pages (low_pages.py): they are widened to float32, and go through the kernels for that."""

from .attention_split import all_sums_kernel, scores_of
from .decorators import kernel
from .low_pages import GROUP, LANES
from .pages import PAGE, POSITIONS
from .records import SPLIT, TOKEN
from .simd.arithmetic import fma
from .simd.memory import load_f16x16, load_i64, load_three_bits, splat_f32, store_f32x16

_ROWS = 6
"""Rows at once, also where there are fewer: the scratch has room for those behind the last."""
_TILES = PAGE // POSITIONS
_some_scores, _sums = scores_of(_ROWS, 1, "f32"), all_sums_kernel("f32", sixes=True)
_ROW_BYTES = LANES + LANES // 2 + 2 + 2


@kernel
def _low_head(token, layer, kv_head, position, wide):
    """Address of a head in the low page that a position is in."""
    number = layer * load_i64(token + TOKEN.layer_pages) + position // PAGE
    page = load_i64(load_i64(token + TOKEN.pages) + 8 * number)
    return page + kv_head * (wide + (wide + GROUP - 1) // GROUP * PAGE) * _ROW_BYTES


@kernel
def _widen(part, rows, first, count, steps, factors, out, row_bytes, step):
    """`count` rows from `first` on, of a part of `rows`: elements 16 t to 16 t + 15 of row r to out + (r - first) *
    row_bytes + t * step, for t below `steps`. factors: room for 128 bytes."""
    bits, scales = part + rows * LANES, part + rows * (LANES + LANES // 2)
    least = scales + 2 * rows
    for block in range(0, count, 16):
        store_f32x16(factors, load_f16x16(scales + 2 * (first + block)))
        store_f32x16(factors + 64, load_f16x16(least + 2 * (first + block)))
        for i in range(16):
            row = first + block + i
            factor, offset = splat_f32(factors + 4 * i), splat_f32(factors + 64 + 4 * i)
            for t in range(steps):
                codes = load_three_bits(part + row * LANES, bits + row // 2 * LANES, 2 * t, row % 2 * 4 + t)
                store_f32x16(out + (block + i) * row_bytes + t * step, fma(codes, factor, offset))


@kernel
def low_scores(rows, token, layer, kv_head, position, head_dim, wide, scale, q, scores, scratch):
    """Scores of all rows with the keys of the low page that a position is in. scratch: records.low_scratch_bytes."""
    keys = scratch + 128
    _widen(_low_head(token, layer, kv_head, position, wide), wide, 0, wide, _TILES, scratch, keys,
           4 * POSITIONS, 4 * POSITIONS * wide)
    for tile in range(_TILES):
        for row in range(0, rows, _ROWS):
            _some_scores(q + row * 4 * wide, 4 * wide, keys + tile * 4 * POSITIONS * wide, 0, 0, head_dim, scale,
                         scores + row * 4 * SPLIT + 64 * tile)


@kernel
def low_sums(rows, token, layer, kv_head, position, wide, weights, sums, scratch):
    """Add the values of the low page that a position is in, weighted, to all rows."""
    groups, values = (wide + GROUP - 1) // GROUP, scratch + 128
    part = _low_head(token, layer, kv_head, position, wide) + wide * _ROW_BYTES
    for group in range(groups):
        steps = min((wide - group * GROUP) // LANES, GROUP // LANES)
        _widen(part, groups * PAGE, group * PAGE, PAGE, steps, scratch, values + 4 * GROUP * group, 4 * wide, 4 * LANES)
    _sums(rows, 0, PAGE, values, values, wide, weights, sums, scratch)
