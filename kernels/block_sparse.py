"""Block-sparse weights of 4 bits, q4b (block_packing.py), meeting activations.

The activations of a block's columns are picked by its mask and meet the weights in quads of 4: a block costs as many
dot products as it has quads. Blocks come in the order of their number of quads, so that hardly a jump comes unforeseen;
sums go in that order too, however many tokens there are.

What stands in a bundle may be forged: numbers in it are held to what there is room for.
"""

from typing import Any

from llvmlite import ir
from numba import types

from .activation import SCALE
from .decorators import inlined, kernel
from .dispatch import in_turn
from .formats import BLOCK_HEAD, BLOCK_SPARSE, COUNTS, QUAD, QUANTIZED_BLOCK
from .records import ABSENT, SEGMENTS
from .simd.arithmetic import add, fma, mul, zero_f32
from .simd.compress import (
    PICKED,
    add_offset,
    add_signed,
    count_bits,
    end_signed,
    load_signed_nibbles,
    no_products,
    pick,
    pick_one,
    picked,
    picked_room,
    quad_of,
)
from .simd.dot import products, to_f32
from .simd.memory import (
    load_f32x16,
    load_i32,
    load_i64,
    load_u8x16,
    prefetch,
    splat_4bytes,
    splat_f32,
    store_f32x16,
)
from .simd.rows import AT, Row, for_rows
from .simd.target import choose
from .simd.vector import address, f32x16, i8x64, operation

_HEADER = BLOCK_SPARSE.header_bytes
_TILE_HEAD = _HEADER + COUNTS
_MASK, _NUMBER = 16, 20
"""Where in a block."""
_AHEAD = 512
"""Bytes: from memory, farther is slower here (docs/notes/kernels.md)."""


def _scaled(b: Any, some: Any, offset: Any, s: Any, scale: Any, a: Any) -> Any:
    """A block's products into a token's sum; the same for one token and for several."""
    exact = to_f32.emit(b, end_signed.emit(b, some, offset))
    return fma.emit(b, exact, mul.emit(b, s, splat_f32.emit(b, scale)), a)


def _into_many(count: int) -> Any:
    """(w, x, stride, quads, a) -> a: one block of so many quads into the sums of `count` tokens."""
    def add_row(b, some, weights, at):
        return add_signed.emit(b, some, weights, splat_4bytes.emit(b, at))

    def pick_row(b, out, x, mask):
        pick.emit(b, out, x, mask)

    pick_rows = for_rows(pick_row, count, types.void, AT, AT, types.int64)
    zeros = for_rows(no_products.emit, count, products)
    add_quad = for_rows(add_row, count, products, Row(products), i8x64, AT)
    add_scaled = for_rows(_scaled, count, f32x16, Row(products), products, f32x16, AT, Row(f32x16))

    @inlined
    def block(w, x, stride, quads, a):
        room, some, offset = picked_room(), zeros(), no_products()
        pick_rows(room, PICKED, x, stride, load_i32(w + _MASK))
        at = w + BLOCK_HEAD
        for quad in range(quads):
            weights = load_signed_nibbles(at)
            some = add_quad(some, weights, room + 4 * quad, PICKED)
            offset = add_offset(offset, weights)
            at += QUAD
        return add_scaled(some, offset, load_u8x16(w), x + SCALE, stride, a)

    return block


def _into_one(quads: int) -> Any:
    """(w, x, room, a) -> a: one block of so many quads into the sum of one token."""
    numbers = [quad_of(number) for number in range(quads)]

    def add_all(b, w, some, s, scale, a):
        total = offset = no_products.emit(b)
        for number, quad in enumerate(numbers):
            weights = load_signed_nibbles.emit(b, b.add(w, ir.Constant(w.type, BLOCK_HEAD + QUAD * number)))
            total = add_signed.emit(b, total, weights, quad.emit(b, some))
            offset = add_offset.emit(b, offset, weights)
        return _scaled(b, total, offset, s, scale, a)

    add_all.__name__ = f"add_{quads}_quads"
    into = operation(f32x16, address, picked, f32x16, address, f32x16)(add_all)

    @inlined
    def block(w, x, room, a):
        for line in range(0, BLOCK_HEAD + QUAD * quads, 64):
            prefetch(w + _AHEAD + line)
        return into(w, pick_one(room, x, load_i32(w + _MASK)), load_u8x16(w), x + SCALE, a)

    return block


