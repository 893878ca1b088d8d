"""Rotary positions (Su et al. 2021, "RoFormer"), and putting keys and values into the cache."""

from typing import Any

from .cache import STORE, key_tile, value_row
from .decorators import kernel
from .records import CACHE_ELEMENTS, POSITIONS, ROPE, STATE, TOKEN, TOKEN_BYTES
from .simd.memory import load_f32, load_i64, store_f32
from .state import share, take


@kernel
def _rotate(x, angles, head_dim, interleaved):
    """One head in place; angles: head_dim / 2 cosines, then as many sines."""
    half = head_dim // 2
    for i in range(half):
        first = x + (8 * i if interleaved else 4 * i)
        second = first + (4 if interleaved else 4 * half)
        cosine, sine = load_f32(angles + 4 * i), load_f32(angles + 4 * (half + i))
        a, b = load_f32(first), load_f32(second)
        store_f32(first, a * cosine - b * sine)
        store_f32(second, b * cosine + a * sine)


def _store_kernel(element: str) -> Any:
    """A kernel that puts one head's key and value, float32, into the cache: (token, layer, kv_head, kv_heads, head_dim,
    key, value)."""
    size, store = CACHE_ELEMENTS[element], STORE[element]

    @kernel
    def put(token, layer, kv_head, kv_heads, head_dim, key, value):
        slot = load_i64(token + TOKEN.slot)
        tile = key_tile(token, layer, kv_head, head_dim, slot, size) + slot % POSITIONS * size
        values = value_row(token, layer, kv_head, kv_heads, head_dim, slot, size)
        for i in range(head_dim):
            store(tile + i * POSITIONS * size, load_f32(key + 4 * i))
            store(values + i * size, load_f32(value + 4 * i))

    return put


_put_f16, _put_f32 = (_store_kernel(element) for element in CACHE_ELEMENTS)


@kernel
def rope(op, state):
    """Rotate every new token's queries and keys, and put keys and values into its session's cache."""
    element, qkv, stride = load_i64(op + ROPE.element), load_i64(op + ROPE.qkv), load_i64(op + ROPE.qkv_stride)
    heads, kv_heads, head_dim = load_i64(op + ROPE.heads), load_i64(op + ROPE.kv_heads), load_i64(op + ROPE.head_dim)
    layer, interleaved = load_i64(op + ROPE.layer), load_i64(op + ROPE.interleaved)
    jobs = heads + kv_heads
    items = load_i64(state + STATE.tokens) * jobs
    chunk = share(state, items, 4)
    first = take(state, chunk)
    while first < items:
        for item in range(first, min(first + chunk, items)):
            number, head = item // jobs, item % jobs
            token = load_i64(state + STATE.token_records) + number * TOKEN_BYTES
            x = qkv + number * stride + head * head_dim * 4
            _rotate(x, load_i64(token + TOKEN.angles), head_dim, interleaved)
            if head >= heads:
                value = x + kv_heads * head_dim * 4
                if element == 0:
                    _put_f16(token, layer, head - heads, kv_heads, head_dim, x, value)
                else:
                    _put_f32(token, layer, head - heads, kv_heads, head_dim, x, value)
        first = take(state, chunk)
