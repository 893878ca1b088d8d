"""Embedding lookup, of tokens and of positions: one row out of a tile of 16, for each weight format."""

from typing import Any

import numpy as np

from .decorators import inlined, kernel
from .dispatch import by_format
from .formats import BLOCK, FLOAT_BLOCK, FORMATS, TILE
from .records import EMBEDDING, LEARNED_POSITIONS, STATE, TOKEN, TOKEN_BYTES
from .simd.arithmetic import add, mul, splat
from .simd.memory import load_bf16, load_f16, load_f32, load_f32x16, load_i64, load_u8, store_f32, store_f32x16
from .state import take

_ONE = np.float32(1.0)


@inlined
def _nibble(block, lane, quad, i):
    return load_u8(block + (quad >> 1) * 64 + lane * 4 + i) >> (4 * (quad & 1)) & 15


@inlined
def _q4(block, lane, quad, i):
    return _nibble(block, lane, quad, i)


@inlined
def _q6(block, lane, quad, i):
    high = load_u8(block + 256 + (quad >> 2) * 64 + lane * 4 + i) >> (2 * (quad & 3)) & 3
    return _nibble(block, lane, quad, i) | high << 4


_SHIFTS = (2, 6, 0, 4)


@inlined
def _q2(block, lane, quad, i):
    return load_u8(block + (quad >> 2) * 64 + lane * 4 + i) >> _SHIFTS[quad & 3] & 3


@inlined
def _q3(block, lane, quad, i):
    return _q2(block + 64, lane, quad, i) << 1 | load_u8(block + lane * 4 + i) >> ((quad >> 1) + 4 * (quad & 1)) & 1


def _affine(q: Any, block_bytes: int) -> Any:
    @kernel
    def block_row(header, block, lane, out):
        s = load_bf16(header + 2 * lane) * np.float32(load_u8(block + block_bytes - 32 + lane))
        m = load_bf16(header + 32 + 2 * lane) * np.float32(load_u8(block + block_bytes - 16 + lane))
        for quad in range(8):
            for i in range(4):
                store_f32(out + 16 * quad + 4 * i, s * np.float32(q(block, lane, quad, i)) - m)

    return block_row


@kernel
def _q8_row(_header, block, lane, out):
    s = load_bf16(block + 512 + 2 * lane)
    for quad in range(8):
        for i in range(4):
            store_f32(out + 16 * quad + 4 * i, s * np.float32(load_u8(block + quad * 64 + lane * 4 + i) - 128))


@kernel
def _ternary_row(header, block, lane, out):
    s = load_f32(header + 4 * lane) * load_f16(block + 128 + 2 * lane)
    for quad in range(8):
        for i in range(4):
            store_f32(out + 16 * quad + 4 * i, s * np.float32(_q2(block, lane, quad, i) - 1))


@kernel
def _q4n_row(header, block, lane, out):
    s = load_f32(header + 4 * lane) * np.float32(load_u8(block + 192 + lane))
    for i in range(BLOCK):
        store_f32(out + 4 * i, np.float32(0.0))
    for quad in range(8):
        vector = quad >> 1
        for byte in range(4 * lane + 2 * (quad & 1), 4 * lane + 2 * (quad & 1) + 2):
            code = load_u8(block + (vector >> 1) * 64 + byte) >> 4 * (vector & 1) & 15
            if code != 8:
                place = load_u8(block + 128 + byte) >> 2 * vector & 3
                store_f32(out + 16 * quad + 4 * place, s * np.float32(code - 8))


@kernel
def _f16_row(_header, block, lane, out):
    for column in range(BLOCK):
        store_f32(out + 4 * column, load_f16(block + 2 * (column * TILE + lane)))


@kernel
def _f32_row(_header, block, lane, out):
    for column in range(BLOCK):
        store_f32(out + 4 * column, load_f32(block + 4 * (column * TILE + lane)))


_block_row = by_format({
    "q4": _affine(_q4, FORMATS["q4"].block_bytes),
    "q6": _affine(_q6, FORMATS["q6"].block_bytes),
    "q8": _q8_row,
    "f16": _f16_row,
    "f32": _f32_row,
    "q2": _affine(_q2, FORMATS["q2"].block_bytes),
    "q3": _affine(_q3, FORMATS["q3"].block_bytes),
    "ternary": _ternary_row,
    "q4n": _q4n_row,
})
_HEADER_BYTES = tuple(form.header_bytes for form in FORMATS.values())
_BLOCK_BYTES = tuple(form.block_bytes for form in FORMATS.values())


@kernel
def embedding(op, state):
    """Each new token's row as float32, times a number (Vaswani et al. 2017, section 3.4)."""
    form, rows, blocks = load_i64(op + EMBEDDING.form), load_i64(op + EMBEDDING.rows), load_i64(op + EMBEDDING.blocks)
    out, out_stride = load_i64(op + EMBEDDING.out), load_i64(op + EMBEDDING.out_stride)
    scale = load_f32(op + EMBEDDING.scale)
    tokens = load_i64(state + STATE.tokens)
    token = take(state, 1)
    while token < tokens:
        tile, lane = load_i64(rows + 16 * token), load_i64(rows + 16 * token + 8)
        for block in range(blocks):
            _block_row(form, tile, tile + _HEADER_BYTES[form] + block * _BLOCK_BYTES[form], lane,
                       out + token * out_stride + block * FLOAT_BLOCK)
        if scale != _ONE:
            for at in range(out + token * out_stride, out + token * out_stride + blocks * FLOAT_BLOCK, 64):
                store_f32x16(at, mul(load_f32x16(at), splat(scale)))
        token = take(state, 1)


@kernel
def positions(op, state, thread):
    """x += the row of each new token's position (learned positions: Vaswani et al. 2017, section 3.5)."""
    form, matrix = load_i64(op + LEARNED_POSITIONS.form), load_i64(op + LEARNED_POSITIONS.matrix)
    first, blocks = load_i64(op + LEARNED_POSITIONS.first), load_i64(op + LEARNED_POSITIONS.blocks)
    x, x_stride = load_i64(op + LEARNED_POSITIONS.x), load_i64(op + LEARNED_POSITIONS.x_stride)
    values = load_i64(op + LEARNED_POSITIONS.scratch) + thread * load_i64(op + LEARNED_POSITIONS.scratch_stride)
    tile_bytes = _HEADER_BYTES[form] + blocks * _BLOCK_BYTES[form]
    tokens = load_i64(state + STATE.tokens)
    token = take(state, 1)
    while token < tokens:
        row = first + load_i64(load_i64(state + STATE.token_records) + token * TOKEN_BYTES + TOKEN.position)
        tile = matrix + row // TILE * tile_bytes
        for block in range(blocks):
            _block_row(form, tile, tile + _HEADER_BYTES[form] + block * _BLOCK_BYTES[form], row % TILE, values)
            for at in range(0, FLOAT_BLOCK, 64):
                out = x + token * x_stride + block * FLOAT_BLOCK + at
                store_f32x16(out, add(load_f32x16(out), load_f32x16(values + at)))
        token = take(state, 1)
