"""Turning keys that are in the cache already to other positions, where a conversation has gone beyond those that the
model was trained for."""

from typing import NamedTuple

import numpy as np

from edgert.kernels.low_pages import pack_elements, unpack
from edgert.kernels.pages import GROUP

from .key_centers import halves


class Rotation(NamedTuple):
    """How heads are rotated. frequencies: radians a position of each pair of components, (rotary_dim / 2,).
    neighbours: whether pairs are of neighbours. Components from rotary_dim to head_dim stay as they are."""

    frequencies: np.ndarray
    head_dim: int
    neighbours: bool


def turn_keys(pages: np.ndarray, turns: np.ndarray, rotation: Rotation, center: np.ndarray | None) -> None:
    """Turn keys in place.

    pages: a head's pages in order (pages.head_layout). turns: by how many positions, (positions,). center: what was
    subtracted from quantized keys (key_centers). Quantized keys are quantized anew, as kernels/cache.py does.
    """
    dim, wide = rotation.head_dim, pages["keys"].shape[-2]
    keys = _by_position(pages["keys"])[:len(turns)].astype(np.float64)
    quantized = pages["key_scales"].size > 0
    if quantized:
        keys *= _by_position(pages["key_scales"]).astype(np.float64)[:len(turns)].repeat(GROUP, 1)[:, :wide]
    _turn(keys, turns, rotation, center if quantized else None)
    if quantized:
        keys[:, dim:] = 0
        padded = np.pad(keys, ((0, 0), (0, -wide % GROUP))).reshape(len(keys), -1, GROUP)
        steps = np.abs(padded).max(-1) / 127
        codes = np.rint(padded / np.where(steps, steps, 1)[..., None]).reshape(len(keys), -1)[:, :wide]
        _put(pages["key_scales"], steps)
        keys = codes
    _put(pages["keys"], keys)


def turned_low(page: np.ndarray, turns: np.ndarray, rotation: Rotation, center: np.ndarray | None) -> np.ndarray:
    """A head of a low page (kernels/low_pages.py) with its keys turned, and quantized anew; the rest as above."""
    keys, values = unpack(page, rotation.head_dim)
    rows = keys.T.astype(np.float64)
    _turn(rows, turns, rotation, center)
    return pack_elements(rows.T.astype(np.float32), values, rotation.head_dim)


def _turn(keys: np.ndarray, turns: np.ndarray, rotation: Rotation, center: np.ndarray | None) -> None:
    """Turn keys, float64 (positions, components), from which `center` was subtracted, in place."""
    dim = rotation.head_dim
    if center is not None:
        keys[:, :dim] += center
    first, second = halves(2 * len(rotation.frequencies), neighbours=rotation.neighbours)
    turned = (keys[:, first] + 1j * keys[:, second]) * np.exp(1j * turns[:, None] * rotation.frequencies)
    keys[:, first], keys[:, second] = turned.real, turned.imag
    if center is not None:
        keys[:, :dim] -= center


def _by_position(tiles: np.ndarray) -> np.ndarray:
    """(pages, tiles, columns, lanes) as (positions, columns)."""
    return tiles.transpose(0, 1, 3, 2).reshape(-1, tiles.shape[2])


def _put(tiles: np.ndarray, rows: np.ndarray) -> None:
    """The other way round, for the first positions."""
    everything = _by_position(tiles).copy()
    everything[:len(rows)] = rows
    pages, count, columns, lanes = tiles.shape
    tiles[:] = everything.reshape(pages, count, lanes, columns).transpose(0, 1, 3, 2)
