"""Matrix times 1 to many tokens, for each weight format: y = W x, with bias or added to what y holds."""

from typing import Any

from numba import types

from .block_products import BASE_STEPS, STEPS, Steps, no_sums
from .block_sparse import block_sparse_tile, room_of
from .decorators import inlined, kernel
from .dispatch import by_format, in_turn
from .formats import FORMATS, SLAB
from .records import LINEAR, RECORD_BYTES, STATE, TOKENS_AT_ONCE
from .simd.arithmetic import add, zero_f32
from .simd.memory import load_f32x16, load_i64, prefetch, store_f32x16
from .simd.rows import AT, Row, for_rows
from .simd.vector import f32x16
from .state import arrived, release, share, take

PIECES = 8
"""Times that a thread takes tiles of a matrix: more even out the ends, fewer read longer runs."""
_CHUNK_BYTES = 128 << 10
"""Tiles that a thread takes at once: with their tokens they stay in its second-level cache."""

_AHEAD = 8192
"""Bytes: the processor's own prefetching leaves a part of the bandwidth unused (docs/notes/kernels.md)."""


@inlined
def prefetch_weights(w, block_bytes):
    """Ask for what a single token will meet soon, if weights go on in memory as they do here."""
    for line in range(0, block_bytes, 64):
        prefetch(w + _AHEAD + line)


def _of(name: str, steps: Steps, block_bytes: int, count: int) -> Any:
    """A function (token, w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate): a tile times the tokens from
    `token` on, `count` at a time; the first that is left."""
    scales, header_bytes = steps.scales, FORMATS[name].header_bytes
    activation_block = FORMATS[name].activation.block_bytes
    zeros, into = no_sums(count), steps.into(count)

    def put(b, scale, minimum, bias, y, a, m):
        store_f32x16.emit(b, y, add.emit(b, steps.finish(b, scale, minimum, a, m), bias))

    def put_added(b, scale, minimum, bias, y, a, m):
        value = add.emit(b, steps.finish(b, scale, minimum, a, m), bias)
        store_f32x16.emit(b, y, add.emit(b, load_f32x16.emit(b, y), value))

    put_rows, add_rows = (for_rows(step, count, types.void, f32x16, f32x16, f32x16, AT, Row(f32x16), Row(f32x16))
                          for step in (put, put_added))

    @inlined
    def some(token, w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate):
        while token + count <= tokens:
            a, m, at, body = zeros(), zeros(), x + token * x_stride, w + header_bytes
            for _ in range(blocks):
                if count == 1:
                    prefetch_weights(body, block_bytes)
                a, m = into(body, at, x_stride, a, m)
                body += block_bytes
                at += activation_block
            scale, minimum = scales(w)
            offset = load_f32x16(bias) if bias else zero_f32()
            if accumulate:
                add_rows(scale, minimum, offset, y + token * y_stride, y_stride, a, m)
            else:
                put_rows(scale, minimum, offset, y + token * y_stride, y_stride, a, m)
            token += count
        return token

    return some


def _tile_kernel(name: str, steps: Steps, block_bytes: int) -> Any:
    """A kernel for one tile: (w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate).

    16 rows of the result go to y as float32, one token every `y_stride` bytes. bias: address of 16 float32, or 0.
    """
    every = in_turn([_of(name, steps, block_bytes, count) for count in steps.tokens])

    @kernel
    def tile(w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate):
        every(0, w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate)

    return tile


def _one_token_kernel(name: str, steps: Steps, block_bytes: int) -> Any:
    """The same for a single token: (w, blocks, x, y, bias, accumulate). What it need not ask for is 6 % of decoding."""
    one = _of(name, steps, block_bytes, 1)

    @kernel
    def tile(w, blocks, x, y, bias, accumulate):
        one(0, w, blocks, x, 0, 1, y, 0, bias, accumulate)

    return tile


_tile_of, _one_of = (by_format({name: make(name, STEPS[name], form.block_bytes) for name, form in FORMATS.items()})
                     for make in (_tile_kernel, _one_token_kernel))
_base_of = by_format({name: _one_token_kernel(name, steps, FORMATS[name].base_bytes)
                      for name, steps in BASE_STEPS.items()})
