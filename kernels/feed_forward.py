"""The SwiGLU feed-forward part, from row-column bundles of 32 neurons ("LLM in a flash", Alizadeh et al. 2023).

A group of 32 neurons is, at one address: 2 tiles of gate rows, 2 tiles of up rows (formats.py), then for every 16 rows
of the result one block of the down projection whose 32 columns are the group's neurons. The headers of the down blocks'
rows, where their format has them, stand apart: every group shares them. Where a group comes from does not matter: its
address is looked up in a table.
"""

from typing import Any

from .activation import quantize_pair
from .block_products import STEPS
from .decorators import inlined, kernel
from .formats import BLOCK, FLOAT_BLOCK, FORMATS, QUANTIZED_BLOCK, TILE
from .functions import silu
from .linear import tile_bytes_of, tile_of
from .records import SEGMENTS, TOKENS_AT_ONCE, Down, Release, Up, offsets
from .simd.arithmetic import add, mul, zero_f32
from .simd.memory import load_f32x16, load_i64, store_f32x16
from .state import ERROR, TOKENS, arrived, release, share, take

(TABLE, GROUPS, UP_BLOCKS, UP_X, UP_X_STRIDE, UP_HIDDEN, UP_HIDDEN_STRIDE, AS_FLOAT, UP_SCRATCH,
 UP_SCRATCH_STRIDE) = offsets(Up)
(_, _, DOWN_FIRST, DOWN_LAST, DOWN_SUMS, DOWN_OFFSET, DOWN_HEADERS, DOWN_TILES, DOWN_HIDDEN, DOWN_HIDDEN_STRIDE, DOWN_Y,
 DOWN_Y_STRIDE) = offsets(Down)
RELEASE_TABLE, RELEASE_COUNTERS, RELEASE_GROUPS = offsets(Release)

_ROW_BYTES = 4 * TILE * 4


@inlined
def _add_to(sums, a, b):
    store_f32x16(sums, add(load_f32x16(sums), a))
    store_f32x16(sums + 64, add(load_f32x16(sums + 64), b))


@kernel
def up(form, op, state, thread):
    """silu(gate x) * (up x), for the weight format with code `form`, quantized where down wants it so."""
    table, groups, blocks = load_i64(op + TABLE), load_i64(op + GROUPS), load_i64(op + UP_BLOCKS)
    x, x_stride = load_i64(op + UP_X), load_i64(op + UP_X_STRIDE)
    hidden, hidden_stride = load_i64(op + UP_HIDDEN), load_i64(op + UP_HIDDEN_STRIDE)
    as_float = load_i64(op + AS_FLOAT)
    scratch = load_i64(op + UP_SCRATCH) + thread * load_i64(op + UP_SCRATCH_STRIDE)
    tokens = load_i64(state + TOKENS)
    tile_bytes = tile_bytes_of(form, blocks)
    chunk = min(share(state, groups, 16), 4)
    first = take(state, chunk)
    while first < groups:
        for group in range(first, min(first + chunk, groups)):
            w = arrived(state, thread, table, group)
            if w == 0:
                return
            for start in range(0, tokens, TOKENS_AT_ONCE):
                count = min(tokens - start, TOKENS_AT_ONCE)
                for i in range(4):
                    tile_of(form, w + i * tile_bytes, blocks, x + start * x_stride, x_stride, count,
                            scratch + i * 64, _ROW_BYTES, 0, 0)
                for token in range(count):
                    row = scratch + token * _ROW_BYTES
                    low = mul(silu(load_f32x16(row)), load_f32x16(row + 128))
                    high = mul(silu(load_f32x16(row + 64)), load_f32x16(row + 192))
                    out = hidden + (start + token) * hidden_stride
                    if as_float:
                        store_f32x16(out + group * FLOAT_BLOCK, low)
                        store_f32x16(out + group * FLOAT_BLOCK + 64, high)
                    else:
                        quantize_pair(low, high, out + group * QUANTIZED_BLOCK, state + ERROR)
        first = take(state, chunk)


