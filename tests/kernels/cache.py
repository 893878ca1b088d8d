"""A key-value cache and the operations on it, and what they should do in float64."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import rig
from guarded import Buffer, floats

from edgert.kernels import records
from edgert.kernels.pages import CACHE_TYPES, PAGE, head_layout, key_bytes, padded_head_dim
from edgert.kernels.records import Code
from edgert.kernels.team import Team

CACHE_KINDS = list(CACHE_TYPES)
FLOATS = ["f16", "f32"]


class Shape(NamedTuple):
    """Heads, and how many layers and positions the cache has."""

    heads: int
    kv_heads: int
    head_dim: int
    kind: str = "f16"
    layers: int = 2
    positions: int = 112
    interleaved: bool = False
    rotary_dim: int | None = None
    """None for all of head_dim."""

    @property
    def rotated(self) -> int:
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def columns(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


class Cache:
    """Pages in any order, one buffer row each; not a number wherever nothing was stored. table: rope_table."""

    def __init__(self, shape: Shape, table: np.ndarray, *, gap: int = 64) -> None:
        self.shape, self.code = shape, CACHE_KINDS.index(shape.kind)
        self.head = head_layout(shape.kind, shape.head_dim)
        self.wide = padded_head_dim(shape.head_dim)
        self.pages = -(-shape.positions // PAGE)
        self.memory = Buffer(shape.layers * self.pages, shape.kv_heads * self.head.itemsize, gap=gap, shift=32)
        self.order = np.random.default_rng(self.pages).permutation(shape.layers * self.pages).reshape(shape.layers, -1)
        self.addresses = self.memory.address + self.memory.stride * self.order
        self.table = floats(table, gap=0)

    def token(self, position: int, slot: int) -> records.Token:
        """The record of a new token."""
        return records.Token(self.addresses.ctypes.data, self.pages, self.head.itemsize,
                             key_bytes(self.shape.kind, self.shape.head_dim), position,
                             self.table.address + position * self.table.stride, slot)

    def heads(self, layer: int, kv_head: int) -> np.ndarray:
        """A head's pages in order, whatever was stored."""
        return self.memory.bytes[self.order[layer]].view(self.head)[:, kv_head]

    def keys(self, layer: int, kv_head: int) -> np.ndarray:
        """(positions, padded head_dim), whatever was stored."""
        heads = self.heads(layer, kv_head)
        keys = heads["keys"].transpose(0, 1, 3, 2).reshape(-1, self.wide)
        if not heads["key_scales"].size:
            return keys
        scales = heads["key_scales"].transpose(0, 1, 3, 2).reshape(len(keys), -1)
        return keys.astype(np.float32) * scales.astype(np.float32).repeat(32, 1)[:, :self.wide]

    def values(self, layer: int, kv_head: int) -> np.ndarray:
        """(positions, padded head_dim), whatever was stored."""
        heads = self.heads(layer, kv_head)
        values = heads["values"]
        if values.dtype == np.uint8:
            values = np.concatenate([values & 15, values >> 4], -1).astype(np.int8) - 8
        values = values.reshape(self.pages * PAGE, -1)[:, :self.wide]
        if not heads["value_scales"].size:
            return values
        scales = heads["value_scales"].transpose(0, 2, 1).reshape(len(values), -1)
        return values.astype(np.float32) * scales.astype(np.float32).repeat(32, 1)[:, :self.wide]


class New(NamedTuple):
    """New tokens of a session: its cache, their queries, keys and values (tokens, columns), and where they stand.

    siblings: for each of the last tokens the index of the one in whose place it stands.
    """

    cache: Cache
    qkv: np.ndarray
    position: int
    siblings: tuple[int, ...] = ()

    def tokens(self) -> list[records.Token]:
        """Their records."""
        places = [*range(len(self.qkv) - len(self.siblings)), *self.siblings]
        return [self.cache.token(self.position + at, self.position + number) for number, at in enumerate(places)]

    @property
    def end(self) -> int:
        """Behind the last position."""
        return self.position + len(self.qkv) - len(self.siblings)


