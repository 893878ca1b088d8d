"""What is subtracted from keys before they are quantized: what the bias of their projection alone makes of them.

A softmax does not change when all of a query's scores change by the same number, so a vector may be subtracted from all
keys of a head at no cost ("SageAttention", Zhang et al. 2024, subtracts their mean). Of a model with biases it is known
beforehand: the rotated bias, on average over the first positions. Where components turn fast that is nothing; where
they hardly turn, some models (Qwen2) have biases hundreds of times as large as what a token adds to them.
"""

import ctypes
from typing import Protocol

import numpy as np

from edgert.bundle import Header
from edgert.models.tensors import Role

_POSITIONS = 4096


class _Addresses(Protocol):
    def address(self, name: str) -> int: ...


def key_centers(header: Header, weights: _Addresses) -> np.ndarray | None:
    """float32 of shape (layers, key-value heads, head_dim); None for a model whose keys have no bias, or a norm behind
    it."""
    config = header.config
    names = [spec.name.removesuffix("weight") + "bias" for spec in config.tensors() if spec.role is Role.KEY]
    normed = any(spec.role is Role.KEY_NORM for spec in config.tensors())
    if normed or not all(name in header.tensors for name in names):
        return None
    shape = config.num_key_value_heads, config.head_dim
    bias = np.array([np.ctypeslib.as_array((ctypes.c_float * (shape[0] * shape[1])).from_address(weights.address(name)))
                     for name in names], np.float64).reshape(-1, *shape)
    turns = [np.exp(1j * np.arange(_POSITIONS)[:, None] * frequencies).mean(0) * config.rope_attention_factor
             for frequencies in config.rope_tables()]
    first, second = halves(config.rotary_dim, neighbours=config.rotates_neighbours)
    for layer, of in enumerate(bias):
        if (table := config.rope_table(layer)) is not None:
            turned = (of[:, first] + 1j * of[:, second]) * turns[table]
            of[:, first], of[:, second] = turned.real, turned.imag
    return bias.astype(np.float32)


def halves(rotary_dim: int, *, neighbours: bool) -> tuple[slice, slice]:
    """The first components of all pairs that rotate together, and the second ones."""
    half = rotary_dim // 2
    return ((slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if neighbours else (slice(half), slice(half, 2 * half)))
