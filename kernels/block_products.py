"""Weights meeting activations: one block of 16 rows x 32 columns against one or several tokens, for each weight format.

A product is kept as two sums a row until all blocks are in: A = sum of scale * s * dot(q, x) and M = sum of m * sum(x),
so that y = D * A - M' * M. `finish` does that; for formats without minima M stays zero. Every token's sums go through
the same operations in the same order whether it comes alone or with others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .activation import FINE, FINE_SCALE, FINE_SUM, SCALE, SCALED_SUM
from .decorators import inlined
from .formats import BLOCK, FORMATS, TILE
from .simd.arithmetic import fma, mul, sub, zero_f32
from .simd.dot import (
    add_products,
    begin_products,
    dot_offset,
    end_products,
    high_nibbles,
    low_nibbles,
    plus_128_times,
    settled,
    start_offset,
    to_f32,
    with_bits_0,
    with_bits_2,
    with_bits_4,
    with_bits_6,
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
from .simd.target import choose
from .unrolled import for_rows, for_rows_of_two, repeated

TOKENS = choose().tokens
"""How many tokens meet a block at once: the largest first, the last is 1."""


class Steps(NamedTuple):
    """The pieces of one weight format, for the matrix kernels to be built from."""

    into: Callable[[int], Any]
    """into(n)(w, x, stride, sums) -> sums: one block into the sums (A, M) of n tokens, `stride` bytes apart."""
    finish: Any
    """(header, (a, m)) -> y: 16 rows' results."""


@inlined
def _zeros():
    return zero_f32(), zero_f32()


def no_sums(tokens: int) -> Any:
    """A function that gives the sums of so many tokens, all zero."""
    return repeated(_zeros, tokens)


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


def _products_of(pair: int, *, settle: bool) -> Any:
    @inlined
    def step(quads, x, products):
        low, high = quads
        products = add_products(products, low, splat_4bytes(x + 8 * pair))
        products = add_products(products, high, splat_4bytes(x + 8 * pair + 4))
        return settled(products) if settle else products

    return step


@inlined
def _begin(_shared, _x, total):
    return begin_products(total)


@inlined
def _end(_shared, _x, total, products):
    return end_products(total, products)


def _affine_steps(quads_of: Callable[[int], Any], block_bytes: int, pairs_at_once: int) -> Steps:
    """q4 and q6: unsigned weights, 8-bit scales and minima at the end of the block.

    quads_of(n): (w) -> quads 2n and 2n + 1. pairs_at_once: so many such pairs' products fit 16 bits.
    """
    scales, minima = block_bytes - 32, block_bytes - 16
    quads_0, quads_1, quads_2, quads_3 = (quads_of(n) for n in range(4))
    widen_often = pairs_at_once == 1

    @inlined
    def put(shared, x, total, sums):
        s, m = shared
        a, b = sums
        return fma(to_f32(total), mul(s, splat_f32(x + SCALE)), a), fma(m, splat_f32(x + SCALED_SUM), b)

    def into(tokens: int) -> Any:
        no_totals, begin, end = repeated(zero_i32, tokens), for_rows(_begin, tokens), for_rows_of_two(_end, tokens)
        add_0, add_1, add_2, add_3 = (for_rows(_products_of(n, settle=tokens > 1), tokens) for n in range(4))
        put_all = for_rows_of_two(put, tokens)

        @inlined
        def block(w, x, stride, sums):
            total = no_totals()
            products = add_0(quads_0(w), x, stride, begin(0, x, stride, total))
            if widen_often:
                total = end(0, x, stride, total, products)
                products = begin(0, x, stride, total)
            products = add_1(quads_1(w), x, stride, products)
            if widen_often:
                total = end(0, x, stride, total, products)
                products = begin(0, x, stride, total)
            products = add_2(quads_2(w), x, stride, products)
            if widen_often:
                total = end(0, x, stride, total, products)
                products = begin(0, x, stride, total)
            products = add_3(quads_3(w), x, stride, products)
            total = end(0, x, stride, total, products)
            return put_all((load_u8x16(w + scales), load_u8x16(w + minima)), x, stride, total, sums)

        return block

    @inlined
    def finish(header, sums):
        a, b = sums
        return sub(mul(load_bf16x16(header), a), mul(load_bf16x16(header + 32), b))

    return Steps(into, finish)


@inlined
def _finished(_header, sums):
    return sums[0]


@inlined
def _q8_dot(total, q, x):
    total = dot_offset(total, q[0], splat_4bytes(x))
    total = dot_offset(total, q[1], splat_4bytes(x + 4))
    total = dot_offset(total, q[2], splat_4bytes(x + 8))
    total = dot_offset(total, q[3], splat_4bytes(x + 12))
    total = dot_offset(total, q[4], splat_4bytes(x + 16))
    total = dot_offset(total, q[5], splat_4bytes(x + 20))
    total = dot_offset(total, q[6], splat_4bytes(x + 24))
    return dot_offset(total, q[7], splat_4bytes(x + 28))


def _q8_steps() -> Steps:
    """8-bit weights with the 15-bit activations; at most 127 * 127 * 128 * 32 < 2**31."""
    @inlined
    def put(shared, x, sums):
        q, s = shared
        a, b = sums
        fine = _q8_dot(start_offset(load_i32(x + FINE_SUM)), q, x + FINE)
        total = plus_128_times(fine, _q8_dot(zero_i32(), q, x))
        return fma(to_f32(total), mul(s, splat_f32(x + FINE_SCALE)), a), b

    def into(tokens: int) -> Any:
        put_all = for_rows(put, tokens)

        @inlined
        def block(w, x, stride, sums):
            q = (load_i8x64(w), load_i8x64(w + 64), load_i8x64(w + 128), load_i8x64(w + 192),
                 load_i8x64(w + 256), load_i8x64(w + 320), load_i8x64(w + 384), load_i8x64(w + 448))
            return put_all((q, load_bf16x16(w + 512)), x, stride, sums)

        return block

    return Steps(into, _finished)


def _float_steps(load: Any, column_bytes: int) -> Steps:
    """f16 and f32: one column of 16 rows at a time against float32 activations."""
    @inlined
    def put(v, x, sums):
        a, b = sums
        return fma(v, splat_f32(x), a), b

    def into(tokens: int) -> Any:
        put_all = for_rows(put, tokens)

        @inlined
        def block(w, x, stride, sums):
            for i in range(BLOCK):
                sums = put_all(load(w + i * column_bytes), x + 4 * i, stride, sums)
            return sums

        return block

    return Steps(into, _finished)


STEPS: dict[str, Steps] = {
    "q4": _affine_steps(_q4_pair, FORMATS["q4"].block_bytes, 4),
    "q6": _affine_steps(_q6_pair, FORMATS["q6"].block_bytes, 1),
    "q8": _q8_steps(),
    "f16": _float_steps(load_f16x16, 2 * TILE),
    "f32": _float_steps(load_f32x16, 4 * TILE),
}
