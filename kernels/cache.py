"""Where a session's keys and values stand, and putting them there. What a page looks like: pages.py."""

from typing import Any

import numpy as np

from .decorators import kernel
from .pages import ELEMENT_BYTES, GROUP, PAGE, POSITIONS
from .records import TOKEN
from .simd.memory import load_f16x16, load_f32, load_f32x16, load_i64, store_f16, store_f32, store_i8

LOAD: dict[str, Any] = {"f16": load_f16x16, "f32": load_f32x16}
"""Loads 16 elements as float32."""
_STORE: dict[str, Any] = {"f16": store_f16, "f32": store_f32}
"""Stores a float32 as one element."""
_ZERO, _MOST_Q8, _HALF, _MOST_Q4 = np.float32(0), np.float32(127), np.float32(0.5), np.float32(15)


@kernel
def keys_of(token, layer, kv_head, position):
    """Address of a head's keys in the page that a position is in. token: a records.Token of its session."""
    page = layer * load_i64(token + TOKEN.layer_pages) + position // PAGE
    return load_i64(load_i64(token + TOKEN.pages) + 8 * page) + kv_head * load_i64(token + TOKEN.head_bytes)


@kernel
def _largest(x, count):
    """The element of the largest size, with its sign; not a number if any element is not finite."""
    most, spoilt = _ZERO, _ZERO
    for i in range(count):
        element = load_f32(x + 4 * i)
        spoilt += element * _ZERO
        if abs(element) > abs(most):
            most = element
    return most + spoilt


@kernel
def _code_q8(x, inverse):
    """A code from -127 to 127."""
    return int(x * inverse + (_MOST_Q8 + _HALF)) - 127


@kernel
def _code_q4(x, inverse):
    """A code from 0 to 15; 8 is zero."""
    return int(min(x * inverse + np.float32(8.5), _MOST_Q4))


@kernel
def _scale(largest, most):
    """What a group's largest element is multiplied by to become `most`; 0 if all are 0."""
    return most / largest if largest != _ZERO else _ZERO


def key_store(kind: str) -> Any:
    """A kernel that puts a key, float32, at its place in a page: (page's keys, place, head_dim, key)."""
    if kind in _STORE:
        store, size = _STORE[kind], ELEMENT_BYTES[kind]

        @kernel
        def put(keys, place, head_dim, key):
            wide = (head_dim + 15) // 16 * 16
            tile = keys + place // POSITIONS * (wide * POSITIONS * size) + place % POSITIONS * size
            for i in range(head_dim):
                store(tile + i * POSITIONS * size, load_f32(key + 4 * i))

        return put

    @kernel
    def put_q8(keys, place, head_dim, key):
        wide = (head_dim + 15) // 16 * 16
        groups = (wide + GROUP - 1) // GROUP
        tile, lane = keys + place // POSITIONS * (wide * POSITIONS), place % POSITIONS
        scales = keys + wide * PAGE + place // POSITIONS * (groups * POSITIONS * 2) + lane * 2
        for group in range(groups):
            first, last = group * GROUP, min(group * GROUP + GROUP, head_dim)
            largest = _largest(key + 4 * first, last - first)
            inverse = abs(_scale(largest, _MOST_Q8))
            store_f16(scales + group * POSITIONS * 2, abs(largest) / _MOST_Q8)
            for i in range(first, last):
                store_i8(tile + i * POSITIONS + lane, _code_q8(load_f32(key + 4 * i), inverse))

    return put_q8


def value_store(kind: str) -> Any:
    """A kernel that puts a value, float32, at its place in a page: (page's values, place, head_dim, value)."""
    if kind in _STORE:
        store, size = _STORE[kind], ELEMENT_BYTES[kind]

        @kernel
        def put(values, place, head_dim, value):
            row = values + place * ((head_dim + 15) // 16 * 16) * size
            for i in range(head_dim):
                store(row + i * size, load_f32(value + 4 * i))

        return put
    four_bits = kind == "q4"

    @kernel
    def put_codes(values, place, head_dim, value):
        wide = (head_dim + 15) // 16 * 16
        groups = (wide + GROUP - 1) // GROUP
        row_bytes = groups * 16 if four_bits else wide
        row, scales = values + place * row_bytes, values + PAGE * row_bytes + place * 2
        for group in range(groups):
            first, last = group * GROUP, min(group * GROUP + GROUP, head_dim)
            largest = _largest(value + 4 * first, last - first)
            if four_bits:
                inverse = _scale(largest, np.float32(-8))
                store_f16(scales + group * PAGE * 2, largest / np.float32(-8))
                for i in range(16):
                    low = high = 8
                    if first + i < last:
                        low = _code_q4(load_f32(value + 4 * (first + i)), inverse)
                    if first + 16 + i < last:
                        high = _code_q4(load_f32(value + 4 * (first + 16 + i)), inverse)
                    store_i8(row + group * 16 + i, low + 16 * high)
            else:
                inverse = abs(_scale(largest, _MOST_Q8))
                store_f16(scales + group * PAGE * 2, abs(largest) / _MOST_Q8)
                for i in range(first, last):
                    store_i8(row + i, _code_q8(load_f32(value + 4 * i), inverse))

    return put_codes
