"""Turning keys that are in the cache already to other positions, where a conversation has gone beyond those that the
model was trained for."""

import numpy as np

from edgert.kernels.pages import GROUP

from .key_centers import halves


def turn_keys(pages: np.ndarray, turns: np.ndarray, frequencies: np.ndarray, center: np.ndarray | None, *,
              neighbours: bool) -> None:
    """Turn keys in place.

    pages: a head's pages in order (pages.head_layout). turns: by how many positions, (positions,). frequencies: radians
    a position of each pair of components, (head_dim / 2,). center: what was subtracted from quantized keys
    (key_centers). neighbours: whether pairs are of neighbours. Quantized keys are quantized anew, as kernels/cache.py
    does.
    """
    half, wide = len(frequencies), pages["keys"].shape[-2]
    keys = _by_position(pages["keys"])[:len(turns)].astype(np.float64)
    quantized = pages["key_scales"].size > 0
    if quantized:
        keys *= _by_position(pages["key_scales"]).astype(np.float64)[:len(turns)].repeat(GROUP, 1)[:, :wide]
        if center is not None:
            keys[:, :2 * half] += center
    first, second = halves(2 * half, neighbours=neighbours)
    turned = (keys[:, first] + 1j * keys[:, second]) * np.exp(1j * turns[:, None] * frequencies)
    keys[:, first], keys[:, second] = turned.real, turned.imag
    if quantized:
        keys[:, 2 * half:] = 0
        if center is not None:
            keys[:, :2 * half] -= center
        padded = np.pad(keys, ((0, 0), (0, -wide % GROUP))).reshape(len(keys), -1, GROUP)
        steps = np.abs(padded).max(-1) / 127
        codes = np.rint(padded / np.where(steps, steps, 1)[..., None]).reshape(len(keys), -1)[:, :wide]
        _put(pages["key_scales"], steps)
        keys = codes
    _put(pages["keys"], keys)


def _by_position(tiles: np.ndarray) -> np.ndarray:
    """(pages, tiles, columns, lanes) as (positions, columns)."""
    return tiles.transpose(0, 1, 3, 2).reshape(-1, tiles.shape[2])


def _put(tiles: np.ndarray, rows: np.ndarray) -> None:
    """The other way round, for the first positions."""
    everything = _by_position(tiles).copy()
    everything[:len(rows)] = rows
    pages, count, columns, lanes = tiles.shape
    tiles[:] = everything.reshape(pages, count, lanes, columns).transpose(0, 1, 3, 2)
