"""Pages of the key-value cache: how the keys and values of PAGE neighbouring positions stand in memory.

A page belongs to one layer and has all its key-value heads, one after another, each laid out as `head_layout` says. A
head's components are padded with zeros to a multiple of 16 (`wide`), and where elements are quantized, those of a
position go in groups of GROUP that share a float16 scale ("Q8_0" and "Q4_0" of llama.cpp). Every position has scales of
its own: what stands in the cache does not depend on which tokens came together.
"""

import functools

import numpy as np

PAGE = 64
"""Positions of a page."""
POSITIONS = 16
"""Positions in a tile of keys."""
GROUP = 32
"""Components of a position that share a scale."""

CACHE_TYPES = {"f16": ("f16", "f16"), "f32": ("f32", "f32"), "q8": ("q8", "q8"), "q4": ("q8", "q4")}
"""Types of a cache, in the order of their numbers: what its keys are, and its values."""
ELEMENT_BYTES = {"f32": 4, "f16": 2, "q8": 1}
"""Bytes of an element of a kind, and of every kind but q4, which has two in a byte."""


def padded_head_dim(head_dim: int) -> int:
    """Components of a head in the cache."""
    return -(-head_dim // 16) * 16


@functools.cache
def head_layout(cache_type: str, head_dim: int) -> np.dtype:
    """A head of a page, as a dtype of these fields. A tile is POSITIONS positions, and a lane of it is a position.

    keys          (tile, component, lane); q4: (tile, component / 2, lane), the even component in the low nibble
    key_scales    (tile, group, lane) float16, where keys are quantized
    values        (position, component); q4: (position, group, 16), the group's first 16 components in the low nibbles
    value_scales  (group, position) float16, where values are quantized

    Codes of q8 are int8; those of q4 have 8 added. A code times its scale is the element.
    """
    wide, tiles = padded_head_dim(head_dim), PAGE // POSITIONS
    groups = -(-wide // GROUP)
    key_kind, value_kind = CACHE_TYPES[cache_type]
    elements = {"f16": np.float16, "f32": np.float32, "q8": np.int8, "q4": np.uint8}
    fields = [
        ("keys", elements[key_kind], (tiles, wide // 2 if key_kind == "q4" else wide, POSITIONS)),
        ("key_scales", np.float16, (tiles, groups if key_kind in ("q8", "q4") else 0, POSITIONS)),
        ("values", elements[value_kind], (PAGE, groups, 16) if value_kind == "q4" else (PAGE, wide)),
        ("value_scales", np.float16, (groups if value_kind in ("q8", "q4") else 0, PAGE)),
    ]
    return np.dtype(fields)


def key_bytes(cache_type: str, head_dim: int) -> int:
    """Bytes of a head's keys in a page; its values follow."""
    layout = head_layout(cache_type, head_dim)
    assert layout.fields is not None
    return layout.fields["values"][1]


def page_bytes(cache_type: str, heads: int, head_dim: int) -> int:
    """Bytes of a page of so many key-value heads."""
    return heads * head_layout(cache_type, head_dim).itemsize
