"""Activations: a token's vector as float32, and quantized in blocks of 32.

A quantized block is 80 bytes: 32 int8 q in -127..127, 32 int8 r in -64..64, then scale, scale * sum(q), scale / 128
(float32) and sum(128 * q + r) (int32). Weights of 4 and 6 bits take an activation to be scale * q; those of 8 bits,
beside which that would be the larger error, scale / 128 * (128 * q + r).
"""

import numpy as np

from .decorators import inlined
from .formats import FLOAT_BLOCK, QUANTIZED_BLOCK
from .simd.arithmetic import absolute, add, maximum, mul, reduce_add, reduce_add_i32, reduce_max, round_i32, splat
from .simd.dot import minus_128_times
from .simd.memory import load_f32x16, store_f32, store_i8x16, store_i32, store_i64

FINE, SCALE, SCALED_SUM, FINE_SCALE, FINE_SUM = 32, 64, 68, 72, 76
"""Offsets in a quantized block."""

_F127, _INVERSE_127, _ZERO, _TINY, _F128, _INVERSE_128 = (
    np.float32(x) for x in (127.0, 1 / 127, 0.0, 1e-30, 128.0, 1 / 128))


@inlined
def quantize_pair(low, high, out, error):
    """32 float32 (two vectors) to one quantized block at `out`. A value that is not finite sets int64 `error` to 1."""
    largest = reduce_max(maximum(absolute(low), absolute(high)))
    # 0 * x is 0 for what is finite and NaN for what is not, and a sum keeps a NaN where a maximum may drop it.
    if reduce_add(add(mul(low, splat(_ZERO)), mul(high, splat(_ZERO)))) != _ZERO:
        store_i64(error, 1)
    inverse = splat(_F127 / largest if largest > _TINY else _ZERO)
    low, high = mul(low, inverse), mul(high, inverse)
    low_q, high_q = round_i32(low), round_i32(high)
    low_r = minus_128_times(round_i32(mul(low, splat(_F128))), low_q)
    high_r = minus_128_times(round_i32(mul(high, splat(_F128))), high_q)
    store_i8x16(out, low_q)
    store_i8x16(out + 16, high_q)
    store_i8x16(out + FINE, low_r)
    store_i8x16(out + FINE + 16, high_r)
    total = reduce_add_i32(low_q) + reduce_add_i32(high_q)
    scale = largest * _INVERSE_127
    store_f32(out + SCALE, scale)
    store_f32(out + SCALED_SUM, scale * np.float32(total))
    store_f32(out + FINE_SCALE, scale * _INVERSE_128)
    store_i32(out + FINE_SUM, 128 * total + reduce_add_i32(low_r) + reduce_add_i32(high_r))


@inlined
def quantize_row(x, blocks, out, error):
    """`blocks` * 32 float32 at x to as many quantized blocks at `out`."""
    for block in range(blocks):
        at = x + block * FLOAT_BLOCK
        quantize_pair(load_f32x16(at), load_f32x16(at + 64), out + block * QUANTIZED_BLOCK, error)