_into_one_of = tuple(_into_one(quads) for quads in range(1, 9))


@inlined
def _run_end(counts, at, end, quads):
    """Where the blocks of so many quads end that begin at `at`; there, too, if there are none, or more than fit."""
    stop = at + load_i32(counts + 4 * quads - 4) * (BLOCK_HEAD + QUAD * quads)
    return stop if at <= stop <= end else at


@inlined
def _number(w, most):
    """A block's number, below `most`."""
    return min(load_i32(w + _NUMBER) & 0xFFFF, most - 1)


def _one_run(quads: int) -> Any:
    """(w, at, end, blocks, x, room, a) -> at, a: all blocks of a tile that have so many quads, for one token."""
    into = _into_one_of[quads - 1]

    @inlined
    def run(w, at, end, blocks, x, room, a):
        stop = _run_end(w + _HEADER, at, end, quads)
        while at < stop:
            a = into(at, x + _number(at, blocks) * QUANTIZED_BLOCK, room, a)
            at += BLOCK_HEAD + QUAD * quads
        return at, a

    return run


def _tile_for_many(count: int) -> Any:
    """Tokens from `token` on, so many at a time; the first that is left."""
    zeros, into = for_rows(zero_f32.emit, count, f32x16), _into_many(count)

    def put(b, scale, bias, y, a):
        store_f32x16.emit(b, y, add.emit(b, mul.emit(b, scale, a), bias))

    def put_added(b, scale, bias, y, a):
        store_f32x16.emit(b, y, add.emit(b, load_f32x16.emit(b, y), add.emit(b, mul.emit(b, scale, a), bias)))

    put_rows, add_rows = (for_rows(step, count, types.void, f32x16, f32x16, AT, Row(f32x16))
                          for step in (put, put_added))

    @inlined
    def some(token, w, size, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate):
        while token + count <= tokens:
            a, at = zeros(), w + _TILE_HEAD
            for quads in range(1, 9):
                stop = _run_end(w + _HEADER, at, w + size, quads)
                while at < stop:
                    here = x + token * x_stride + _number(at, blocks) * QUANTIZED_BLOCK
                    a = into(at, here, x_stride, quads, a)
                    at += BLOCK_HEAD + QUAD * quads
            scale = load_f32x16(w)
            offset = load_f32x16(bias) if bias else zero_f32()
            if accumulate:
                add_rows(scale, offset, y + token * y_stride, y_stride, a)
            else:
                put_rows(scale, offset, y + token * y_stride, y_stride, a)
            token += count
        return token

    return some


def _tile_for_one() -> Any:
    of_1, of_2, of_3, of_4, of_5, of_6, of_7, of_8 = (_one_run(quads) for quads in range(1, 9))

    @kernel
    def tile_for_one(w, size, blocks, x, y, bias, accumulate):
        a, at, end, room = zero_f32(), w + _TILE_HEAD, w + size, picked_room()
        at, a = of_1(w, at, end, blocks, x, room, a)
        at, a = of_2(w, at, end, blocks, x, room, a)
        at, a = of_3(w, at, end, blocks, x, room, a)
        at, a = of_4(w, at, end, blocks, x, room, a)
        at, a = of_5(w, at, end, blocks, x, room, a)
        at, a = of_6(w, at, end, blocks, x, room, a)
        at, a = of_7(w, at, end, blocks, x, room, a)
        at, a = of_8(w, at, end, blocks, x, room, a)
        value = add(mul(load_f32x16(w), a), load_f32x16(bias) if bias else zero_f32())
        store_f32x16(y, add(load_f32x16(y), value) if accumulate else value)

    return tile_for_one


_several = tuple(count for count in choose().tokens if count > 1)
_one, _many = _tile_for_one(), in_turn([_tile_for_many(count) for count in _several])


@kernel
def block_sparse_tile(form, w, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate):
    """A tile, as of linear.tile_of. form: the code of a sized format."""
    size = room_of(form)
    token = _many(0, w, size, blocks, x, x_stride, tokens, y, y_stride, bias, accumulate)
    while token < tokens:
        _one(w, size, blocks, x + token * x_stride, y + token * y_stride, bias, accumulate)
        token += 1


