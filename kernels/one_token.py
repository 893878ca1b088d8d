"""The feed-forward part for a single token: every neuron group is read once, from end to end.

`feed_forward` computes all of gate and up before down, which suits many tokens; for one token, when memory bandwidth is
the limit, going through each group at once lets the processor read ahead without a gap. The sums are the same, to the
bit: both cut the groups into the same segments.
"""

from typing import Any

from .activation import quantize_pair
from .block_products import STEPS
from .decorators import kernel
from .formats import FORMATS
from .functions import silu
from .linear import tile_bytes_of, tile_of
from .records import SEGMENTS, OneToken, offsets
from .simd.arithmetic import add, mul, zero_f32
from .simd.memory import load_f32x16, load_i64, store_f32x16
from .state import ERROR, arrived, release, share, take

(TABLE, GROUPS, GATE_UP, BLOCKS, X, DOWN, OFFSET, HEADERS, TILES, Y, PARTIAL, SCRATCH,
 SCRATCH_STRIDE, COUNTERS) = offsets(OneToken)
HIDDEN = 256
"""Where in a thread's scratch the group's 32 activations stand, behind 64 float32."""

_affine_finish = STEPS["q4"].finish
_HEADER_BYTES = FORMATS["q4"].header_bytes
"""Of q4 and q6, the formats that have one."""


def _down_group(name: str) -> Any:
    """A kernel that adds one group's down blocks to the sums of every tile."""
    one, block_bytes = STEPS[name].one, FORMATS[name].block_bytes

    @kernel
    def down_group(w, hidden, sums, tiles):
        for i in range(tiles):
            at = sums + 128 * i
            a, b = one(w + i * block_bytes, hidden, load_f32x16(at), load_f32x16(at + 64))
            store_f32x16(at, a)
            store_f32x16(at + 64, b)

    return down_group


_down_q4, _down_q6, _down_q8, _down_f16, _down_f32 = (_down_group(name) for name in FORMATS)


@kernel
def _down(form, w, hidden, sums, tiles):
    if form == 0:
        _down_q4(w, hidden, sums, tiles)
    elif form == 1:
        _down_q6(w, hidden, sums, tiles)
    elif form == 2:
        _down_q8(w, hidden, sums, tiles)
    elif form == 3:
        _down_f16(w, hidden, sums, tiles)
    else:
        _down_f32(w, hidden, sums, tiles)


@kernel
def neurons(op, state, thread):
    """The first operation: each segment's groups, one after another, into the segment's own sums."""
    table, groups, gate_up = load_i64(op + TABLE), load_i64(op + GROUPS), load_i64(op + GATE_UP)
    down, offset, tiles = load_i64(op + DOWN), load_i64(op + OFFSET), load_i64(op + TILES)
    blocks, counters = load_i64(op + BLOCKS), load_i64(op + COUNTERS)
    tile_bytes = tile_bytes_of(gate_up, blocks)
    scratch = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    segment = take(state, 1)
    while segment < SEGMENTS:
        sums = load_i64(op + PARTIAL) + segment * tiles * 128
        for at in range(sums, sums + tiles * 128, 64):
            store_f32x16(at, zero_f32())
        for group in range(segment * groups // SEGMENTS, (segment + 1) * groups // SEGMENTS):
            w = arrived(state, thread, table, group)
            if w == 0:
                return
            for i in range(4):
                tile_of(gate_up, w + i * tile_bytes, blocks, load_i64(op + X), 0, 1, scratch + 64 * i, 0, 0, 0)
            low = mul(silu(load_f32x16(scratch)), load_f32x16(scratch + 128))
            high = mul(silu(load_f32x16(scratch + 64)), load_f32x16(scratch + 192))
            if down < 3:
                quantize_pair(low, high, scratch + HIDDEN, state + ERROR)
            else:
                store_f32x16(scratch + HIDDEN, low)
                store_f32x16(scratch + HIDDEN + 64, high)
            _down(down, w + offset, scratch + HIDDEN, sums, tiles)
            release(state, table, counters, group)
        segment = take(state, 1)


@kernel
def gather(op, state):
    """The second operation: y += the segments' sums, added in order."""
    down, headers, tiles = load_i64(op + DOWN), load_i64(op + HEADERS), load_i64(op + TILES)
    partial, y = load_i64(op + PARTIAL), load_i64(op + Y)
    chunk = share(state, tiles, 1)
    first = take(state, chunk)
    while first < tiles:
        for i in range(first, min(first + chunk, tiles)):
            a, b = zero_f32(), zero_f32()
            for segment in range(SEGMENTS):
                at = partial + (segment * tiles + i) * 128
                a, b = add(a, load_f32x16(at)), add(b, load_f32x16(at + 64))
            if down < 2:
                a = _affine_finish(headers + i * _HEADER_BYTES, a, b)
            store_f32x16(y + 64 * i, add(load_f32x16(y + 64 * i), a))
        first = take(state, chunk)