def rope_table(shape: Shape, theta: float = 10000.0) -> np.ndarray:
    """Cosines and sines, (positions, components that are rotated)."""
    half = shape.rotated // 2
    angles = np.outer(np.arange(shape.positions), theta ** (-np.arange(half) / max(half, 1)))
    return np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def nearest(parts: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Keys or values (..., head_dim) as elements of a kind hold them, and how far those may be from it: codes are
    rounded to nearest, and scales to float16; q4 cuts off what lies opposite of a group's largest element."""
    if kind in FLOATS:
        return parts.astype({"f16": np.float16, "f32": np.float32}[kind]).astype(np.float32), np.zeros(parts.shape)
    steps = np.zeros(parts.shape)
    for first in range(0, parts.shape[-1], 32):
        most = np.abs(parts[..., first:first + 32]).max(-1, keepdims=True)
        steps[..., first:first + 32] = most / {"q8": 127, "q4": 8}[kind]
    codes = {"q8": 127, "q4": 8}[kind]
    return parts, steps * ({"q8": 0.5, "q4": 1.0}[kind] + 2**-11 * codes) + 2**-25 * codes


def set_tokens(team: Team, batch: Sequence[New]) -> tuple[Buffer, Buffer]:
    """Announces the new tokens of several sessions; their records, and a copy of all their rows."""
    tokens = np.array([token for new in batch for token in new.tokens()], np.int64)
    fields = Buffer(len(tokens), 8 * tokens.shape[1], gap=records.TOKEN_BYTES - 8 * tokens.shape[1])
    fields.view(np.int64)[:] = tokens
    team.set(tokens=len(tokens), token_records=fields.address)
    return fields, floats(np.concatenate([new.qkv for new in batch]))


def split_rows(batch: Sequence[New], rows: np.ndarray) -> list[np.ndarray]:
    """What belongs to each session."""
    return [part.copy() for part in np.split(rows, np.cumsum([len(new.qkv) for new in batch])[:-1])]


def check(batch: Sequence[New], *buffers: Buffer) -> None:
    for buffer in (*buffers, *(new.cache.memory for new in batch), *(new.cache.table for new in batch)):
        buffer.check()


def rope_all(team: Team, batch: Sequence[New], layer: int, *, table: int = 0) -> list[np.ndarray]:
    """Each session's qkv with queries and keys rotated; keys and values are in the caches then. table: which one of
    those that stand behind each other in the caches' own."""
    (fields, rows), shape = set_tokens(team, batch), batch[0].cache.shape
    assert rig.run(team, (Code.ROPE, records.Rope(
        batch[0].cache.code, rows.address, rows.stride, shape.heads, shape.kv_heads, shape.head_dim, layer,
        int(shape.interleaved), 0, shape.rotated, 4 * table * shape.rotated)))
    check(batch, fields, rows)
    return split_rows(batch, rows.view(np.float32))


def rope(team: Team, cache: Cache, qkv: np.ndarray, position: int, layer: int, *, table: int = 0) -> np.ndarray:
    """The same for one session."""
    return rope_all(team, [New(cache, qkv, position)], layer, table=table)[0]


def all_parts(batch: Sequence[New]) -> int:
    """Bytes of room for every split of every token."""
    shape, tokens = batch[0].cache.shape, sum(len(new.qkv) for new in batch)
    return records.attention_partial_bytes(shape.heads, shape.head_dim, tokens,
                                           max(new.end for new in batch))


class Sight(NamedTuple):
    """window: how many positions a token sees, 0 for all. cap: of scores, 0 for none. sinks: of each head, or none."""

    window: int = 0
    cap: float = 0.0
    sinks: tuple[float, ...] = ()


EVERYTHING = Sight()


def attention_all(team: Team, batch: Sequence[New], layer: int, scale: float, threads: int = 1, *,
                  room: int | None = None, sight: Sight = EVERYTHING) -> list[np.ndarray]:
    """softmax(q k * scale) v, float32 of shape (tokens, heads * head_dim) for each session.

    room: bytes for parts; by default as many as there can be.
    """
    (fields, rows), shape = set_tokens(team, batch), batch[0].cache.shape
    out = Buffer(len(rows.bytes), 4 * shape.heads * shape.head_dim)
    scratch = Buffer(threads, records.attention_scratch_bytes(shape.head_dim, shape.heads // shape.kv_heads))
    partial, sinks = Buffer(1, all_parts(batch) if room is None else room), floats([sight.sinks])
    record = records.Attention(
        batch[0].cache.code, rows.address, rows.stride, shape.heads, shape.kv_heads, shape.head_dim, layer,
        out.address, out.stride, scratch.address, scratch.stride, rig.bits(scale), partial.address,
        partial.bytes.shape[1], sight.window, rig.bits(sight.cap), sinks.address if sight.sinks else 0)
    assert rig.run(team, (Code.ATTENTION, record), (Code.COMBINE, record))
    check(batch, fields, rows, out, scratch, partial)
    return split_rows(batch, out.view(np.float32))


def attention(team: Team, cache: Cache, qkv: np.ndarray, position: int, layer: int, scale: float,
              threads: int = 1, *, room: int | None = None, sight: Sight = EVERYTHING) -> np.ndarray:
    """The same for one session."""
    return attention_all(team, [New(cache, qkv, position)], layer, scale, threads, room=room, sight=sight)[0]


def softmax_attention(cache: Cache, qkv: np.ndarray, position: int, layer: int, scale: float,
                      siblings: tuple[int, ...] = (), sight: Sight = EVERYTHING) -> tuple[np.ndarray, np.ndarray]:
    """The same from its definition, in float64 on the cache's values; and how far float32 may be from it."""
    shape = cache.shape
    queries = qkv[:, :shape.heads * shape.head_dim].reshape(len(qkv), shape.heads, shape.head_dim).astype(np.float64)
    out, allowed = np.empty_like(queries), np.empty_like(queries)
    for token, record in enumerate(New(cache, qkv, position, siblings).tokens()):
        first = max(record.position + 1 - sight.window, 0) if sight.window else 0
        seen = [*range(first, record.position), record.slot]
        for head in range(shape.heads):
            length, kv_head = len(seen), head * shape.kv_heads // shape.heads
            keys, values = (part(layer, kv_head)[seen, :shape.head_dim].astype(np.float64)
                            for part in (cache.keys, cache.values))
            scores = keys @ queries[token, head] * float(np.float32(scale))
            uncapped = scores
            if sight.cap:
                scores = sight.cap * np.tanh(scores / sight.cap)
            sink = float(np.float32(sight.sinks[head])) if sight.sinks else -np.inf
            most = max(scores.max(), sink)
            probabilities = np.exp(scores - most)
            probabilities /= probabilities.sum() + np.exp(sink - most)
            out[token, head] = probabilities @ values
            size = (np.abs(keys) @ np.abs(queries[token, head])).max() * scale + np.abs(uncapped).max()
            wrong = (shape.head_dim / 4 + 6) * 2**-24 * size + (length + 20) * 2**-23 + length * 2e-38
            allowed[token, head] = 2 * wrong * (probabilities @ np.abs(values)) + 1e-37
    return out.reshape(len(qkv), -1), allowed.reshape(len(qkv), -1)
