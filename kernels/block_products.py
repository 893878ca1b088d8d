"""Weights meeting activations: one block of 16 rows x 32 columns against 1 or 4 tokens, for each weight format.

A product is kept as two sums a row until all blocks are in: A = sum of scale * s * dot(q, x) and M = sum of m * sum(x),
so that y = D * A - M' * M. `finish` does that; for formats without minima M stays zero. Every token's sums go through
the same operations in the same order whether it comes alone or with three others.
"""

from typing import Any, NamedTuple

from .activation import FINE, FINE_SCALE, FINE_SUM, SCALE, SCALED_SUM
from .decorators import inlined
from .formats import BLOCK, FLOAT_BLOCK, FORMATS, QUANTIZED_BLOCK, TILE
from .simd.arithmetic import fma, mul, sub
from .simd.dot import (
    dot,
    dot_offset,
    high_nibbles,
    low_nibbles,
    plus_128_times,
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


class Steps(NamedTuple):
    """The pieces of one weight format, for the matrix kernels to be built from."""

    activation_block: int
    one: Any
    """(w, x, a, m) -> (a, m): one block into one token's sums."""
    four: Any
    """(w, x, stride, a0..a3, m0..m3) -> the same eight: one block into four tokens' sums, `stride` apart."""
    finish: Any
    """(header, a, m) -> y: 16 rows' results."""


@inlined
def _q4_quads(w):
    v0, v1, v2, v3 = load_i8x64(w), load_i8x64(w + 64), load_i8x64(w + 128), load_i8x64(w + 192)
    return (low_nibbles(v0), high_nibbles(v0), low_nibbles(v1), high_nibbles(v1),
            low_nibbles(v2), high_nibbles(v2), low_nibbles(v3), high_nibbles(v3))


@inlined
def _q6_quads(w):
    n0, n1, n2, n3, n4, n5, n6, n7 = _q4_quads(w)
    p, r = load_i8x64(w + 256), load_i8x64(w + 320)
    return (with_bits_0(n0, p), with_bits_2(n1, p), with_bits_4(n2, p), with_bits_6(n3, p),
            with_bits_0(n4, r), with_bits_2(n5, r), with_bits_4(n6, r), with_bits_6(n7, r))


@inlined
def _q8_quads(w):
    return (load_i8x64(w), load_i8x64(w + 64), load_i8x64(w + 128), load_i8x64(w + 192),
            load_i8x64(w + 256), load_i8x64(w + 320), load_i8x64(w + 384), load_i8x64(w + 448))


def _block_dot(dot_product: Any) -> Any:
    """(total, q, x): total + a block's dot products with the 32 int8 at x."""
    @inlined
    def block_dot(total, q, x):
        total = dot_product(total, q[0], splat_4bytes(x))
        total = dot_product(total, q[1], splat_4bytes(x + 4))
        total = dot_product(total, q[2], splat_4bytes(x + 8))
        total = dot_product(total, q[3], splat_4bytes(x + 12))
        total = dot_product(total, q[4], splat_4bytes(x + 16))
        total = dot_product(total, q[5], splat_4bytes(x + 20))
        total = dot_product(total, q[6], splat_4bytes(x + 24))
        return dot_product(total, q[7], splat_4bytes(x + 28))

    return block_dot


_affine_dot = _block_dot(dot)
_offset_dot = _block_dot(dot_offset)


@inlined
def _fine_dot(q, x):
    """The same of 8-bit weights with the 15-bit activations; at most 127 * 127 * 128 * 32 < 2**31."""
    fine = _offset_dot(start_offset(load_i32(x + FINE_SUM)), q, x + FINE)
    return plus_128_times(fine, _offset_dot(zero_i32(), q, x))


def _affine_steps(quads: Any, block_bytes: int) -> Steps:
    """q4 and q6: unsigned weights, 8-bit scales and minima at the end of the block."""
    scales, minima = block_bytes - 32, block_bytes - 16

    @inlined
    def into(q, s, m, x, a, b):
        a = fma(to_f32(_affine_dot(zero_i32(), q, x)), mul(s, splat_f32(x + SCALE)), a)
        return a, fma(m, splat_f32(x + SCALED_SUM), b)

    @inlined
    def one(w, x, a, b):
        return into(quads(w), load_u8x16(w + scales), load_u8x16(w + minima), x, a, b)

    @inlined
    def four(w, x, stride, a0, a1, a2, a3, b0, b1, b2, b3):
        q, s, m = quads(w), load_u8x16(w + scales), load_u8x16(w + minima)
        a0, b0 = into(q, s, m, x, a0, b0)
        a1, b1 = into(q, s, m, x + stride, a1, b1)
        a2, b2 = into(q, s, m, x + 2 * stride, a2, b2)
        a3, b3 = into(q, s, m, x + 3 * stride, a3, b3)
        return a0, a1, a2, a3, b0, b1, b2, b3

    @inlined
    def finish(header, a, b):
        return sub(mul(load_bf16x16(header), a), mul(load_bf16x16(header + 32), b))

    return Steps(QUANTIZED_BLOCK, one, four, finish)


@inlined
def _finished(_header, a, _b):
    return a


def _q8_steps() -> Steps:
    @inlined
    def into(q, s, x, a):
        return fma(to_f32(_fine_dot(q, x)), mul(s, splat_f32(x + FINE_SCALE)), a)

    @inlined
    def one(w, x, a, b):
        return into(_q8_quads(w), load_bf16x16(w + 512), x, a), b

    @inlined
    def four(w, x, stride, a0, a1, a2, a3, b0, b1, b2, b3):
        q, s = _q8_quads(w), load_bf16x16(w + 512)
        return (into(q, s, x, a0), into(q, s, x + stride, a1), into(q, s, x + 2 * stride, a2),
                into(q, s, x + 3 * stride, a3), b0, b1, b2, b3)

    return Steps(QUANTIZED_BLOCK, one, four, _finished)


def _float_steps(load: Any, column_bytes: int) -> Steps:
    """f16 and f32: one column of 16 rows at a time against float32 activations."""
    @inlined
    def one(w, x, a, b):
        for i in range(BLOCK):
            a = fma(load(w + i * column_bytes), splat_f32(x + 4 * i), a)
        return a, b

    @inlined
    def four(w, x, stride, a0, a1, a2, a3, b0, b1, b2, b3):
        for i in range(BLOCK):
            v, at = load(w + i * column_bytes), x + 4 * i
            a0 = fma(v, splat_f32(at), a0)
            a1 = fma(v, splat_f32(at + stride), a1)
            a2 = fma(v, splat_f32(at + 2 * stride), a2)
            a3 = fma(v, splat_f32(at + 3 * stride), a3)
        return a0, a1, a2, a3, b0, b1, b2, b3

    return Steps(FLOAT_BLOCK, one, four, _finished)


STEPS: dict[str, Steps] = {
    "q4": _affine_steps(_q4_quads, FORMATS["q4"].block_bytes),
    "q6": _affine_steps(_q6_quads, FORMATS["q6"].block_bytes),
    "q8": _q8_steps(),
    "f16": _float_steps(load_f16x16, 2 * TILE),
    "f32": _float_steps(load_f32x16, 4 * TILE),
}