def down_kernel(name: str) -> Any:
    """The operation y += down h, for weight format `name`."""
    steps = STEPS[name]
    one, four, finish, activation_block = steps.one, steps.four, steps.finish, steps.activation_block
    block_bytes, header_bytes = FORMATS[name].block_bytes, FORMATS[name].header_bytes

    @kernel
    def add_segment(table, first, last, offset, hidden, hidden_stride, tokens, sums):
        """Groups first to last of one tile, summed alone and added to its totals: two vectors a token at `sums`."""
        token = 0
        while token + 4 <= tokens:
            at, x = sums + token * 128, hidden + token * hidden_stride
            a0, a1, a2, a3 = zero_f32(), zero_f32(), zero_f32(), zero_f32()
            b0, b1, b2, b3 = zero_f32(), zero_f32(), zero_f32(), zero_f32()
            for group in range(first, last):
                a0, a1, a2, a3, b0, b1, b2, b3 = four(
                    load_i64(table + 8 * group) + offset, x + group * activation_block, hidden_stride,
                    a0, a1, a2, a3, b0, b1, b2, b3)
            _add_to(at, a0, b0)
            _add_to(at + 128, a1, b1)
            _add_to(at + 256, a2, b2)
            _add_to(at + 384, a3, b3)
            token += 4
        while token < tokens:
            x = hidden + token * hidden_stride
            a, b = zero_f32(), zero_f32()
            for group in range(first, last):
                a, b = one(load_i64(table + 8 * group) + offset, x + group * activation_block, a, b)
            _add_to(sums + token * 128, a, b)
            token += 1

    @kernel
    def down(op, state):
        table, groups, offset = load_i64(op + TABLE), load_i64(op + GROUPS), load_i64(op + DOWN_OFFSET)
        headers, tiles = load_i64(op + DOWN_HEADERS), load_i64(op + DOWN_TILES)
        hidden, hidden_stride = load_i64(op + DOWN_HIDDEN), load_i64(op + DOWN_HIDDEN_STRIDE)
        y, y_stride = load_i64(op + DOWN_Y), load_i64(op + DOWN_Y_STRIDE)
        first_segment, last_segment = load_i64(op + DOWN_FIRST), load_i64(op + DOWN_LAST)
        tokens = load_i64(state + TOKENS)
        chunk = max(min(share(state, tiles, 2), 64), 1)
        first = take(state, chunk)
        while first < tiles:
            last = min(first + chunk, tiles)
            sums = load_i64(op + DOWN_SUMS) + first * tokens * 128
            if first_segment == 0:
                for at in range(sums, sums + (last - first) * tokens * 128, 64):
                    store_f32x16(at, zero_f32())
            for segment in range(first_segment, last_segment):
                start, end = segment * groups // SEGMENTS, (segment + 1) * groups // SEGMENTS
                for i in range(first, last):
                    add_segment(table, start, end, offset + i * block_bytes, hidden, hidden_stride, tokens,
                                sums + (i - first) * tokens * 128)
            if last_segment == SEGMENTS:
                for i in range(first, last):
                    for token in range(tokens):
                        at, out = sums + ((i - first) * tokens + token) * 128, y + token * y_stride + i * 64
                        value = finish(headers + i * header_bytes, load_f32x16(at), load_f32x16(at + 64))
                        store_f32x16(out, add(load_f32x16(out), value))
            first = take(state, chunk)

    return down


@kernel
def release_groups(op, state):
    """Give back the room of the groups that UP and DOWN are done with."""
    table, counters, groups = (load_i64(op + RELEASE_TABLE), load_i64(op + RELEASE_COUNTERS),
                               load_i64(op + RELEASE_GROUPS))
    group = take(state, 1)
    while group < groups:
        release(state, table, counters, group)
        group = take(state, 1)


assert BLOCK == 2 * TILE
DOWN_KERNELS: dict[str, Any] = {name: down_kernel(name) for name in FORMATS}
