"""RMSNorm (Zhang and Sennrich 2019), LayerNorm (Ba et al. 2016), and quantizing a row of activations."""

import numpy as np

from .activation import quantize_pair, quantize_row
from .decorators import kernel
from .formats import FINE_BLOCK, FLOAT_BLOCK, QUANTIZED_BLOCK
from .records import NORM, QUANTIZE, STATE
from .simd.arithmetic import add, fma, keep_first, mul, reduce_add, splat, square_root, sub, zero_f32
from .simd.memory import load_f32, load_f32x16, load_i64, store_f32x16, store_i64
from .state import take

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@kernel
def norm(op, state):
    """x / sqrt(mean(x**2) + epsilon) * weight, for every new token, or for the rows that the output head computes."""
    x, x_stride, weight = load_i64(op + NORM.x), load_i64(op + NORM.x_stride), load_i64(op + NORM.weight)
    columns, blocks, epsilon = load_i64(op + NORM.columns), load_i64(op + NORM.blocks), load_f32(op + NORM.epsilon)
    floats, floats_stride = load_i64(op + NORM.floats), load_i64(op + NORM.floats_stride)
    quantized, quantized_stride = load_i64(op + NORM.quantized), load_i64(op + NORM.quantized_stride)
    fine, fine_stride = load_i64(op + NORM.fine), load_i64(op + NORM.fine_stride)
    selected = load_i64(op + NORM.of_selected)
    rows = load_i64(state + (STATE.selected if selected else STATE.tokens))
    row = take(state, 1)
    while row < rows:
        at = x + (load_i64(load_i64(state + STATE.selected_rows) + 8 * row) if selected else row) * x_stride
        squares = zero_f32()
        for column in range(0, blocks * FLOAT_BLOCK, 64):
            v = load_f32x16(at + column)
            squares = fma(v, v, squares)
        total = reduce_add(squares)
        if total * _ZERO != _ZERO:  # too large to square: the rest would come out as zeros
            store_i64(state + STATE.error, 1)
        scale = splat(_ONE / square_root(total / np.float32(columns) + epsilon))
        for block in range(blocks):
            column = block * FLOAT_BLOCK
            low = mul(mul(load_f32x16(at + column), scale), load_f32x16(weight + column))
            high = mul(mul(load_f32x16(at + column + 64), scale), load_f32x16(weight + column + 64))
            if floats:
                store_f32x16(floats + row * floats_stride + column, low)
                store_f32x16(floats + row * floats_stride + column + 64, high)
            if quantized or fine:
                quantize_pair(low, high,
                              quantized + row * quantized_stride + block * QUANTIZED_BLOCK if quantized else 0,
                              fine + row * fine_stride + block * FINE_BLOCK if fine else 0, state + STATE.error)
        row = take(state, 1)


@kernel
def layer_norm(op, state):
    """(x - mean(x)) / sqrt(mean((x - mean(x))**2) + epsilon) * weight (+ bias), for the same rows as `norm`."""
    x, x_stride, weight = load_i64(op + NORM.x), load_i64(op + NORM.x_stride), load_i64(op + NORM.weight)
    columns, blocks, epsilon = load_i64(op + NORM.columns), load_i64(op + NORM.blocks), load_f32(op + NORM.epsilon)
    floats, floats_stride = load_i64(op + NORM.floats), load_i64(op + NORM.floats_stride)
    quantized, quantized_stride = load_i64(op + NORM.quantized), load_i64(op + NORM.quantized_stride)
    fine, fine_stride = load_i64(op + NORM.fine), load_i64(op + NORM.fine_stride)
    selected, bias = load_i64(op + NORM.of_selected), load_i64(op + NORM.bias)
    rows = load_i64(state + (STATE.selected if selected else STATE.tokens))
    row = take(state, 1)
    while row < rows:
        at = x + (load_i64(load_i64(state + STATE.selected_rows) + 8 * row) if selected else row) * x_stride
        sums = zero_f32()
        for column in range(0, columns, 16):
            sums = add(sums, keep_first(load_f32x16(at + 4 * column), columns - column, _ZERO))
        mean, squares = splat(reduce_add(sums) / np.float32(columns)), zero_f32()
        for column in range(0, columns, 16):
            v = keep_first(sub(load_f32x16(at + 4 * column), mean), columns - column, _ZERO)
            squares = fma(v, v, squares)
        total = reduce_add(squares)
        if total * _ZERO != _ZERO:
            store_i64(state + STATE.error, 1)
        scale = splat(_ONE / square_root(total / np.float32(columns) + epsilon))
        for block in range(blocks):
            column = block * FLOAT_BLOCK
            low = fma(mul(sub(load_f32x16(at + column), mean), scale), load_f32x16(weight + column),
                      load_f32x16(bias + column) if bias else zero_f32())
            high = fma(mul(sub(load_f32x16(at + column + 64), mean), scale), load_f32x16(weight + column + 64),
                       load_f32x16(bias + column + 64) if bias else zero_f32())
            if floats:
                store_f32x16(floats + row * floats_stride + column, low)
                store_f32x16(floats + row * floats_stride + column + 64, high)
            if quantized or fine:
                quantize_pair(low, high,
                              quantized + row * quantized_stride + block * QUANTIZED_BLOCK if quantized else 0,
                              fine + row * fine_stride + block * FINE_BLOCK if fine else 0, state + STATE.error)
        row = take(state, 1)


@kernel
def quantize(op, state):
    """Each new token's float32 row to blocks."""
    x, x_stride, blocks = load_i64(op + QUANTIZE.x), load_i64(op + QUANTIZE.x_stride), load_i64(op + QUANTIZE.blocks)
    quantized, quantized_stride = load_i64(op + QUANTIZE.quantized), load_i64(op + QUANTIZE.quantized_stride)
    fine, fine_stride = load_i64(op + QUANTIZE.fine), load_i64(op + QUANTIZE.fine_stride)
    tokens = load_i64(state + STATE.tokens)
    token = take(state, 1)
    while token < tokens:
        quantize_row(x + token * x_stride, blocks, quantized + token * quantized_stride if quantized else 0,
                     fine + token * fine_stride if fine else 0, state + STATE.error)
        token = take(state, 1)
