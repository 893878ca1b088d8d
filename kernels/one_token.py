"""The feed-forward part for a single token: every neuron group is read once, from end to end.

`feed_forward` computes all of gate and up before down, which suits many tokens; for one token, when memory bandwidth is
the limit, going through each group at once lets the processor read ahead without a gap. The sums are the same, to the
bit: both cut the groups into the same segments.

Of a group only the base plane may be there (records.ABSENT in the table of details): then it is a coarser one, which a
draft is made of. A group whose planes are in two places is put together a part at a time.
"""

from typing import Any

from numba import types

from .block_products import BASE_STEPS, STEPS, Steps, no_sums
from .block_sparse import block_sparse_down, finish_block_sparse, room_of
from .decorators import kernel
from .dispatch import by_format
from .feed_forward import hidden_block
from .formats import FORMATS
from .linear import base_tile_for_one, prefetch_weights, tile_bytes_of, tile_for_one
from .planes import base_bytes_of, detail_bytes_of, whole_blocks, whole_tile
from .records import ABSENT, NEURONS, NEURONS_SUMS, SEGMENTS, STATE, WAIT, WHOLE
from .simd.arithmetic import add, zero_f32
from .simd.memory import load_f32x16, load_i64, store_f32x16
from .simd.rows import AT, Row, for_rows
from .simd.vector import f32x16
from .state import arrived, release, share, take

HIDDEN = 256
"""Where in a thread's scratch the group's 32 activations stand, behind 64 float32."""


_load, _put = for_rows(load_f32x16.emit, 1, f32x16, AT), for_rows(store_f32x16.emit, 1, types.void, AT, Row(f32x16))


def _finish_one(name: str) -> Any:
    return for_rows(STEPS[name].finish, 1, f32x16, f32x16, f32x16, Row(f32x16), Row(f32x16))


def _down_group(name: str, steps: Steps, block_bytes: int) -> Any:
    """A kernel that adds one group's down blocks to the sums of every tile: two vectors each.

    begin: 1 for the first group of a segment, whose sums begin with zero. end: 1 for the last, which makes of them the
    segment's result, `out`: 16 float32 every `out_stride` bytes.
    """
    header_bytes = FORMATS[name].header_bytes
    one, scales, finish, zeros = steps.into(1), steps.scales, _finish_one(name), no_sums(1)

    @kernel
    def down_group(w, hidden, sums, tiles, begin, end, headers, out, out_stride):
        for i in range(tiles):
            at = sums + 128 * i
            prefetch_weights(w + i * block_bytes, block_bytes)
            if begin:
                a, m = zeros(), zeros()
            else:
                a, m = _load(at, 0), _load(at + 64, 0)
            a, m = one(w + i * block_bytes, hidden, 0, a, m)
            if end:
                scale, minimum = scales(headers + i * header_bytes)
                _put(out + i * out_stride, 0, finish(scale, minimum, a, m))
            else:
                _put(at, 0, a)
                _put(at + 64, 0, m)

    return down_group


def _finish_tiles(name: str) -> Any:
    """A kernel that makes the segment's result of its sums, where its last group turned out to be ABSENT."""
    scales, finish, header_bytes = STEPS[name].scales, _finish_one(name), FORMATS[name].header_bytes

    @kernel
    def finish_tiles(sums, tiles, headers, out, out_stride):
        for i in range(tiles):
            at = sums + 128 * i
            scale, minimum = scales(headers + i * header_bytes)
            _put(out + i * out_stride, 0, finish(scale, minimum, _load(at, 0), _load(at + 64, 0)))

    return finish_tiles


down_of_group = by_format({name: _down_group(name, STEPS[name], form.block_bytes) for name, form in FORMATS.items()})
_base_down = by_format({name: _down_group(name, steps, FORMATS[name].base_bytes)
                        for name, steps in BASE_STEPS.items()})
_IS_SPLIT = tuple(int(name in BASE_STEPS) for name in FORMATS)
_finish = by_format({name: _finish_tiles(name) for name in FORMATS})


@kernel
def _last_present(table, first, last):
    """The last group of some that is not ABSENT, or `first` - 1."""
    group = last - 1
    while group >= first and load_i64(table + 8 * group) == ABSENT:
        group -= 1
    return group


@kernel
def _rows(op, w, detail, group, scratch, room):
    """A group's gate and up, or up (+ bias), 64 or 32 float32 to `scratch`. detail: what the table of details says;
    room: for what is put together."""
    form, blocks, x = load_i64(op + NEURONS.gate_up), load_i64(op + NEURONS.blocks), load_i64(op + NEURONS.x)
    row_tiles, bias = load_i64(op + NEURONS.row_tiles), load_i64(op + NEURONS.bias)
    if bias:
        bias += group * row_tiles * 64
    bias_step = 64 if bias else 0
    if detail == WHOLE:
        tile_bytes = tile_bytes_of(form, blocks)
        for i in range(row_tiles):
            tile_for_one(form, w + i * tile_bytes, blocks, x, scratch + 64 * i, bias + i * bias_step, 0)
        return
    base_bytes, detail_bytes = base_bytes_of(form, blocks), detail_bytes_of(form, blocks)
    for i in range(row_tiles):
        if detail == ABSENT:
            base_tile_for_one(form, w + i * base_bytes, blocks, x, scratch + 64 * i, bias + i * bias_step)
        else:
            tile = whole_tile(form, w + i * base_bytes, detail + i * detail_bytes, blocks, room)
            tile_for_one(form, tile, blocks, x, scratch + 64 * i, bias + i * bias_step, 0)


