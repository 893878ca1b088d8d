"""The key-value cache of a session: where a position's keys and values stand.

float16 or float32, C order, a head's components padded with zeros to a multiple of 16 (`wide`):

    (layer, [keys of each key-value head ..., values of each key-value head ...])
    keys of a head:    (position / 16, component, position % 16)     a lane is a position
    values of a head:  (position, component)
"""

from typing import Any

from .decorators import kernel
from .records import POSITIONS, TOKEN
from .simd.memory import load_f16x16, load_f32x16, load_i64, store_f16, store_f32

LOAD: dict[str, Any] = {"f16": load_f16x16, "f32": load_f32x16}
"""Loads 16 elements as float32."""
STORE: dict[str, Any] = {"f16": store_f16, "f32": store_f32}
"""Stores a float32 as one element."""


@kernel
def key_tile(token, layer, kv_head, head_dim, position, size):
    """Address of the tile of keys that a position is in. token: a records.Token of its session; size: of an element."""
    wide = (head_dim + 15) // 16 * 16
    keys = (load_i64(token + TOKEN.cache) + layer * load_i64(token + TOKEN.layer_bytes)
            + kv_head * load_i64(token + TOKEN.head_bytes))
    return keys + position // POSITIONS * (wide * POSITIONS * size)


@kernel
def value_row(token, layer, kv_head, kv_heads, head_dim, position, size):
    """Address of a position's value."""
    wide = (head_dim + 15) // 16 * 16
    values = (load_i64(token + TOKEN.cache) + layer * load_i64(token + TOKEN.layer_bytes)
              + (kv_heads + kv_head) * load_i64(token + TOKEN.head_bytes))
    return values + position * wide * size
