"""Planes of weights put together (formats.py): whole blocks in a thread's scratch, which the matrix kernels then meet.

So every kernel for whole blocks serves weights whose planes are in different places: that costs one pass over a block
that stays in the first-level cache, for as many tokens as meet it.
"""

from typing import Any

from .block_sparse import room_of
from .decorators import kernel
from .dispatch import by_format
from .formats import FORMATS
from .records import JOIN
from .simd.bits import even_of_2, even_of_4, odd_of_2, odd_of_4
from .simd.memory import load_i8x64, load_i64, prefetch, store_i8x64, store_i64
from .state import take

_AHEAD = 4096
"""Bytes of each plane, as in linear.py."""


def _joined_vectors(even: Any, odd: Any, vectors: int, rest: int = 32) -> Any:
    """For q4, q8 and q4n: each vector of both planes gives two; the rest is the base's alone."""
    base_bytes, detail_bytes, block_bytes = 64 * vectors + rest, 64 * vectors, 128 * vectors + rest

    @kernel
    def join(base, detail, out, blocks):
        for _ in range(blocks):
            for i in range(0, 64 * vectors, 64):
                prefetch(base + _AHEAD + i)
                prefetch(detail + _AHEAD + i)
                upper, lower = load_i8x64(base + i), load_i8x64(detail + i)
                store_i8x64(out + 2 * i, even(upper, lower))
                store_i8x64(out + 2 * i + 64, odd(upper, lower))
            for i in range(0, rest, 8):
                store_i64(out + 128 * vectors + i, load_i64(base + 64 * vectors + i))
            base += base_bytes
            detail += detail_bytes
            out += block_bytes

    return join


def _joined_in_turn(name: str) -> Any:
    """For q3 and q6: the detail, then the base."""
    form = FORMATS[name]
    base_bytes, detail_bytes, block_bytes = form.base_bytes, form.detail_bytes, form.block_bytes

    @kernel
    def join(base, detail, out, blocks):
        for _ in range(blocks):
            for i in range(0, detail_bytes, 64):
                prefetch(detail + _AHEAD + i)
                store_i8x64(out + i, load_i8x64(detail + i))
            for i in range(0, base_bytes, 8):
                store_i64(out + detail_bytes + i, load_i64(base + i))
            base += base_bytes
            detail += detail_bytes
            out += block_bytes

    return join


_join = by_format({"q4": _joined_vectors(even_of_2, odd_of_2, 2), "q6": _joined_in_turn("q6"),
                   "q8": _joined_vectors(even_of_4, odd_of_4, 4), "q3": _joined_in_turn("q3"),
                   "q4n": _joined_vectors(even_of_2, odd_of_2, 1, rest=80)})
_HEADER_BYTES, _BLOCK_BYTES, _BASE_BYTES, _DETAIL_BYTES = (
    tuple(getattr(form, name) for form in FORMATS.values())
    for name in ("header_bytes", "block_bytes", "base_bytes", "detail_bytes"))


@kernel
def base_bytes_of(form, blocks):
    """Bytes of a tile's base plane."""
    return room_of(form) or _HEADER_BYTES[form] + blocks * _BASE_BYTES[form]


@kernel
def detail_bytes_of(form, blocks):
    """Bytes of a tile's detail plane; 0 where the format is not split."""
    return 0 if room_of(form) else blocks * _DETAIL_BYTES[form]


@kernel
def whole_blocks(form, base, detail, blocks, room):
    """Where the blocks are whole: put together at `room`, or, where the format is not split, at `base`."""
    if not detail_bytes_of(form, 1):
        return base
    _join(form, base, detail, room, blocks)
    return room


@kernel
def whole_tile(form, base, detail, blocks, room):
    """The same of a tile, with its header."""
    if not detail_bytes_of(form, 1):
        return base
    header = _HEADER_BYTES[form]
    for i in range(0, header, 8):
        store_i64(room + i, load_i64(base + i))
    _join(form, base + header, detail, room + header, blocks)
    return room


@kernel
def _copied(source, out, size):
    """`size` bytes, a multiple of 8, unless they are there already."""
    if source != out:
        for i in range(0, size, 8):
            store_i64(out + i, load_i64(source + i))


@kernel
def join_groups(op, state):
    """The operation."""
    gate_up, down, blocks, tiles = (load_i64(op + JOIN.gate_up), load_i64(op + JOIN.down), load_i64(op + JOIN.blocks),
                                    load_i64(op + JOIN.tiles))
    base_bytes, detail_bytes = base_bytes_of(gate_up, blocks), detail_bytes_of(gate_up, blocks)
    tile_bytes = room_of(gate_up) or _HEADER_BYTES[gate_up] + blocks * _BLOCK_BYTES[gate_up]
    down_bytes = room_of(down) or tiles * _BLOCK_BYTES[down]
    row_tiles = load_i64(op + JOIN.row_tiles)
    group = take(state, 1)
    while group < load_i64(op + JOIN.groups):
        base = load_i64(op + JOIN.base) + group * load_i64(op + JOIN.base_stride)
        detail = load_i64(op + JOIN.detail) + group * load_i64(op + JOIN.detail_stride)
        out = load_i64(op + JOIN.out) + group * load_i64(op + JOIN.out_stride)
        for _ in range(row_tiles):
            _copied(whole_tile(gate_up, base, detail, blocks, out), out, tile_bytes)
            base += base_bytes
            detail += detail_bytes
            out += tile_bytes
        _copied(whole_blocks(down, base, detail, tiles, out), out, down_bytes)
        group = take(state, 1)
