"""What stands around attention and feed-forward part in some families: norms of queries and keys, and of what is added
to the residual stream; and what is done to logits."""

import numpy as np

from .decorators import kernel
from .functions import tanh
from .records import ADD, HEAD_NORMS, SCALE, STATE
from .simd.arithmetic import div, fma, keep_first, mul, reduce_add, splat, square_root, zero_f32
from .simd.memory import load_f32, load_f32x16, load_i64, store_f32, store_f32x16, store_i64
from .state import share, take

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@kernel
def _root(x, columns, epsilon, state):
    """1 / sqrt(mean(x**2) + epsilon) of so many float32; nothing behind them is read."""
    squares = zero_f32()
    for column in range(0, columns - 15, 16):
        v = load_f32x16(x + 4 * column)
        squares = fma(v, v, squares)
    total = reduce_add(squares)
    for column in range(columns // 16 * 16, columns):
        total += load_f32(x + 4 * column) * load_f32(x + 4 * column)
    if total * _ZERO != _ZERO:  # too large to square: the rest would come out as zeros
        store_i64(state + STATE.error, 1)
    return _ONE / square_root(total / np.float32(columns) + epsilon)


@kernel
def _normalise(x, weight, columns, epsilon, state):
    """RMSNorm in place."""
    scale = _root(x, columns, epsilon, state)
    for column in range(0, columns - 15, 16):
        at = x + 4 * column
        store_f32x16(at, mul(mul(load_f32x16(at), splat(scale)), load_f32x16(weight + 4 * column)))
    for column in range(columns // 16 * 16, columns):
        at = x + 4 * column
        store_f32(at, load_f32(at) * scale * load_f32(weight + 4 * column))


@kernel
def head_norms(op, state):
    """Every new token's queries and keys in place (Henry et al. 2020, "Query-Key Normalization")."""
    heads, kv_heads, head_dim = (load_i64(op + HEAD_NORMS.heads), load_i64(op + HEAD_NORMS.kv_heads),
                                 load_i64(op + HEAD_NORMS.head_dim))
    epsilon = load_f32(op + HEAD_NORMS.epsilon)
    whole = load_i64(op + HEAD_NORMS.whole)
    queries = 1 if whole else heads
    jobs = 2 if whole else heads + kv_heads
    items = load_i64(state + STATE.tokens) * jobs
    chunk = share(state, items, 4)
    first = take(state, chunk)
    while first < items:
        for item in range(first, min(first + chunk, items)):
            number, job = item // jobs, item % jobs
            x = load_i64(op + HEAD_NORMS.qkv) + number * load_i64(op + HEAD_NORMS.qkv_stride)
            weight = load_i64(op + (HEAD_NORMS.query_weight if job < queries else HEAD_NORMS.key_weight))
            if not whole:
                _normalise(x + job * head_dim * 4, weight, head_dim, epsilon, state)
            elif job == 0:
                _normalise(x, weight, heads * head_dim, epsilon, state)
            else:
                _normalise(x + heads * head_dim * 4, weight, kv_heads * head_dim, epsilon, state)
        first = take(state, chunk)


@kernel
def add_part(op, state):
    """Every new token's row of y, normalised or not, times a number, to its row of x."""
    x, x_stride = load_i64(op + ADD.x), load_i64(op + ADD.x_stride)
    y, y_stride = load_i64(op + ADD.y), load_i64(op + ADD.y_stride)
    columns, weight, scale = load_i64(op + ADD.columns), load_i64(op + ADD.weight), splat(load_f32(op + ADD.scale))
    tokens = load_i64(state + STATE.tokens)
    token = take(state, 1)
    while token < tokens:
        source, to = y + token * y_stride, x + token * x_stride
        root = splat(_root(source, columns, load_f32(op + ADD.epsilon), state)) if weight else splat(_ONE)
        for column in range(0, columns, 16):
            v = load_f32x16(source + 4 * column)
            if weight:
                v = mul(mul(v, root), load_f32x16(weight + 4 * column))
            v = keep_first(v, columns - column, _ZERO)  # what is behind a row of x stays 0
            store_f32x16(to + 4 * column, fma(v, scale, load_f32x16(to + 4 * column)))
        token = take(state, 1)


@kernel
def scale_logits(op, state):
    """Every computed row of logits in place."""
    x, stride, tiles = load_i64(op + SCALE.x), load_i64(op + SCALE.x_stride), load_i64(op + SCALE.tiles)
    scale, cap = splat(load_f32(op + SCALE.scale)), load_f32(op + SCALE.cap)
    items = load_i64(state + STATE.selected) * tiles
    chunk = share(state, items, 4)
    first = take(state, chunk)
    while first < items:
        for item in range(first, min(first + chunk, items)):
            at = x + item // tiles * stride + item % tiles * 64
            v = mul(load_f32x16(at), scale)
            store_f32x16(at, mul(tanh(div(v, splat(cap))), splat(cap)) if cap != _ZERO else v)
        first = take(state, chunk)
