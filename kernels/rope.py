"""Rotary positions (Su et al. 2021, "RoFormer"), and putting keys and values into the cache."""

from typing import Any

from .cache import key_store, keys_of, value_store
from .decorators import kernel
from .pages import CACHE_TYPES, PAGE
from .records import ROPE, STATE, TOKEN, TOKEN_BYTES
from .simd.memory import load_f32, load_i64, store_f32
from .state import share, take


@kernel
def _rotate(x, angles, dim, interleaved):
    """The first `dim` components of one head in place; angles: dim / 2 cosines, then as many sines."""
    half = dim // 2
    for i in range(half):
        first = x + (8 * i if interleaved else 4 * i)
        second = first + (4 if interleaved else 4 * half)
        cosine, sine = load_f32(angles + 4 * i), load_f32(angles + 4 * (half + i))
        a, b = load_f32(first), load_f32(second)
        store_f32(first, a * cosine - b * sine)
        store_f32(second, b * cosine + a * sine)


def _store_kernel(cache_type: str) -> Any:
    """A kernel that puts one head's key and value, float32, into the cache: (token, layer, kv_head, head_dim, key,
    value)."""
    put_key, put_value = key_store(CACHE_TYPES[cache_type][0]), value_store(CACHE_TYPES[cache_type][1])

    @kernel
    def put(token, layer, kv_head, head_dim, key, value):
        slot = load_i64(token + TOKEN.slot)
        keys = keys_of(token, layer, kv_head, slot)
        put_key(keys, slot % PAGE, head_dim, key)
        put_value(keys + load_i64(token + TOKEN.key_bytes), slot % PAGE, head_dim, value)

    return put


_put_f16, _put_f32, _put_q8, _put_q4 = (_store_kernel(cache_type) for cache_type in CACHE_TYPES)


@kernel
def rope(op, state):
    """Rotate every new token's queries and keys, and put keys and values into its session's cache. Keys in `qkv` are
    what is put there, before it is rounded."""
    cache_type, qkv, stride = load_i64(op + ROPE.cache_type), load_i64(op + ROPE.qkv), load_i64(op + ROPE.qkv_stride)
    heads, kv_heads, head_dim = load_i64(op + ROPE.heads), load_i64(op + ROPE.kv_heads), load_i64(op + ROPE.head_dim)
    layer, interleaved = load_i64(op + ROPE.layer), load_i64(op + ROPE.interleaved)
    centers, dim, table = load_i64(op + ROPE.centers), load_i64(op + ROPE.rotary_dim), load_i64(op + ROPE.table)
    jobs = heads + kv_heads
    items = load_i64(state + STATE.tokens) * jobs
    chunk = share(state, items, 4)
    first = take(state, chunk)
    while first < items:
        for item in range(first, min(first + chunk, items)):
            number, head = item // jobs, item % jobs
            token = load_i64(state + STATE.token_records) + number * TOKEN_BYTES
            x = qkv + number * stride + head * head_dim * 4
            _rotate(x, load_i64(token + TOKEN.angles) + table, dim, interleaved)
            if head >= heads:
                value = x + kv_heads * head_dim * 4
                if centers and cache_type >= 2:
                    for i in range(head_dim):
                        center = load_f32(centers + 4 * ((head - heads) * head_dim + i))
                        store_f32(x + 4 * i, load_f32(x + 4 * i) - center)
                if cache_type == 0:
                    _put_f16(token, layer, head - heads, head_dim, x, value)
                elif cache_type == 1:
                    _put_f32(token, layer, head - heads, head_dim, x, value)
                elif cache_type == 2:
                    _put_q8(token, layer, head - heads, head_dim, x, value)
                else:
                    _put_q4(token, layer, head - heads, head_dim, x, value)
        first = take(state, chunk)
