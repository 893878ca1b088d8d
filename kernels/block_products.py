"""Weights meeting activations: one block of 16 rows x 32 columns against one or several tokens, for each weight format.

A product is kept as two sums a row until all blocks are in: A = sum of scale * s * dot(q, x) and M = sum of m * sum(x),
so that y = D * A - M' * M. `finish` does that; for formats without minima M stays zero. Every token's sums go through
the same operations in the same order whether it comes alone or with others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from .activation import FINE, FINE_SCALE, FINE_SUM, SCALE, SCALED_SUM
from .decorators import inlined
from .formats import BLOCK, FORMATS, TILE
from .simd.arithmetic import fma, mul, splat, sub, zero_f32
from .simd.bits import nibbles_of_3, upper_2_of, upper_4_of
from .simd.dot import (
    add_products,
    begin_products,
    dot_offset,
    end_products,
    high_nibbles,
    low_nibbles,
    plus_128_times,
    products,
    settled,
    start_offset,
    to_f32,
    with_bits_0,
    with_bits_2,
    with_bits_4,
    with_bits_6,
    zero_i8,
    zero_i32,
)
from .simd.memory import (
    load_bf16x16,
    load_f16x16,
    load_f32x16,
    load_i8x64,
    load_i32,
    load_u8x16,
    splat_4bytes,
    splat_f32,
)
from .simd.pick import (
    UNIT,
    activations_16,
    add_picked,
    begin_picked,
    code_high,
    code_low,
    picked,
    picking,
    upper_codes,
)
from .simd.rows import AT, Row, for_rows
from .simd.target import choose
from .simd.vector import f32x16, i8x64, i32x16

_TOKENS = choose().tokens
_FEWER = tuple(n for n in _TOKENS if n <= 4)
"""Of formats where more at once gain little, and of rarer ones, where they are not worth what compiling takes."""


class Steps(NamedTuple):
    """The pieces of one weight format, for the matrix kernels to be built from."""

    into: Callable[[int], Any]
    """into(n)(w, x, stride, a, m) -> a, m: one block into the two sums of n tokens, `stride` bytes apart."""
    scales: Any
    """(header) -> d, m: what `finish` needs of a tile's header."""
    finish: Any
    """A step for rows: (builder, d, m, a, m) -> y, 16 rows' results."""
    tokens: tuple[int, ...] = _TOKENS
    """How many tokens meet a block at once: the largest first, the last is 1."""


def no_sums(tokens: int) -> Any:
    """A word that gives the sums of so many tokens, all zero."""
    return for_rows(zero_f32.emit, tokens, f32x16)


def _behind(b: Any, at: Any, offset: int) -> Any:
    return b.add(at, ir.Constant(at.type, offset))


def _q4_pair(pair: int) -> Any:
    @inlined
    def quads(w):
        v = load_i8x64(w + 64 * pair)
        return low_nibbles(v), high_nibbles(v)

    return quads


