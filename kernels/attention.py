"""Rotary positions and grouped-query attention over the key-value cache.

The cache of a layer, per key-value head: keys in tiles of 16 positions, within a tile component by component (so that
a lane is a position), then the values, position by position. Elements are float16 or float32; a head's components are
padded to a multiple of 16 with zeros.
"""

from typing import Any

import numpy as np

from .decorators import kernel
from .functions import exp
from .records import POSITIONS, Attention, Rope, offsets
from .simd.arithmetic import add, div, fma, keep_first, maximum, mul, reduce_add, reduce_max, splat, sub, zero_f32
from .simd.memory import (
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    store_f16,
    store_f32,
    store_f32x16,
)
from .state import CACHE, CACHE_HEAD_BYTES, CACHE_LAYER_BYTES, POSITION, ROPE, TOKENS, share, take

QKV, QKV_STRIDE, HEADS, KV_HEADS, HEAD_DIM, LAYER, INTERLEAVED = offsets(Rope)
_, _, _, _, _, _, OUT, OUT_STRIDE, SCRATCH, SCRATCH_STRIDE, SCALE = offsets(Attention)

_LOWEST, _ZERO = np.float32(-3.0e38), np.float32(0.0)


@kernel
def _rotate(x, table, head_dim, interleaved):
    """One head in place; table: head_dim / 2 cosines, then as many sines. Su et al. 2021, "RoFormer"."""
    half = head_dim // 2
    for i in range(half):
        first = x + (8 * i if interleaved else 4 * i)
        second = first + (4 if interleaved else 4 * half)
        cosine, sine = load_f32(table + 4 * i), load_f32(table + 4 * (half + i))
        a, b = load_f32(first), load_f32(second)
        store_f32(first, a * cosine - b * sine)
        store_f32(second, b * cosine + a * sine)


def rope_kernel(size: int, store: Any) -> Any:
    """The operation: rotate every new token's queries and keys, and put keys and values into the cache."""
    @kernel
    def rope(op, state):
        qkv, stride = load_i64(op + QKV), load_i64(op + QKV_STRIDE)
        heads, kv_heads, head_dim = load_i64(op + HEADS), load_i64(op + KV_HEADS), load_i64(op + HEAD_DIM)
        interleaved = load_i64(op + INTERLEAVED)
        head_bytes, start = load_i64(state + CACHE_HEAD_BYTES), load_i64(state + POSITION)
        cache = load_i64(state + CACHE) + load_i64(op + LAYER) * load_i64(state + CACHE_LAYER_BYTES)
        wide = (head_dim + 15) // 16 * 16
        jobs = heads + kv_heads
        items = load_i64(state + TOKENS) * jobs
        chunk = share(state, items, 4)
        first = take(state, chunk)
        while first < items:
            for item in range(first, min(first + chunk, items)):
                token, head = item // jobs, item % jobs
                position = start + token
                x = qkv + token * stride + head * head_dim * 4
                _rotate(x, load_i64(state + ROPE) + position * head_dim * 4, head_dim, interleaved)
                if head >= heads:
                    kv_head = head - heads
                    tile = cache + kv_head * head_bytes + position // POSITIONS * (wide * POSITIONS * size)
                    values = cache + (kv_heads + kv_head) * head_bytes + position * wide * size
                    source = x + kv_heads * head_dim * 4
                    for i in range(head_dim):
                        store(tile + (i * POSITIONS + position % POSITIONS) * size, load_f32(x + 4 * i))
                        store(values + i * size, load_f32(source + 4 * i))
            first = take(state, chunk)

    return rope


