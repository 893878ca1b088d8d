"""Matrix times 1 to many tokens, for each weight format: y = W x, with bias or added to what y holds."""

from typing import Any

from .block_products import STEPS
from .decorators import kernel
from .formats import FORMATS, SLAB
from .records import RECORD_BYTES, Linear, Slabs, offsets
from .simd.arithmetic import add, zero_f32
from .simd.memory import load_f32x16, load_i64, store_f32x16
from .state import SELECTED, TOKENS, arrived, release, share, take

WEIGHTS, TILES, FORM, BLOCKS, X, X_STRIDE, Y, Y_STRIDE, BIAS, ACCUMULATE, JOINED = offsets(Linear)
(TABLE, COUNTERS, SLAB_COUNT, SLAB_TILES, SLAB_FORM, SLAB_BLOCKS, SLAB_X, SLAB_X_STRIDE, SLAB_Y,
 SLAB_Y_STRIDE) = offsets(Slabs)

PIECES = 8
"""Times that a thread takes tiles of a matrix: more even out the ends, fewer read longer runs."""


@kernel
def _put(y, value, bias, accumulate):
    if bias:
        value = add(value, load_f32x16(bias))
    if accumulate:
        value = add(load_f32x16(y), value)
    store_f32x16(y, value)


def tile_kernel(name: str) -> Any:
    """A kernel for one tile: (w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate).

    16 rows of the result go to y as float32, one token every `y_stride` bytes. bias: address of 16 float32, or 0.
    """
    steps, form = STEPS[name], FORMATS[name]
    one, four, finish = steps.one, steps.four, steps.finish
    block_bytes, header_bytes, activation_block = form.block_bytes, form.header_bytes, steps.activation_block

    @kernel
    def tile(w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate):
        body = w + header_bytes
        token = 0
        while token + 4 <= tokens:
            a0, a1, a2, a3 = zero_f32(), zero_f32(), zero_f32(), zero_f32()
            b0, b1, b2, b3 = zero_f32(), zero_f32(), zero_f32(), zero_f32()
            at = x + token * x_stride
            for block in range(blocks):
                a0, a1, a2, a3, b0, b1, b2, b3 = four(
                    body + block * block_bytes, at + block * activation_block, x_stride, a0, a1, a2, a3, b0, b1, b2, b3)
            out = y + token * y_stride
            _put(out, finish(w, a0, b0), bias, accumulate)
            _put(out + y_stride, finish(w, a1, b1), bias, accumulate)
            _put(out + 2 * y_stride, finish(w, a2, b2), bias, accumulate)
            _put(out + 3 * y_stride, finish(w, a3, b3), bias, accumulate)
            token += 4
        while token < tokens:
            a, b = zero_f32(), zero_f32()
            at = x + token * x_stride
            for block in range(blocks):
                a, b = one(body + block * block_bytes, at + block * activation_block, a, b)
            _put(y + token * y_stride, finish(w, a, b), bias, accumulate)
            token += 1

    return tile


TILE_KERNELS: dict[str, Any] = {name: tile_kernel(name) for name in FORMATS}

_tile_q4, _tile_q6, _tile_q8, _tile_f16, _tile_f32 = TILE_KERNELS.values()
_HEADER_BYTES = tuple(form.header_bytes for form in FORMATS.values())
_BLOCK_BYTES = tuple(form.block_bytes for form in FORMATS.values())


@kernel
def tile_bytes_of(form, blocks):
    """Bytes of a tile of the format with this code."""
    return _HEADER_BYTES[form] + blocks * _BLOCK_BYTES[form]


@kernel
def tile_of(form, w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate):
    """A tile of the format with this code."""
    if form == 0:
        _tile_q4(w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate)
    elif form == 1:
        _tile_q6(w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate)
    elif form == 2:
        _tile_q8(w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate)
    elif form == 3:
        _tile_f16(w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate)
    else:
        _tile_f32(w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate)


@kernel
def _tile_at(op, i, tokens):
    """Tile i of one record's matrix."""
    form, blocks, bias = load_i64(op + FORM), load_i64(op + BLOCKS), load_i64(op + BIAS)
    tile_of(form, load_i64(op + WEIGHTS) + i * tile_bytes_of(form, blocks), blocks, load_i64(op + X),
            load_i64(op + X_STRIDE), tokens, load_i64(op + Y) + i * 64, load_i64(op + Y_STRIDE),
            bias + i * 64 if bias else 0, load_i64(op + ACCUMULATE))


@kernel
def linear(op, state):
    """Every tile of one matrix or several, shared among the threads."""
    tokens, end, tiles = load_i64(state + TOKENS), op + (1 + load_i64(op + JOINED)) * RECORD_BYTES, 0
    for record in range(op, end, RECORD_BYTES):
        tiles += load_i64(record + TILES)
    chunk = min(share(state, tiles, PIECES), 16)
    first = take(state, chunk)
    while first < tiles:
        record, passed = op, 0
        for i in range(first, min(first + chunk, tiles)):
            while i - passed >= load_i64(record + TILES):
                passed += load_i64(record + TILES)
                record += RECORD_BYTES
            _tile_at(record, i - passed, tokens)
        first = take(state, chunk)


@kernel
def slabs(op, state, thread):
    """The output head, for the selected rows."""
    table, counters, count = load_i64(op + TABLE), load_i64(op + COUNTERS), load_i64(op + SLAB_COUNT)
    tiles, form, blocks = load_i64(op + SLAB_TILES), load_i64(op + SLAB_FORM), load_i64(op + SLAB_BLOCKS)
    x, x_stride = load_i64(op + SLAB_X), load_i64(op + SLAB_X_STRIDE)
    y, y_stride = load_i64(op + SLAB_Y), load_i64(op + SLAB_Y_STRIDE)
    selected, tile_bytes = load_i64(state + SELECTED), tile_bytes_of(form, blocks)
    slab = take(state, 1)
    while slab < count:
        w = arrived(state, thread, table, slab)
        if w == 0:
            return
        first = slab * SLAB
        for i in range(first, min(first + SLAB, tiles)):
            tile_of(form, w + (i - first) * tile_bytes, blocks, x, x_stride, selected, y + i * 64, y_stride, 0, 0)
        release(state, table, counters, slab)
        slab = take(state, 1)