@kernel
def room_of(form):
    """The bytes of a tile or of a group's down blocks in the sized format with this code; 0 if it is not sized."""
    return form >> 8 << 3


@inlined
def _groups_head(tiles):
    return COUNTS + (2 * tiles + 7) // 8 * 8


def _down_run(quads: int) -> Any:
    """(w, at, end, tiles, hidden, room, sums) -> at: all blocks of a group that have so many quads, for one token."""
    into = _into_one_of[quads - 1]

    @inlined
    def run(w, at, end, tiles, hidden, room, sums):
        stop = _run_end(w, at, end, quads)
        while at < stop:
            sum_at = sums + 128 * _number(at, tiles)
            store_f32x16(sum_at, into(at, hidden, room, load_f32x16(sum_at)))
            at += BLOCK_HEAD + QUAD * quads
        return at

    return run


def _down_group() -> Any:
    of_1, of_2, of_3, of_4, of_5, of_6, of_7, of_8 = (_down_run(quads) for quads in range(1, 9))

    @kernel
    def block_sparse_down(form, w, hidden, sums, tiles, begin, end, headers, out, out_stride):
        """As one_token.down_of_group."""
        if begin:
            for at in range(sums, sums + 128 * tiles, 128):
                store_f32x16(at, zero_f32())
        at, last, room = w + _groups_head(tiles), w + room_of(form), picked_room()
        at = of_1(w, at, last, tiles, hidden, room, sums)
        at = of_2(w, at, last, tiles, hidden, room, sums)
        at = of_3(w, at, last, tiles, hidden, room, sums)
        at = of_4(w, at, last, tiles, hidden, room, sums)
        at = of_5(w, at, last, tiles, hidden, room, sums)
        at = of_6(w, at, last, tiles, hidden, room, sums)
        at = of_7(w, at, last, tiles, hidden, room, sums)
        at = of_8(w, at, last, tiles, hidden, room, sums)
        if end:
            finish_block_sparse(sums, tiles, headers, out, out_stride)

    return block_sparse_down


@kernel
def finish_block_sparse(sums, tiles, headers, out, out_stride):
    """The segment's result of its sums."""
    for i in range(tiles):
        store_f32x16(out + i * out_stride, mul(load_f32x16(headers + _HEADER * i), load_f32x16(sums + 128 * i)))


block_sparse_down = _down_group()


def _segments(count: int) -> Any:
    zeros, into = for_rows(zero_f32.emit, count, f32x16), _into_many(count)

    def add_to(b, scale, sums, a):
        store_f32x16.emit(b, sums, add.emit(b, load_f32x16.emit(b, sums), mul.emit(b, scale, a)))

    add_rows = for_rows(add_to, count, types.void, f32x16, AT, Row(f32x16))

    @inlined
    def some(token, table, groups, first, last, offset, size, tile, tiles, header, hidden, hidden_stride, tokens, sums):
        while token + count <= tokens:
            x = hidden + token * hidden_stride
            for segment in range(first, last):
                a = zeros()
                for group in range(segment * groups // SEGMENTS, (segment + 1) * groups // SEGMENTS):
                    w = load_i64(table + 8 * group)
                    if w == ABSENT:
                        continue
                    place = 8 * (load_i32(w + offset + COUNTS + 2 * tile) & 0xFFFF)
                    if place:
                        block = w + offset + min(place, size - BLOCK_HEAD)
                        quads = (count_bits(load_i32(block + _MASK) & 0xFFFFFFFF) + 3) // 4
                        if place + BLOCK_HEAD + QUAD * quads <= size:
                            a = into(block, x + group * QUANTIZED_BLOCK, hidden_stride, quads, a)
                add_rows(load_f32x16(header), sums + token * 64, 64, a)
            token += count
        return token

    return some


_segments_in_turn = in_turn([_segments(count) for count in choose().tokens])


@kernel
def block_sparse_segments(form, table, groups, first, last, offset, tile, tiles, header, hidden, hidden_stride, tokens,
                          sums):
    """As feed_forward.segments_of. offset: where a group's down blocks begin; tile: whose blocks are wanted, of so many
    tiles."""
    _segments_in_turn(0, table, groups, first, last, offset, room_of(form), tile, tiles, header, hidden, hidden_stride,
                      tokens, sums)