@kernel
def _whole_down(form, w, hidden, sums, tiles, begin, end, headers, out, out_stride):
    """A group's down blocks, whole ones."""
    if room_of(form):
        block_sparse_down(form, w, hidden, sums, tiles, begin, end, headers, out, out_stride)
    else:
        down_of_group(form, w, hidden, sums, tiles, begin, end, headers, out, out_stride)


@kernel
def _sums(op, w, detail, scratch, room, begin, end, out):
    """A group's part of the result."""
    form, gate_up, blocks = load_i64(op + NEURONS.down), load_i64(op + NEURONS.gate_up), load_i64(op + NEURONS.blocks)
    tiles, headers = load_i64(op + NEURONS.tiles), load_i64(op + NEURONS.headers)
    row_tiles = load_i64(op + NEURONS.row_tiles)
    hidden, sums, stride = scratch + HIDDEN, scratch + NEURONS_SUMS, 64 * SEGMENTS
    if detail == WHOLE:
        _whole_down(form, w + row_tiles * tile_bytes_of(gate_up, blocks), hidden, sums, tiles, begin, end, headers, out,
                    stride)
        return
    base = w + row_tiles * base_bytes_of(gate_up, blocks)
    if room_of(form):
        block_sparse_down(form, base, hidden, sums, tiles, begin, end, headers, out, stride)
    elif detail != ABSENT:
        at = whole_blocks(form, base, detail + row_tiles * detail_bytes_of(gate_up, blocks), tiles, room)
        down_of_group(form, at, hidden, sums, tiles, begin, end, headers, out, stride)
    elif _IS_SPLIT[form]:
        _base_down(form, base, hidden, sums, tiles, begin, end, headers, out, stride)
    else:
        down_of_group(form, base, hidden, sums, tiles, begin, end, headers, out, stride)


@kernel
def neurons(op, state, thread):
    """The first operation: each segment's groups, one after another, into the segment's own sums."""
    table, counters, groups = (load_i64(op + NEURONS.table), load_i64(op + NEURONS.counters),
                               load_i64(op + NEURONS.groups))
    details, detail_counters = load_i64(op + NEURONS.details), load_i64(op + NEURONS.detail_counters)
    down, tiles, headers = load_i64(op + NEURONS.down), load_i64(op + NEURONS.tiles), load_i64(op + NEURONS.headers)
    activation, row_tiles = load_i64(op + NEURONS.activation), load_i64(op + NEURONS.row_tiles)
    scratch = load_i64(op + NEURONS.scratch) + thread * load_i64(op + NEURONS.scratch_stride)
    sums = scratch + NEURONS_SUMS
    room = sums + 128 * tiles
    segment = take(state, 1)
    while segment < SEGMENTS:
        out = load_i64(op + NEURONS.partial) + segment * 64
        first, begin, ended = segment * groups // SEGMENTS, 1, 0
        last = _last_present(table, first, (segment + 1) * groups // SEGMENTS)
        for group in range(first, last + 1):
            w = arrived(state, thread, table, group)
            if w == WAIT:
                return
            if w == ABSENT:
                continue
            detail = arrived(state, thread, details, group) if details else WHOLE
            if detail == WAIT:
                return
            _rows(op, w, detail, group, scratch, room)
            hidden_block(scratch, row_tiles, activation, scratch + HIDDEN, down, state + STATE.error)
            ended = int(group == last)
            _sums(op, w, detail, scratch, room, begin, ended, out)
            begin = 0
            release(state, table, counters, group)
            release(state, details, detail_counters, group)
        if begin:
            for i in range(tiles):
                store_f32x16(out + i * 64 * SEGMENTS, zero_f32())
        elif not ended:
            if room_of(down):
                finish_block_sparse(sums, tiles, headers, out, 64 * SEGMENTS)
            else:
                _finish(down, sums, tiles, headers, out, 64 * SEGMENTS)
        segment = take(state, 1)


@kernel
def gather(op, state):
    """The second operation: y += the segments' sums, added in order (+ bias)."""
    add_segments(state, load_i64(op + NEURONS.tiles), load_i64(op + NEURONS.partial), load_i64(op + NEURONS.y),
                 load_i64(op + NEURONS.down_bias), load_i64(op + NEURONS.fresh))


@kernel
def add_segments(state, tiles, partial, y, bias, fresh):
    """y += what stands in `partial`, float32 (tile, SEGMENTS, 16), added in order (+ bias, if it is not 0); or y is
    that alone."""
    chunk = share(state, tiles, 1)
    first = take(state, chunk)
    while first < tiles:
        for i in range(first, min(first + chunk, tiles)):
            total = zero_f32()
            for segment in range(SEGMENTS):
                total = add(total, load_f32x16(partial + (i * SEGMENTS + segment) * 64))
            if bias:
                total = add(total, load_f32x16(bias + 64 * i))
            store_f32x16(y + 64 * i, total if fresh else add(load_f32x16(y + 64 * i), total))
        first = take(state, chunk)
