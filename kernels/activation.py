"""Activations: a token's vector as float32, and quantized to int8 in blocks of 32.

A quantized block is 48 bytes: 32 int8 q in -127..127, float32 scale, float32 scale * sum(q), int32 sum(q), 4 unused.
"""

import numpy as np

from .compiled import inlined
from .formats import FLOAT_BLOCK, QUANTIZED_BLOCK
from .simd.arithmetic import absolute, add, maximum, mul, reduce_add, reduce_add_i32, reduce_max, round_i32, splat
from .simd.memory import load_f32x16, store_f32, store_i8x16, store_i32, store_i64

SCALE, SCALED_SUM, SUM = 32, 36, 40
"""Offsets in a quantized block."""

_F127, _INVERSE_127, _ZERO, _TINY = (np.float32(x) for x in (127.0, 1 / 127, 0.0, 1e-30))


@inlined
def quantize_pair(low, high, out, error):
    """32 float32 (two vectors) to one quantized block at `out`. A value that is not finite sets int64 `error` to 1."""
    largest = reduce_max(maximum(absolute(low), absolute(high)))
    # 0 * x is 0 for what is finite and NaN for what is not, and a sum keeps a NaN where a maximum may drop it.
    if reduce_add(add(mul(low, splat(_ZERO)), mul(high, splat(_ZERO)))) != _ZERO:
        store_i64(error, 1)
    inverse = splat(_F127 / largest if largest > _TINY else _ZERO)
    low_q, high_q = round_i32(mul(low, inverse)), round_i32(mul(high, inverse))
    store_i8x16(out, low_q)
    store_i8x16(out + 16, high_q)
    total = reduce_add_i32(low_q) + reduce_add_i32(high_q)
    scale = largest * _INVERSE_127
    store_f32(out + SCALE, scale)
    store_f32(out + SCALED_SUM, scale * np.float32(total))
    store_i32(out + SUM, total)


@inlined
def quantize_row(x, blocks, out, error):
    """`blocks` * 32 float32 at x to as many quantized blocks at `out`."""
    for block in range(blocks):
        at = x + block * FLOAT_BLOCK
        quantize_pair(load_f32x16(at), load_f32x16(at + 64), out + block * QUANTIZED_BLOCK, error)