def _q6_pair(pair: int) -> Any:
    nibbles = _q4_pair(pair)
    low_bits, high_bits = (with_bits_0, with_bits_2) if pair % 2 == 0 else (with_bits_4, with_bits_6)

    @inlined
    def quads(w):
        low, high = nibbles(w)
        plane = load_i8x64(w + 256 + 64 * (pair // 2))
        return low_bits(low, plane), high_bits(high, plane)

    return quads


def _fma_splat(b, vector, at, total):
    return fma.emit(b, vector, splat_f32.emit(b, at), total)


def _fma_scaled(b, total, s, scale, a):
    return fma.emit(b, to_f32.emit(b, total), mul.emit(b, s, splat_f32.emit(b, scale)), a)


def _q3_pair(pair: int) -> Any:
    nibbles = nibbles_of_3[pair]

    @inlined
    def quads(w):
        v = nibbles(load_i8x64(w + 64 + 64 * (pair // 2)), load_i8x64(w))
        return low_nibbles(v), high_nibbles(v)

    return quads


def _q4_base_pair(pair: int) -> Any:
    first, second = upper_2_of[pair % 2 * 2:pair % 2 * 2 + 2]

    @inlined
    def quads(w):
        v = load_i8x64(w + 64 * (pair // 2))
        return first(v), second(v)

    return quads


def _q6_base_pair(pair: int) -> Any:
    low_bits, high_bits = (with_bits_0, with_bits_2) if pair % 2 == 0 else (with_bits_4, with_bits_6)

    @inlined
    def quads(w):
        plane = load_i8x64(w + 64 * (pair // 2))
        return low_bits(zero_i8(), plane), high_bits(zero_i8(), plane)

    return quads


@inlined
def _bf16_header(header):
    return load_bf16x16(header), load_bf16x16(header + 32)


def _scaled_header(unit: float) -> Any:
    """q2 and q3: what the quads hold are integers 1 / unit times q."""
    factor = np.float32(unit)

    @inlined
    def scales(header):
        return mul(load_bf16x16(header), splat(factor)), load_bf16x16(header + 32)

    return scales


@inlined
def _ternary_header(header):
    """Quads of 4 (q + 1), whose minimum is their scale."""
    scale = load_f32x16(header)
    return mul(scale, splat(_QUARTER)), scale


_QUARTER = np.float32(0.25)


def _affine_steps(quads_of: Callable[[int], Any], block_bytes: int, *, widen_often: bool, middle: float = 0.0,
                  tokens: tuple[int, ...] = _TOKENS, scales: Any = _bf16_header, load: Any = load_u8x16,
                  apart: int = 16) -> Steps:
    """q2, q3, q4, q6 and ternary: unsigned weights, scales and minima at the end of the block.

    quads_of(n): (w) -> quads 2n and 2n + 1. widen_often: products of no more than two quads fit 16 bits. middle: what
    is added to each weight. load: of 16 scales or minima; apart: bytes from those to these.
    """
    scales_at, minima_at, added = block_bytes - 32, block_bytes - 32 + apart, np.float32(middle)
    quads_0, quads_1, quads_2, quads_3 = (quads_of(n) for n in range(4))

    def into(tokens: int) -> Any:
        def pair(b, some, low, high, x):
            some = add_products.emit(b, some, low, splat_4bytes.emit(b, x))
            some = add_products.emit(b, some, high, splat_4bytes.emit(b, _behind(b, x, 4)))
            return settled.emit(b, some) if tokens > 1 else some

        zeros = for_rows(zero_i32.emit, tokens, i32x16)
        begin = for_rows(begin_products.emit, tokens, products, Row(i32x16))
        add_pair = for_rows(pair, tokens, products, Row(products), i8x64, i8x64, AT)
        end = for_rows(end_products.emit, tokens, i32x16, Row(i32x16), Row(products))
        add_scaled = for_rows(_fma_scaled, tokens, f32x16, Row(i32x16), f32x16, AT, Row(f32x16))
        add_minimum = for_rows(_fma_splat, tokens, f32x16, f32x16, AT, Row(f32x16))

        @inlined
        def block(w, x, stride, a, m):
            total = zeros()
            low, high = quads_0(w)
            some = add_pair(begin(total), low, high, x, stride)
            if widen_often:
                total = end(total, some)
                some = begin(total)
            low, high = quads_1(w)
            some = add_pair(some, low, high, x + 8, stride)
            if widen_often:
                total = end(total, some)
                some = begin(total)
            low, high = quads_2(w)
            some = add_pair(some, low, high, x + 16, stride)
            if widen_often:
                total = end(total, some)
                some = begin(total)
            low, high = quads_3(w)
            some = add_pair(some, low, high, x + 24, stride)
            total = end(total, some)
            s = load(w + scales_at)
            a = add_scaled(total, s, x + SCALE, stride, a)
            if middle:
                a = add_minimum(mul(s, splat(added)), x + SCALED_SUM, stride, a)
            return a, add_minimum(load(w + minima_at), x + SCALED_SUM, stride, m)

        return block

    def finish(b, scale, minimum, a, m):
        return sub.emit(b, mul.emit(b, scale, a), mul.emit(b, minimum, m))

    return Steps(into, scales, finish, tokens)


@inlined
def _no_scales(_header):
    return zero_f32(), zero_f32()


def _finished(_b, _scale, _minimum, a, _m):
    return a


def _q8_pair(pair: int) -> Any:
    @inlined
    def quads(w):
        return load_i8x64(w + 128 * pair), load_i8x64(w + 128 * pair + 64)

    return quads


def _q8_base_pair(pair: int) -> Any:
    first, second = upper_4_of

    @inlined
    def quads(w):
        v = load_i8x64(w + 64 * pair)
        return first(v), second(v)

    return quads


def _q8_steps(quads_of: Callable[[int], Any], block_bytes: int, tokens: tuple[int, ...] = _TOKENS) -> Steps:
    """8-bit weights with the 15-bit activations; at most 127 * 127 * 128 * 32 < 2**31."""
    quads_0, quads_1, quads_2, quads_3 = (quads_of(n) for n in range(4))
    scales_at = block_bytes - 32

    def row(b, q0, q1, q2, q3, q4, q5, q6, q7, s, x, a):
        def dots(total, at):
            for i, q in enumerate((q0, q1, q2, q3, q4, q5, q6, q7)):
                total = dot_offset.emit(b, total, q, splat_4bytes.emit(b, _behind(b, at, 4 * i)))
            return total

        fine = dots(start_offset.emit(b, load_i32.emit(b, _behind(b, x, FINE_SUM))), _behind(b, x, FINE))
        total = plus_128_times.emit(b, fine, dots(zero_i32.emit(b), x))
        return _fma_scaled(b, total, s, _behind(b, x, FINE_SCALE), a)

    def into(tokens: int) -> Any:
        add = for_rows(row, tokens, f32x16, *[i8x64] * 8, f32x16, AT, Row(f32x16))

        @inlined
        def block(w, x, stride, a, m):
            q0, q1 = quads_0(w)
            q2, q3 = quads_1(w)
            q4, q5 = quads_2(w)
            q6, q7 = quads_3(w)
            return add(q0, q1, q2, q3, q4, q5, q6, q7, load_bf16x16(w + scales_at), x, stride, a), m

        return block

    return Steps(into, _no_scales, _finished, tokens)


@inlined
def _q4n_vectors(w):
    first, second = load_i8x64(w), load_i8x64(w + 64)
    return code_low(first), code_high(first), code_low(second), code_high(second)


_upper_0, _upper_1, _upper_2, _upper_3 = upper_codes


@inlined
def _q4n_base_vectors(w):
    v = load_i8x64(w)
    return _upper_0(v), _upper_1(v), _upper_2(v), _upper_3(v)


def _q4n_steps(vectors: Any, block_bytes: int, tokens: tuple[int, ...] = _TOKENS) -> Steps:
    """Two in four weights, with the activations that belong to them. vectors: (w) -> the four of a block, q / UNIT."""
    positions_at, scales_at, factor = block_bytes - 80, block_bytes - 16, np.float32(UNIT)
    picking_0, picking_1, picking_2, picking_3 = picking

    def row(b, w0, w1, w2, w3, i0, i1, i2, i3, begun, s, x, a):
        some = begun
        for table, at in ((((w0, i0), (w1, i1)), 0), (((w2, i2), (w3, i3)), 16)):
            these = activations_16.emit(b, _behind(b, x, at))
            for odd, (weights, indices) in enumerate(table):
                some = add_picked.emit(b, some, weights, picked[odd].emit(b, these, indices))
        total = end_products.emit(b, zero_i32.emit(b), some)
        return _fma_scaled(b, total, s, _behind(b, x, SCALE), a)

    def into(tokens: int) -> Any:
        add = for_rows(row, tokens, f32x16, *[i8x64] * 8, products, f32x16, AT, Row(f32x16))

        @inlined
        def block(w, x, stride, a, m):
            w0, w1, w2, w3 = vectors(w)
            at = load_i8x64(w + positions_at)
            return add(w0, w1, w2, w3, picking_0(at), picking_1(at), picking_2(at), picking_3(at),
                       begin_picked(w0, w1, w2, w3), load_u8x16(w + scales_at), x, stride, a), m

        return block

    @inlined
    def scales(header):
        return mul(load_f32x16(header), splat(factor)), zero_f32()

    def finish(b, scale, _minimum, a, _m):
        return mul.emit(b, scale, a)

    return Steps(into, scales, finish, tokens)


def _float_steps(load: Any, column_bytes: int) -> Steps:
    """f16 and f32: one column of 16 rows at a time against float32 activations."""
    def into(tokens: int) -> Any:
        add = for_rows(_fma_splat, tokens, f32x16, f32x16, AT, Row(f32x16))

        @inlined
        def block(w, x, stride, a, m):
            for i in range(BLOCK):
                a = add(load(w + i * column_bytes), x + 4 * i, stride, a)
            return a, m

        return block

    return Steps(into, _no_scales, _finished, _FEWER)


STEPS: dict[str, Steps] = {
    "q4": _affine_steps(_q4_pair, FORMATS["q4"].block_bytes, widen_often=False),
    "q6": _affine_steps(_q6_pair, FORMATS["q6"].block_bytes, widen_often=True),
    "q8": _q8_steps(_q8_pair, FORMATS["q8"].block_bytes),
    "f16": _float_steps(load_f16x16, 2 * TILE),
    "f32": _float_steps(load_f32x16, 4 * TILE),
    "q2": _affine_steps(_q4_base_pair, FORMATS["q2"].block_bytes, widen_often=False, tokens=_FEWER,
                        scales=_scaled_header(0.25)),
    "q3": _affine_steps(_q3_pair, FORMATS["q3"].block_bytes, widen_often=False, tokens=_FEWER,
                        scales=_scaled_header(0.5)),
    "ternary": _affine_steps(_q4_base_pair, FORMATS["ternary"].block_bytes, widen_often=False, tokens=_FEWER,
                             scales=_ternary_header, load=load_f16x16, apart=0),
    "q4n": _q4n_steps(_q4n_vectors, FORMATS["q4n"].block_bytes, _FEWER),
}

BASE_STEPS: dict[str, Steps] = {
    "q4": _affine_steps(_q4_base_pair, FORMATS["q4"].base_bytes, widen_often=False, middle=FORMATS["q4"].middle,
                        tokens=(1,)),
    "q6": _affine_steps(_q6_base_pair, FORMATS["q6"].base_bytes, widen_often=True, middle=FORMATS["q6"].middle,
                        tokens=(1,)),
    "q8": _q8_steps(_q8_base_pair, FORMATS["q8"].base_bytes, (1,)),
    "q3": _affine_steps(_q4_base_pair, FORMATS["q3"].base_bytes, widen_often=False, middle=2 * FORMATS["q3"].middle,
                        tokens=(1,), scales=_scaled_header(0.5)),
    "q4n": _q4n_steps(_q4n_base_vectors, FORMATS["q4n"].base_bytes, (1,)),
}
"""Of base planes alone, one token at a time."""
