"""Low pages: PAGE positions of the key-value cache at 3 bits an element, made of a page of int8 (pages.py, q8).

What a conversation is likely to need less is kept this way instead of being forgotten (Yang et al. 2024, "No Token Left
Behind", MiKV). As in KIVI (Liu et al. 2024) a channel of the keys has a scale of its own, over the positions of the
page, and a position's values have one for each GROUP components. So a head is made of *rows* of 64 elements each: a
component of its keys, or some components of a position's values.

A row's codes go from 0 to 7; code * scale + least is the element. Elements 16 t + j, t from 0 to 3, stand in lane j.
"""

import functools

import numpy as np

from .pages import GROUP as KEY_GROUP
from .pages import PAGE, POSITIONS, head_layout, padded_head_dim

GROUP = 64
"""Components of a position's values that share a scale; and elements in a row."""
LANES, _MOST = 16, 7


def value_groups(head_dim: int) -> int:
    """How many scales a position's values have."""
    return -(-padded_head_dim(head_dim) // GROUP)


@functools.cache
def low_layout(head_dim: int) -> np.dtype:
    """A head of a low page, as a dtype of these fields; `keys`, then `values`, each with its rows r.

    codes    (row, 16) uint8: the codes' low 2 bits, of element t in bits 2 t and 2 t + 1
    bits     (row / 2, 16) uint8: their third bit, of element t in bit 4 (r mod 2) + t
    scales   (row,) float16
    least    (row,) float16
    """
    return np.dtype([(name, part) for name, part in (
        ("keys", _part(padded_head_dim(head_dim))), ("values", _part(value_groups(head_dim) * PAGE)))])


def _part(rows: int) -> np.dtype:
    return np.dtype([("codes", np.uint8, (rows, LANES)), ("bits", np.uint8, (rows // 2, LANES)),
                     ("scales", np.float16, rows), ("least", np.float16, rows)])


def low_page_bytes(heads: int, head_dim: int) -> int:
    """Bytes of a low page of so many key-value heads."""
    return heads * low_layout(head_dim).itemsize


def pack(pages: np.ndarray, head_dim: int) -> np.ndarray:
    """Low pages of pages: of any shape, from pages.head_layout("q8", head_dim) to low_layout(head_dim)."""
    return pack_elements(*elements(pages), head_dim)


def pack_elements(keys: np.ndarray, values: np.ndarray, head_dim: int) -> np.ndarray:
    """Low pages of what `unpack` returns."""
    packed = np.zeros(keys.shape[:-2], low_layout(head_dim))
    for part, rows in (("keys", keys), ("values", _rows_of_values(values))):
        low, high = rows.min(-1), rows.max(-1)
        scales, least = ((high - low) / _MOST).astype(np.float16), low.astype(np.float16)
        steps = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)
        codes = np.rint((rows - least.astype(np.float32)[..., None]) / steps[..., None]).clip(0, _MOST)
        codes = np.where(scales[..., None] > 0, codes, 0).astype(np.uint8).reshape(*rows.shape[:-1], 4, LANES)
        to = packed[part]
        to["codes"] = np.bitwise_or.reduce([(codes[..., t, :] & 3) << 2 * t for t in range(4)])
        third = np.bitwise_or.reduce([(codes[..., t, :] >> 2) << t for t in range(4)])
        to["bits"] = third[..., 0::2, :] | third[..., 1::2, :] << 4
        to["scales"], to["least"] = scales, least
    return packed


def unpack(packed: np.ndarray, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """What low pages contain: keys (..., component, position) and values (..., position, component), both padded,
    float32."""
    found = []
    for part in ("keys", "values"):
        of = packed[part]
        third = np.stack([of["bits"] & 15, of["bits"] >> 4], -2).reshape(of["codes"].shape)
        codes = np.stack([(of["codes"] >> 2 * t & 3) | (third >> t & 1) << 2 for t in range(4)], -2)
        rows = codes.reshape(*codes.shape[:-2], PAGE).astype(np.float32)
        found.append(rows * of["scales"].astype(np.float32)[..., None] + of["least"].astype(np.float32)[..., None])
    keys, values = found
    groups, wide = value_groups(head_dim), padded_head_dim(head_dim)
    values = values.reshape(*values.shape[:-2], groups, PAGE, GROUP)
    values = np.moveaxis(values, -3, -2).reshape(*keys.shape[:-2], PAGE, groups * GROUP)
    return keys, values[..., :wide]


def elements(pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of pages of int8, as float32."""
    keys, values = pages["keys"].astype(np.float32), pages["values"].astype(np.float32)  # (tile, component, lane)
    wide = keys.shape[-2]
    keys *= pages["key_scales"].astype(np.float32).repeat(KEY_GROUP, -2)[..., :wide, :]
    values *= np.swapaxes(pages["value_scales"].astype(np.float32).repeat(KEY_GROUP, -2)[..., :wide, :], -1, -2)
    return np.moveaxis(keys, -3, -2).reshape(*keys.shape[:-3], wide, PAGE), values


def _rows_of_values(values: np.ndarray) -> np.ndarray:
    """(..., position, component) as rows; those behind the last component repeat it, and change no scale."""
    wide = values.shape[-1]
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -wide % GROUP)], mode="edge")
    rows = padded.reshape(*values.shape[:-1], -1, GROUP)
    return np.moveaxis(rows, -2, -3).reshape(*values.shape[:-2], -1, GROUP)


assert POSITIONS == LANES and head_layout("q8", GROUP)["keys"].shape[-1] == LANES