def attention_kernel(size: int, load: Any) -> Any:
    """The operation: softmax(q k / sqrt(d)) v for every new token and head, causal, in one pass over the cache.

    The softmax is online over tiles of 16 positions (Milakov and Gimelshein 2018; Dao et al. 2022, "FlashAttention").
    """
    @kernel
    def one_head(q, keys, values, length, head_dim, wide, scale, out, scratch):
        weights, sums = scratch, scratch + 64
        for i in range(0, wide * 4, 64):
            store_f32x16(sums + i, zero_f32())
        highest, total = splat(_LOWEST), zero_f32()
        for start in range(0, length, POSITIONS):
            tile = keys + start * wide * size
            s0, s1, s2, s3 = zero_f32(), zero_f32(), zero_f32(), zero_f32()
            for i in range(0, head_dim - 3, 4):
                s0 = fma(splat_f32(q + 4 * i), load(tile + i * POSITIONS * size), s0)
                s1 = fma(splat_f32(q + 4 * i + 4), load(tile + (i + 1) * POSITIONS * size), s1)
                s2 = fma(splat_f32(q + 4 * i + 8), load(tile + (i + 2) * POSITIONS * size), s2)
                s3 = fma(splat_f32(q + 4 * i + 12), load(tile + (i + 3) * POSITIONS * size), s3)
            for i in range(head_dim // 4 * 4, head_dim):
                s0 = fma(splat_f32(q + 4 * i), load(tile + i * POSITIONS * size), s0)
            count = min(length - start, POSITIONS)
            scores = keep_first(mul(add(add(s0, s1), add(s2, s3)), splat(scale)), count, _LOWEST)
            above = maximum(highest, splat(reduce_max(scores)))
            correction = exp(sub(highest, above))
            # exp makes a number even of NaN; 0 * score adds nothing, or NaN for a score that is not finite.
            chances = keep_first(fma(scores, splat(_ZERO), exp(sub(scores, above))), count, _ZERO)
            highest = above
            total = fma(total, correction, splat(reduce_add(chances)))
            store_f32x16(weights, chances)
            tile = values + start * wide * size
            for i in range(0, wide - 31, 32):
                a = mul(load_f32x16(sums + 4 * i), correction)
                b = mul(load_f32x16(sums + 4 * i + 64), correction)
                for j in range(count):
                    p = splat_f32(weights + 4 * j)
                    a = fma(p, load(tile + (j * wide + i) * size), a)
                    b = fma(p, load(tile + (j * wide + i + 16) * size), b)
                store_f32x16(sums + 4 * i, a)
                store_f32x16(sums + 4 * i + 64, b)
            if wide % 32:
                i = wide - 16
                a = mul(load_f32x16(sums + 4 * i), correction)
                for j in range(count):
                    a = fma(splat_f32(weights + 4 * j), load(tile + (j * wide + i) * size), a)
                store_f32x16(sums + 4 * i, a)
        for i in range(0, wide * 4, 64):
            store_f32x16(sums + i, div(load_f32x16(sums + i), total))
        for i in range(0, head_dim * 4, 4):
            store_f32(out + i, load_f32(sums + i))

    @kernel
    def attention(op, state, thread):
        qkv, stride = load_i64(op + QKV), load_i64(op + QKV_STRIDE)
        heads, kv_heads, head_dim = load_i64(op + HEADS), load_i64(op + KV_HEADS), load_i64(op + HEAD_DIM)
        out, out_stride, scale = load_i64(op + OUT), load_i64(op + OUT_STRIDE), load_f32(op + SCALE)
        scratch = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
        head_bytes, start = load_i64(state + CACHE_HEAD_BYTES), load_i64(state + POSITION)
        cache = load_i64(state + CACHE) + load_i64(op + LAYER) * load_i64(state + CACHE_LAYER_BYTES)
        wide = (head_dim + 15) // 16 * 16
        items = load_i64(state + TOKENS) * heads
        item = take(state, 1)
        while item < items:
            # The last tokens see most: they go first, so that the threads end together.
            token, head = (items - 1 - item) // heads, (items - 1 - item) % heads
            kv_head = head * kv_heads // heads
            one_head(qkv + token * stride + head * head_dim * 4, cache + kv_head * head_bytes,
                     cache + (kv_heads + kv_head) * head_bytes, start + token + 1, head_dim, wide, scale,
                     out + token * out_stride + head * head_dim * 4, scratch)
            item = take(state, 1)

    return attention


ROPE_KERNELS: dict[str, Any] = {"f16": rope_kernel(2, store_f16), "f32": rope_kernel(4, store_f32)}
ATTENTION_KERNELS: dict[str, Any] = {"f16": attention_kernel(2, load_f16x16), "f32": attention_kernel(4, load_f32x16)}
