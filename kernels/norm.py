"""RMSNorm (Zhang and Sennrich 2019), and quantizing a row of activations."""

import numpy as np

from .activation import quantize_pair, quantize_row
from .decorators import kernel
from .formats import QUANTIZED_BLOCK
from .records import Norm, Quantize, offsets
from .simd.arithmetic import fma, mul, reduce_add, splat, square_root, zero_f32
from .simd.memory import load_f32, load_f32x16, load_i64, store_f32x16, store_i64
from .state import ERROR, SELECTED, SELECTED_ROWS, TOKENS, take

(X, X_STRIDE, WEIGHT, COLUMNS, BLOCKS, EPSILON, OUT, OUT_STRIDE, OUT_QUANTIZED, OUT_QUANTIZED_STRIDE,
 OF_SELECTED) = offsets(Norm)
_, _, ROW_BLOCKS, ROW_OUT, ROW_OUT_STRIDE = offsets(Quantize)

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@kernel
def norm(op, state):
    """x / sqrt(mean(x**2) + epsilon) * weight, for every new token, or for the rows that the output head computes."""
    x, x_stride, weight = load_i64(op + X), load_i64(op + X_STRIDE), load_i64(op + WEIGHT)
    columns, blocks, epsilon = load_i64(op + COLUMNS), load_i64(op + BLOCKS), load_f32(op + EPSILON)
    out, out_stride = load_i64(op + OUT), load_i64(op + OUT_STRIDE)
    quantized, quantized_stride = load_i64(op + OUT_QUANTIZED), load_i64(op + OUT_QUANTIZED_STRIDE)
    selected = load_i64(op + OF_SELECTED)
    rows = load_i64(state + SELECTED) if selected else load_i64(state + TOKENS)
    row = take(state, 1)
    while row < rows:
        at = x + (load_i64(load_i64(state + SELECTED_ROWS) + 8 * row) if selected else row) * x_stride
        squares = zero_f32()
        for column in range(0, blocks * 128, 64):
            v = load_f32x16(at + column)
            squares = fma(v, v, squares)
        total = reduce_add(squares)
        if total * _ZERO != _ZERO:  # too large to square: the rest would come out as zeros
            store_i64(state + ERROR, 1)
        scale = splat(_ONE / square_root(total / np.float32(columns) + epsilon))
        for block in range(blocks):
            low = mul(mul(load_f32x16(at + block * 128), scale), load_f32x16(weight + block * 128))
            high = mul(mul(load_f32x16(at + block * 128 + 64), scale), load_f32x16(weight + block * 128 + 64))
            if out:
                store_f32x16(out + row * out_stride + block * 128, low)
                store_f32x16(out + row * out_stride + block * 128 + 64, high)
            if quantized:
                quantize_pair(low, high, quantized + row * quantized_stride + block * QUANTIZED_BLOCK, state + ERROR)
        row = take(state, 1)


@kernel
def quantize(op, state):
    """Each new token's float32 row to quantized blocks."""
    x, x_stride, blocks = load_i64(op + X), load_i64(op + X_STRIDE), load_i64(op + ROW_BLOCKS)
    out, out_stride = load_i64(op + ROW_OUT), load_i64(op + ROW_OUT_STRIDE)
    tokens = load_i64(state + TOKENS)
    token = take(state, 1)
    while token < tokens:
        quantize_row(x + token * x_stride, blocks, out + token * out_stride, state + ERROR)
        token = take(state, 1)
