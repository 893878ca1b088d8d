"""A key-value cache and the two operations on it, and what they should do in float64."""

from typing import NamedTuple

import numpy as np
import rig
from guarded import Buffer, floats

from edgert.kernels import records
from edgert.kernels.team import Team

CACHE_KINDS: dict[str, tuple[int, type]] = {"f16": (0, np.float16), "f32": (1, np.float32)}


class Shape(NamedTuple):
    """Heads, and how many layers and positions the cache has."""

    heads: int
    kv_heads: int
    head_dim: int
    kind: str = "f16"
    layers: int = 2
    positions: int = 112
    interleaved: bool = False

    @property
    def columns(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


class Cache:
    """One buffer row for each layer; not a number wherever nothing was stored."""

    def __init__(self, shape: Shape, table: np.ndarray) -> None:
        self.shape = shape
        self.code, self.element = CACHE_KINDS[shape.kind]
        self.wide = records.padded_head_dim(shape.head_dim)
        self.head_bytes = shape.positions * self.wide * np.dtype(self.element).itemsize
        self.memory = Buffer(shape.layers, 2 * shape.kv_heads * self.head_bytes, shift=32)
        self.table = floats(table, gap=0)

    def set(self, team: Team, tokens: int, position: int) -> None:
        team.set(tokens=tokens, position=position, cache=self.memory.address, cache_layer_bytes=self.memory.stride,
                 cache_head_bytes=self.head_bytes, rope=self.table.address)

    def keys(self, layer: int, kv_head: int) -> np.ndarray:
        """(positions, padded head_dim), whatever was stored."""
        tiles = self._part(layer, kv_head).reshape(-1, self.wide, records.POSITIONS)
        return tiles.transpose(0, 2, 1).reshape(-1, self.wide)

    def values(self, layer: int, kv_head: int) -> np.ndarray:
        """(positions, padded head_dim), whatever was stored."""
        return self._part(layer, self.shape.kv_heads + kv_head).reshape(-1, self.wide)

    def _part(self, layer: int, part: int) -> np.ndarray:
        row = self.memory.view(self.element)[layer]
        each = self.shape.positions * self.wide
        return row[part * each:(part + 1) * each]


def rope_table(shape: Shape, theta: float = 10000.0) -> np.ndarray:
    """Cosines and sines, (positions, head_dim)."""
    half = shape.head_dim // 2
    angles = np.outer(np.arange(shape.positions), theta ** (-np.arange(half) / max(half, 1)))
    return np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def rope(team: Team, cache: Cache, qkv: np.ndarray, position: int, layer: int) -> np.ndarray:
    """qkv (tokens, columns) with queries and keys rotated; keys and values are in the cache then."""
    shape, rows = cache.shape, floats(qkv)
    cache.set(team, len(qkv), position)
    assert rig.run(team, (records.ROPE + cache.code, records.Rope(
        rows.address, rows.stride, shape.heads, shape.kv_heads, shape.head_dim, layer, int(shape.interleaved))))
    for buffer in (rows, cache.memory, cache.table):
        buffer.check()
    return rows.view(np.float32).copy()


def attention(team: Team, cache: Cache, qkv: np.ndarray, position: int, layer: int, scale: float,
              threads: int = 1) -> np.ndarray:
    """softmax(q k * scale) v, float32 of shape (tokens, heads * head_dim)."""
    shape, rows = cache.shape, floats(qkv)
    out = Buffer(len(qkv), 4 * shape.heads * shape.head_dim)
    scratch = Buffer(threads, records.attention_scratch_bytes(shape.head_dim))
    cache.set(team, len(qkv), position)
    assert rig.run(team, (records.ATTENTION + cache.code, records.Attention(
        rows.address, rows.stride, shape.heads, shape.kv_heads, shape.head_dim, layer, out.address, out.stride,
        scratch.address, scratch.stride, rig.bits(scale))))
    for buffer in (rows, out, scratch, cache.memory):
        buffer.check()
    return out.view(np.float32).copy()


def softmax_attention(cache: Cache, qkv: np.ndarray, position: int, layer: int,
                      scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The same from its definition, in float64 on the cache's values; and how far float32 may be from it."""
    shape = cache.shape
    queries = qkv[:, :shape.heads * shape.head_dim].reshape(len(qkv), shape.heads, shape.head_dim).astype(np.float64)
    out, allowed = np.empty_like(queries), np.empty_like(queries)
    for token in range(len(qkv)):
        for head in range(shape.heads):
            length, kv_head = position + token + 1, head * shape.kv_heads // shape.heads
            keys, values = (part(layer, kv_head)[:length, :shape.head_dim].astype(np.float64)
                            for part in (cache.keys, cache.values))
            scores = keys @ queries[token, head] * float(np.float32(scale))
            probabilities = np.exp(scores - scores.max())
            probabilities /= probabilities.sum()
            out[token, head] = probabilities @ values
            size = (np.abs(keys) @ np.abs(queries[token, head])).max() * scale + np.abs(scores).max()
            wrong = (shape.head_dim / 4 + 6) * 2**-24 * size + (length + 20) * 2**-23 + length * 2e-38
            allowed[token, head] = 2 * wrong * (probabilities @ np.abs(values)) + 1e-37
    return out.reshape(len(qkv), -1), allowed.reshape(len(qkv), -1)