_IS_SPLIT = tuple(int(name in BASE_STEPS) for name in FORMATS)
_HEADER_BYTES = tuple(form.header_bytes for form in FORMATS.values())
_BLOCK_BYTES = tuple(form.block_bytes for form in FORMATS.values())


@kernel
def tile_bytes_of(form, blocks):
    """Bytes of a tile of the format with this code."""
    return room_of(form) or _HEADER_BYTES[form] + blocks * _BLOCK_BYTES[form]


@kernel
def tile_of(form, w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate):
    """A tile of the format with this code."""
    if room_of(form):
        block_sparse_tile(form, w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate)
    else:
        _tile_of(form, w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate)


@kernel
def tile_for_one(form, w, blocks, x, y, bias, accumulate):
    """The same for a single token."""
    if room_of(form):
        block_sparse_tile(form, w, blocks, x, 0, 1, y, 0, bias, accumulate)
    else:
        _one_of(form, w, blocks, x, y, bias, accumulate)


@kernel
def base_tile_for_one(form, w, blocks, x, y, bias):
    """A tile of which only the base plane is there, for one token; where the format is not split, that is all of it."""
    if not room_of(form) and _IS_SPLIT[form]:
        _base_of(form, w, blocks, x, y, bias, 0)
    else:
        tile_for_one(form, w, blocks, x, y, bias, 0)


@kernel
def _tiles(op, state, thread, first, last, tokens):
    """Tiles first to last of one record's matrix; whether their weights came."""
    form, blocks, bias = load_i64(op + LINEAR.form), load_i64(op + LINEAR.blocks), load_i64(op + LINEAR.bias)
    table, counters = load_i64(op + LINEAR.table), load_i64(op + LINEAR.counters)
    x_stride, y_stride = load_i64(op + LINEAR.x_stride), load_i64(op + LINEAR.y_stride)
    accumulate, tile_bytes = load_i64(op + LINEAR.accumulate), tile_bytes_of(form, blocks)
    for slab in range(first // SLAB, (last + SLAB - 1) // SLAB):
        if not arrived(state, thread, table, slab):
            return False
    for token in range(0, tokens, TOKENS_AT_ONCE):
        x, y = load_i64(op + LINEAR.x) + token * x_stride, load_i64(op + LINEAR.y) + token * y_stride
        for i in range(first, last):
            w = load_i64(table + 8 * (i // SLAB)) + i % SLAB * tile_bytes
            if tokens == 1:
                tile_for_one(form, w, blocks, x, y + i * 64, bias + i * 64 if bias else 0, accumulate)
                continue
            tile_of(form, w, blocks, x, x_stride, min(tokens - token, TOKENS_AT_ONCE), y + i * 64, y_stride,
                    bias + i * 64 if bias else 0, accumulate)
    if counters:
        for slab in range(first // SLAB, (last + SLAB - 1) // SLAB):
            release(state, table, counters, slab)
    return True


@kernel
def linear(op, state, thread):
    """Every tile of one matrix or several, shared among the threads; whole slabs where their room is wanted back."""
    tokens = load_i64(state + (STATE.selected if load_i64(op + LINEAR.of_selected) else STATE.tokens))
    end, tiles, streamed = op + (1 + load_i64(op + LINEAR.joined)) * RECORD_BYTES, 0, 0
    for record in range(op, end, RECORD_BYTES):
        tiles += (load_i64(record + LINEAR.tiles) + SLAB - 1) // SLAB * SLAB
        streamed |= load_i64(record + LINEAR.counters)
    largest = max(_CHUNK_BYTES // tile_bytes_of(load_i64(op + LINEAR.form), load_i64(op + LINEAR.blocks)), 1)
    chunk = SLAB if streamed else min(share(state, tiles, PIECES), largest, 16)
    first = take(state, chunk)
    while first < tiles:
        record, passed, at, last = op, 0, first, min(first + chunk, tiles)
        while at < last:
            of_record = (load_i64(record + LINEAR.tiles) + SLAB - 1) // SLAB * SLAB
            if at - passed >= of_record:
                passed += of_record
                record += RECORD_BYTES
                continue
            until = min(last, passed + of_record)
            if not _tiles(record, state, thread, at - passed, min(until - passed, load_i64(record + LINEAR.tiles)),
                          tokens):
                return
            at = until
        first = take(state, chunk)
